"""Each selection policy by hand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from semshare.config import SELECTION_NAMES
from semshare.planning.selection import (
    HEAD_SHARE,
    HEADED_RUN,
    POLICIES,
    SelectionInputs,
    history_of,
    run_heads,
    select,
)
from semshare.types import Alignment, TokenSource

FRESH, PREFIX, SPAN, FUZZY = TokenSource

N = 10


def inputs(
    *,
    position: Sequence[int] = (0, 1, 2, 7, 8, 9, 10, -1, 20, 21),
    donor: Sequence[int] = (0, 0, 0, 0, 0, 1, 1, -1, 1, 1),
    history: Sequence[float] = (0,) * N,
    query: Sequence[float] | None = None,
    seed: int = 0,
) -> SelectionInputs:
    source = [FRESH if d < 0 else SPAN for d in donor]
    return SelectionInputs(
        alignment=Alignment(
            np.array(source, np.uint8),
            np.array(donor, np.int32),
            np.array(position, np.int32),
            np.ones(N, np.bool_),
            ("d", "e"),
        ),
        donor_history=np.array(history, np.float32),
        query_attention=None if query is None else np.array(query, np.float32),
        seed=seed,
    )


ALL = np.ones(N, np.bool_)


def chosen(name: str, given: SelectionInputs, budget: int, eligible: np.ndarray = ALL) -> list[int]:
    found = select(name, given, eligible, budget)
    assert found.dtype == np.int32
    return found.tolist()


def test_every_name_of_the_policy_has_its_function_but_deviation() -> None:
    assert set(POLICIES) | {"deviation"} == set(SELECTION_NAMES)


def test_none_chooses_nothing() -> None:
    assert chosen("none", inputs(), 5) == []


def test_tail_takes_the_last_eligible_tokens() -> None:
    assert chosen("tail", inputs(), 3) == [7, 8, 9]
    eligible = ALL.copy()
    eligible[[9, 7]] = False
    assert chosen("tail", inputs(), 3, eligible) == [5, 6, 8]


def test_first_k_takes_the_starts_of_all_runs_alike() -> None:
    # Runs: 0-2 | 3-4 (a jump) | 5-6 (another donor) | 7 (fresh) | 8-9
    eligible = ALL.copy()
    eligible[7] = False
    assert chosen("first_k", inputs(), 4, eligible) == [0, 3, 5, 8]
    assert chosen("first_k", inputs(), 8, eligible) == [0, 1, 3, 4, 5, 6, 8, 9]
    assert chosen("first_k", inputs(), 9, eligible) == [0, 1, 2, 3, 4, 5, 6, 8, 9]


def test_query_attention_takes_the_highest() -> None:
    scores = [0.1, 0, 0.9, 0.3, 0, 0.8, 0.2, 5, 0, 0]
    eligible = ALL.copy()
    eligible[7] = False
    assert chosen("query_attention", inputs(query=scores), 3, eligible) == [2, 3, 5]
    with pytest.raises(AssertionError, match="was not given"):
        select("query_attention", inputs(), ALL, 3)


def test_donor_history_takes_the_highest_and_never_what_nobody_looked_at() -> None:
    history = [0, 0.5, 0, 0.25, 0.5, 0, 0, 0, 0, 1]
    assert chosen("donor_history", inputs(history=history), 2) == [1, 9]  # a tie: the first
    assert chosen("donor_history", inputs(history=history), 8) == [1, 3, 4, 9]


def test_donors_without_a_history_spend_the_budget_all_the_same() -> None:
    assert chosen("donor_history", inputs(), 3) == chosen("tail", inputs(), 3) == [7, 8, 9]


def test_random_repeats_with_its_seed_and_fills_the_budget() -> None:
    first = chosen("random", inputs(seed=3), 4)
    assert first == chosen("random", inputs(seed=3), 4)
    assert len(set(first)) == 4
    assert any(first != chosen("random", inputs(seed=seed), 4) for seed in range(4, 8))
    assert chosen("random", inputs(seed=3), 100) == list(range(N))


@pytest.mark.parametrize("name", sorted(POLICIES))
def test_only_eligible_tokens_and_no_more_than_the_budget(name: str) -> None:
    rng = np.random.default_rng(0)
    given = inputs(history=rng.random(N), query=rng.random(N))
    for budget in range(N + 2):
        eligible = rng.random(N) < 0.5
        found = chosen(name, given, budget, eligible)
        assert len(found) == (0 if name == "none" else min(budget, int(eligible.sum())))
        assert found == sorted(set(found))
        assert eligible[found].all()


def test_history_is_mapped_to_the_target_but_not_to_its_prefix() -> None:
    alignment = Alignment(
        source=np.array([PREFIX, SPAN, FUZZY, FRESH, SPAN], np.uint8),
        donor=np.array([0, 0, 0, -1, 1], np.int32),
        position=np.array([0, 1, 3, -1, 2], np.int32),
        in_order=np.ones(5, np.bool_),
        donors=("d", "e"),
    )
    first = np.array([9, 1, 2, 3], np.float32)
    assert history_of(alignment, [first, np.array([4, 5, 6], np.float32)]).tolist() == [
        0,
        1,
        3,
        0,
        6,
    ]
    assert history_of(alignment, [first, np.empty(0, np.float32)]).tolist() == [0, 1, 3, 0, 0]


def heads(runs: Sequence[tuple[TokenSource, int, int, int]], most: int = 100) -> list[int]:
    """Head tokens where runs of (source, tokens, donor, position) follow each other."""
    source = np.concatenate([np.full(n, kind, np.uint8) for kind, n, _, _ in runs])
    donor = np.concatenate([np.full(n, d, np.int32) for _, n, d, _ in runs])
    position = np.concatenate(
        [np.full(n, -1) if kind == FRESH else np.arange(at, at + n) for kind, n, _, at in runs]
    ).astype(np.int32)
    ones = np.ones(len(source), np.float32)
    return np.flatnonzero(
        run_heads(Alignment(source, donor, position, ones, ("d", "e")), most)
    ).tolist()


def test_heads_are_a_share_of_long_runs() -> None:
    long, short = HEADED_RUN, HEADED_RUN - 1
    share = HEADED_RUN // HEAD_SHARE
    assert heads([(SPAN, long, 0, 5)]) == list(range(share))
    assert heads([(SPAN, short, 0, 5)]) == []
    assert heads([(SPAN, 10 * HEAD_SHARE, 0, 5)], most=3) == [0, 1, 2]
    assert heads([(SPAN, 10 * HEAD_SHARE, 0, 5)], most=0) == []
    # Every run has its own: after something fresh, a jump, another donor.
    runs = [(SPAN, long, 0, 5), (FRESH, 2, -1, 0), (SPAN, long, 0, 90), (SPAN, long, 1, 90 + long)]
    starts = [0, long + 2, 2 * long + 2]
    assert heads(runs) == [at + k for at in starts for k in range(share)]


def test_a_run_that_goes_on_from_an_exact_prefix_needs_no_head() -> None:
    n = 4 * HEADED_RUN
    assert heads([(PREFIX, n, 0, 0), (SPAN, n, 0, n)]) == []
    assert heads([(PREFIX, n, 0, 0), (SPAN, n, 1, n)]) == [n + k for k in range(n // HEAD_SHARE)]


def test_fuzzy_tokens_are_no_part_of_a_head() -> None:
    found = heads([(SPAN, 1, 0, 0), (FUZZY, 2, 0, 1), (SPAN, 80, 0, 3)])
    assert found == [0, 3, 4]  # of the five that a run of 83 has
