"""What each layer keeps: budgets by hand and as a whole, and the tokens within them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from properties import examples

from semshare import InvalidRequest
from semshare.planning.retention import layer_budgets, retained

FOURFOLD = math.log(4)  # the last layer keeps a quarter of what the first does


def test_budgets_by_hand() -> None:
    # Three layers fall as 1, 1/2, 1/4. The 24 tokens that are half of 48 would be 13.7, 6.9, 3.4.
    assert layer_budgets(16, 3, 0.5, at_least=0, decay=FOURFOLD) == (14, 7, 3)
    # Of 36 tokens the first layer would keep 20.6: it keeps all 16, the others 2/3 and 1/3 of 20.
    assert layer_budgets(16, 3, 0.75, at_least=0, decay=FOURFOLD) == (16, 13, 7)
    assert layer_budgets(16, 3, 0.5, at_least=5, decay=FOURFOLD) == (13, 6, 5)


def test_layers_keep_alike_unless_told_otherwise_and_the_shallow_ones_what_is_left_over() -> None:
    assert layer_budgets(16, 3, 0.5, at_least=4) == (8, 8, 8)
    assert layer_budgets(10, 3, 17 / 30, at_least=4) == (6, 6, 5)


def test_a_share_of_one_keeps_everything_and_a_small_one_what_must_be_kept() -> None:
    assert layer_budgets(100, 4, 1.0, at_least=8) == (100,) * 4
    assert layer_budgets(100, 4, 0.01, at_least=8) == (8,) * 4
    assert layer_budgets(5, 4, 0.5, at_least=8) == (5,) * 4
    assert layer_budgets(10, 1, 0.4, at_least=1) == (4,)


@pytest.mark.parametrize("share", [0.0, -0.5, 1.01, math.nan])
def test_a_share_out_of_range_is_refused(share: float) -> None:
    with pytest.raises(InvalidRequest, match="above 0, and 1 keeps everything"):
        layer_budgets(10, 2, share, at_least=0)


@given(
    n_tokens=st.integers(1, 300),
    n_layers=st.integers(1, 40),
    shares=st.tuples(st.floats(0.01, 1.0), st.floats(0.01, 1.0)),
    at_least=st.integers(0, 40),
    decay=st.floats(0.0, 4.0),
)
@examples(200)
def test_budgets_add_up_shrink_with_depth_and_grow_with_the_share(
    n_tokens: int, n_layers: int, shares: tuple[float, float], at_least: int, decay: float
) -> None:
    lower, higher = (
        layer_budgets(n_tokens, n_layers, share, at_least=at_least, decay=decay)
        for share in sorted(shares)
    )
    floor = min(at_least, n_tokens)
    for share, budgets in zip(sorted(shares), (lower, higher), strict=True):
        assert sum(budgets) == max(round(share * n_tokens * n_layers), floor * n_layers)
        assert all(floor <= budget <= n_tokens for budget in budgets)
        assert sorted(budgets, reverse=True) == list(budgets)
    assert all(a <= b for a, b in zip(lower, higher, strict=True))


@given(n_tokens=st.integers(50, 2000), n_layers=st.integers(2, 40), share=st.floats(0.05, 0.95))
@examples(100)
def test_budgets_are_the_clipped_exponential_to_within_a_token(
    n_tokens: int, n_layers: int, share: float
) -> None:
    budgets = layer_budgets(n_tokens, n_layers, share, at_least=0, decay=FOURFOLD)
    falling = np.exp(-FOURFOLD * np.arange(n_layers) / (n_layers - 1))
    low, high = 0.0, 4.0  # r_0, by bisection: at 4 the last layer keeps everything, too
    for _ in range(60):
        middle = (low + high) / 2
        too_much = np.minimum(1, middle * falling).mean() > share
        low, high = (low, middle) if too_much else (middle, high)
    np.testing.assert_allclose(budgets, n_tokens * np.minimum(1, low * falling), atol=1.0)


def test_the_highest_scores_stay_beside_the_first_and_the_last() -> None:
    scores = np.array(
        [
            [0.0, 0.9, 0.1, 0.5, 0.5, 0.7, 0.0, 0.0],
            [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 9.0, 9.0],
        ],
        np.float32,
    )
    given_scores = scores.copy()
    first, second = retained(scores, (5, 4), sinks=1, recent=2)
    assert first.tolist() == [0, 1, 5, 6, 7]
    assert second.tolist() == [0, 5, 6, 7]
    assert first.dtype == np.int64
    np.testing.assert_array_equal(scores, given_scores)
    # Of 3 and 4, alike in the first layer, the earlier one.
    assert retained(scores, (6, 3), sinks=1, recent=2)[0].tolist() == [0, 1, 3, 5, 6, 7]


@given(
    n=st.integers(1, 40),
    sinks=st.integers(0, 6),
    recent=st.integers(0, 10),
    share=st.floats(0.05, 1.0),
    seed=st.integers(0, 99),
)
@examples(150)
def test_every_layer_keeps_its_budget_and_nothing_better_is_left_out(
    n: int, sinks: int, recent: int, share: float, seed: int
) -> None:
    scores = np.random.default_rng(seed).random((3, n), dtype=np.float32)
    budgets = layer_budgets(n, 3, share, at_least=sinks + recent)
    kept = retained(scores, budgets, sinks=sinks, recent=recent)
    always = {*range(min(sinks, n)), *range(max(n - recent, 0), n)}
    for layer, positions in enumerate(kept):
        chosen = set(positions.tolist())
        assert positions.tolist() == sorted(chosen)
        assert len(chosen) == budgets[layer]
        assert always <= chosen
        left_out = [scores[layer, p] for p in range(n) if p not in chosen]
        assert max(left_out, default=0.0) <= min(
            (scores[layer, p] for p in chosen - always), default=1.0
        )
