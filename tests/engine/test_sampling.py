"""Sampling: repeatable, and from exactly the tokens that are left in."""

from __future__ import annotations

import math

import pytest
import torch

from semshare import InvalidRequest
from semshare.engine.sampling import Sampler, SamplingParams

# Probabilities 0.4, 0.3, 0.15, 0.1, 0.05 at ids 3, 0, 4, 1, 2.
LOGITS = torch.tensor([0.3, 0.1, 0.05, 0.4, 0.15]).log()


def drawn(n: int = 400, **params: float | None) -> list[int]:
    sampler = Sampler(SamplingParams(**({"temperature": 1.0, "seed": 0} | params)))
    return [sampler.pick(LOGITS.clone()) for _ in range(n)]


def test_greedy_takes_the_most_likely_and_needs_no_seed() -> None:
    assert Sampler(SamplingParams()).pick(LOGITS) == 3
    assert Sampler(SamplingParams(top_k=2, top_p=0.1, seed=5)).pick(LOGITS) == 3


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


def test_temperature_sharpens_and_flattens() -> None:
    assert set(drawn(temperature=0.01)) == {3}
    hot = torch.bincount(torch.tensor(drawn(2_000, temperature=100.0)), minlength=5) / 2_000
    assert float((hot - 0.2).abs().max()) < 0.04


def test_picking_leaves_the_logits_as_they_are() -> None:
    logits = LOGITS.clone()
    Sampler(SamplingParams(temperature=1.0, top_k=1, top_p=0.5, seed=0)).pick(logits)
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
        ({"top_k": -1}, "top_k is -1: it must be 0 .* or more"),
    ],
)
def test_bad_parameters_are_refused_with_value_and_limit(
    params: dict[str, float], message: str
) -> None:
    with pytest.raises(InvalidRequest, match=message):
        SamplingParams(**params)
