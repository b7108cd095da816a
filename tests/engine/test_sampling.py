"""Sampling: repeatable, and from exactly the tokens that are left in."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from properties import examples

from semshare import InvalidRequest
from semshare.engine.sampling import Picked, Sampler, SamplingParams
from semshare.types import TokenLogprob

# Probabilities 0.4, 0.3, 0.15, 0.1, 0.05 at ids 3, 0, 4, 1, 2.
LOGITS = torch.tensor([0.3, 0.1, 0.05, 0.4, 0.15]).log()


def drawn(n: int = 400, *, logits: torch.Tensor = LOGITS, **params: Any) -> list[int]:
    sampler = Sampler(SamplingParams(**({"temperature": 1.0, "seed": 0} | params)))
    return [sampler.pick(logits).token for _ in range(n)]


def test_greedy_takes_the_most_likely_and_needs_no_seed() -> None:
    assert Sampler(SamplingParams()).pick(LOGITS) == Picked(3, None)
    assert Sampler(SamplingParams(top_k=2, top_p=0.1, min_p=1.0, seed=5)).pick(LOGITS).token == 3


def test_a_seed_repeats_and_another_differs() -> None:
    assert drawn(seed=1) == drawn(seed=1)
    assert drawn(seed=1) != drawn(seed=2)
    assert drawn(20, seed=-1) == drawn(20, seed=-1)
    assert drawn(20, seed=2**64 + 3) == drawn(20, seed=2**64 + 3)


def test_no_seed_draws_a_new_one() -> None:
    assert drawn(seed=None) != drawn(seed=None)  # alike once in 4¹⁰⁰ runs


def test_frequencies_are_the_probabilities() -> None:
    n = 4_000
    counts = torch.bincount(torch.tensor(drawn(n)), minlength=5) / n
    deviation = (LOGITS.exp() * (1 - LOGITS.exp()) / n).sqrt()
    assert bool(((counts - LOGITS.exp()).abs() < 4 * deviation).all())


@pytest.mark.parametrize(
    ("top_k", "left"),
    [(1, {3}), (2, {0, 3}), (3, {0, 3, 4}), (5, set(range(5))), (99, set(range(5)))],
)
def test_top_k_leaves_the_k_most_likely(top_k: int, left: set[int]) -> None:
    assert set(drawn(top_k=top_k)) == left


@pytest.mark.parametrize(
    ("top_p", "left"),
    [
        (0.01, {3}),
        (0.39, {3}),
        (0.41, {0, 3}),
        (0.69, {0, 3}),
        (0.71, {0, 3, 4}),
        (1.0, set(range(5))),
    ],
)
def test_top_p_leaves_the_fewest_that_reach_p(top_p: float, left: set[int]) -> None:
    assert set(drawn(top_p=top_p)) == left


def test_top_p_counts_what_top_k_left() -> None:
    # Of the two left, 3 has 0.4 / 0.7 = 0.57.
    assert set(drawn(top_k=2, top_p=0.5)) == {3}
    assert set(drawn(top_k=2, top_p=0.6)) == {0, 3}


@pytest.mark.parametrize(
    ("min_p", "left"),
    [
        # The others are 0.75, 0.375, 0.25 and 0.125 times as likely as the first.
        (1.0, {3}),
        (0.76, {3}),
        (0.74, {0, 3}),
        (0.38, {0, 3}),
        (0.37, {0, 3, 4}),
        (0.13, {0, 1, 3, 4}),
        (0.12, set(range(5))),
        (0.0, set(range(5))),
    ],
)
def test_min_p_leaves_what_is_likely_enough(min_p: float, left: set[int]) -> None:
    assert set(drawn(min_p=min_p)) == left


def test_min_p_sees_the_tempered_distribution_and_top_p_comes_before_it() -> None:
    # At a temperature of 2, 0.05 against 0.4 is √(1/8) = 0.35.
    assert set(drawn(min_p=0.34, temperature=2.0)) == set(range(5))
    # Of all mass, 0.4 + 0.3 is less than 0.72, so a third stays. Were min-p first, it would leave
    # 0.4, 0.3 and 0.15, of which the first two hold 0.82.
    assert set(drawn(min_p=0.3, top_p=0.72)) == {0, 3, 4}


def test_a_bias_is_added_to_the_raw_logit() -> None:
    # ln 0.4 − ln 0.05 = 2.08: id 2 is the most likely from there on.
    assert Sampler(SamplingParams(logit_bias={2: 2.0})).pick(LOGITS).token == 3
    assert Sampler(SamplingParams(logit_bias={2: 2.1})).pick(LOGITS).token == 2
    assert Sampler(SamplingParams(logit_bias={3: -100.0, 0: -100.0})).pick(LOGITS).token == 4
    # 0.05 × 8 is 0.4, before the temperature: the two share 0.8 / 1.35 alike.
    counts = np.bincount(drawn(4_000, logit_bias={2: math.log(8.0)}, top_k=2), minlength=5) / 4_000
    assert set(np.flatnonzero(counts)) == {2, 3}
    assert abs(counts[2] - 0.5) < 4 * math.sqrt(0.25 / 4_000)


def test_params_keep_their_own_copy_of_the_bias_and_hash() -> None:
    bias = {1: 1.0}
    params = SamplingParams(logit_bias=bias)
    bias[1] = 2.0
    assert params.logit_bias == {1: 1.0}
    assert hash(params) == hash(SamplingParams(logit_bias={1: 1.0}))
    assert params == SamplingParams(logit_bias={1: 1.0}) != SamplingParams(logit_bias={1: 2.0})
    with pytest.raises(TypeError):
        params.logit_bias[1] = 3.0  # type: ignore[index]


def test_a_bias_outside_the_vocabulary_is_refused() -> None:
    SamplingParams(logit_bias={0: 1.0, 4: 1.0}).check_vocabulary(5)
    for token in (5, -1):
        with pytest.raises(InvalidRequest, match=f"names token {token}; this model's are 0 to 4"):
            SamplingParams(logit_bias={token: 1.0}).check_vocabulary(5)


# ------------------------------------------------------------- log-probabilities


def test_logprobs_are_the_models_own_whatever_is_drawn_from() -> None:
    for params in (
        SamplingParams(logprobs=2, logit_bias={3: -100.0, 0: -100.0}),
        SamplingParams(0.5, 1.0, 1, 0, logprobs=2, logit_bias={4: 50.0}),
    ):
        picked = Sampler(params).pick(LOGITS)
        assert picked.token == 4
        assert picked.logprob is not None
        assert picked.logprob.token_id == 4
        assert picked.logprob.logprob == pytest.approx(math.log(0.15), abs=1e-6)
        assert [token for token, _ in picked.logprob.top] == [3, 0]
        assert [value for _, value in picked.logprob.top] == pytest.approx(
            [math.log(0.4), math.log(0.3)], abs=1e-6
        )


def test_no_alternatives_all_alternatives_and_ties() -> None:
    assert logprob_of(LOGITS, 0).top == ()
    assert [token for token, _ in logprob_of(LOGITS, 20).top] == [3, 0, 4, 1, 2]
    tied = torch.tensor([0.0, 1.0, 1.0, 1.0, 0.0])
    assert [token for token, _ in logprob_of(tied, 2).top] == [1, 2]
    assert [token for token, _ in logprob_of(tied, 4).top] == [1, 2, 3, 0]


def logprob_of(logits: torch.Tensor, top: int) -> TokenLogprob:
    found = Sampler(SamplingParams(logprobs=top)).pick(logits).logprob
    assert found is not None
    return found


any_logits = st.lists(st.floats(-30, 30, width=32), min_size=2, max_size=60).map(torch.tensor)


@examples(200)
@given(any_logits, st.integers(0, 20))
def test_logprobs_are_a_distribution(logits: torch.Tensor, top: int) -> None:
    found = logprob_of(logits, top)
    values = [value for _, value in found.top]
    assert len(values) == min(top, len(logits))
    assert values == sorted(values, reverse=True)
    assert all(value <= 0.0 for value in [found.logprob, *values])
    assert sum(math.exp(value) for value in values) <= 1.0 + 1e-12
    expected = logits.double().log_softmax(-1)
    assert found.logprob == pytest.approx(float(expected.max()), abs=1e-12)
    assert values == pytest.approx([float(expected[token]) for token, _ in found.top], abs=1e-12)


# ------------------------------------------------------------- for any logits


@examples(300)
@given(
    any_logits,
    st.floats(1e-4, 100.0),
    st.floats(0.0, 1.0, exclude_min=True),
    st.integers(0, 70),
    st.floats(0.0, 1.0),
    st.integers(),
)
def test_a_token_is_always_left_and_it_is_one_of_those_allowed(
    logits: torch.Tensor, temperature: float, top_p: float, top_k: int, min_p: float, seed: int
) -> None:
    params = SamplingParams(temperature, top_p, top_k, seed, min_p)
    token = Sampler(params).pick(logits).token
    assert token == Sampler(params).pick(logits).token
    probabilities = (logits.double() / temperature).softmax(-1)
    above = probabilities[probabilities > probabilities[token]]
    assert len(above) < (top_k or len(logits))
    assert float(above.sum()) < top_p * (1 + 1e-9)
    assert probabilities[token] >= min_p * probabilities.max() * (1 - 1e-9)


@pytest.mark.parametrize("vocab", [1, 3, 7, 49_152])
def test_a_uniform_distribution_keeps_a_token_under_any_truncation(vocab: int) -> None:
    uniform = torch.full((vocab,), 0.1)
    for truncation in ({"top_p": 5e-324}, {"top_k": 1}, {"min_p": 1.0}, {"top_p": 1 - 2**-53}):
        assert 0 <= drawn(1, logits=uniform, **truncation)[0] < vocab


@examples(100)
@given(any_logits, st.integers(0, 10_000), st.floats(0.01, 1.5))
def test_a_bias_of_minus_100_bans(logits: torch.Tensor, seed: int, temperature: float) -> None:
    banned = seed % len(logits)
    params = SamplingParams(temperature, seed=seed, logit_bias={banned: -100.0})
    sampler = Sampler(params)
    assert banned not in {sampler.pick(logits).token for _ in range(5)}


# ------------------------------------------------------------- repeatable draws


def test_other_requests_do_not_touch_a_draw() -> None:
    alone = drawn(50, seed=3)
    sampler, other = (Sampler(SamplingParams(1.0, seed=seed)) for seed in (3, 4))
    between = []
    for _ in range(50):
        torch.rand(3)
        np.random.default_rng().random()
        other.pick(LOGITS)
        between.append(sampler.pick(LOGITS).token)
    assert between == alone


@pytest.mark.parametrize("truncation", [{}, {"top_p": 0.9}, {"top_k": 50}, {"min_p": 0.05}])
def test_rounding_does_not_change_a_draw(truncation: dict[str, Any]) -> None:
    # More than another batch shape changes float32 logits by. One number on the cumulative
    # distribution would draw another token about five times here.
    noise = np.random.default_rng(0)
    logits = torch.from_numpy(noise.normal(0.0, 3.0, 49_152).astype(np.float32))
    rounded = logits + torch.from_numpy(noise.uniform(-3e-4, 3e-4, 49_152).astype(np.float32))
    assert not torch.equal(logits, rounded)
    first = drawn(150, logits=logits, **truncation)
    assert drawn(150, logits=rounded, **truncation) == first
    assert len(set(first)) > 5


def test_continuations_have_seeds_of_their_own() -> None:
    params = SamplingParams(1.0, seed=7, top_k=3)
    assert params.for_continuation(0) is params
    seeds = [params.for_continuation(index).seed for index in range(64)]
    assert len(set(seeds)) == 64
    assert seeds == [params.for_continuation(index).seed for index in range(64)]
    assert SamplingParams(1.0, seed=8).for_continuation(1).seed not in seeds
    assert params.for_continuation(5).top_k == 3
    assert SamplingParams(1.0).for_continuation(5).seed is None
    assert SamplingParams(1.0, seed=-1).for_continuation(1).seed is not None


def test_equals_at_the_edge_stay_together() -> None:
    tied = torch.tensor([0.2, 0.4, 0.2, 0.2]).log()
    assert set(drawn(logits=tied, top_k=2)) == set(range(4))
    assert set(drawn(logits=tied, top_p=0.5)) == set(range(4))
    assert set(drawn(logits=tied, top_p=0.39)) == {1}


def test_temperature_sharpens_and_flattens() -> None:
    assert set(drawn(temperature=0.01)) == {3}
    hot = torch.bincount(torch.tensor(drawn(2_000, temperature=100.0)), minlength=5) / 2_000
    assert float((hot - 0.2).abs().max()) < 0.04


def test_picking_leaves_the_logits_as_they_are() -> None:
    logits = LOGITS.clone()
    for temperature in (0.0, 1.0):
        params = SamplingParams(temperature, 0.5, 1, 0, 0.5, {3: -100.0}, 2)
        Sampler(params).pick(logits)
    assert torch.equal(logits, LOGITS)


@pytest.mark.parametrize("temperature", [1e-6, 1e-30, 5e-324])
def test_a_tiny_temperature_is_greedy(temperature: float) -> None:
    assert set(drawn(50, temperature=temperature)) == {3}


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"temperature": -0.1}, r"temperature is -0.1: .* between 0.0 and 100.0"),
        ({"temperature": math.nan}, "temperature is nan"),
        ({"temperature": 101.0}, r"temperature is 101.0: .* between 0.0 and 100.0"),
        ({"top_p": 1.5}, r"top_p is 1.5: .* between 0.0 and 1.0"),
        ({"top_p": 0.0}, "top_p is 0: no token would be left"),
        ({"min_p": 1.1}, r"min_p is 1.1: .* between 0.0 and 1.0"),
        ({"min_p": math.nan}, "min_p is nan"),
        ({"logit_bias": {3: 100.5}}, r"logit_bias of token 3 is 100.5: .* -100.0 and 100.0"),
        ({"logit_bias": {3: math.nan}}, "logit_bias of token 3 is nan"),
        ({"logit_bias": {"3": 1.0}}, "logit_bias has the key '3'"),
        ({"logprobs": 21}, "logprobs is 21: it must be None .* or from 0 to 20"),
        ({"logprobs": -1}, "logprobs is -1"),
        ({"top_k": -1}, "top_k is -1: it must be 0 .* or more"),
    ],
)
def test_bad_parameters_are_refused_with_value_and_limit(
    params: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidRequest, match=message):
        SamplingParams(**params)
