"""Plans by hand: edges, guard, budget, slots."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from properties import examples

from semshare import FreshReason, ReusePlan, ReusePolicy, TokenSource
from semshare.planning.plan import DonorTokens, full_plan, make_plan
from semshare.types import Alignment, DeviationSchedule

FRESH, PREFIX, SPAN, FUZZY = TokenSource
REUSED, UNMATCHED, FACT, EDGE, SELECTED, HEAD, STORED = FreshReason

LAYERS = 4


def policy(**changes: object) -> ReusePolicy:
    plain = {
        "sink_tokens": 0,
        "tail_tokens": 1,
        "head_tokens": 0,
        "selection": "none",
        "recompute": 0.0,
    }
    return ReusePolicy(**(plain | changes))


def plan_of(
    source: Sequence[int],
    used: ReusePolicy,
    *,
    unsafe: Sequence[int] = (),
    history: Sequence[float] = (),
    query: Sequence[float] | None = None,
) -> ReusePlan:
    """A plan where token i stands on token i + 5 of one donor, whose slots start at 1,000."""
    n = len(source)
    kinds = np.array(source, np.uint8)
    prefix = int(np.count_nonzero(kinds == PREFIX))
    position = np.where(kinds == FRESH, -1, np.arange(n) + 5)
    position[:prefix] = np.arange(prefix)
    mask = np.zeros(n, np.bool_)
    mask[list(unsafe)] = True
    return make_plan(
        np.arange(n, dtype=np.int32),
        Alignment(
            kinds,
            np.where(kinds == FRESH, -1, 0).astype(np.int32),
            position.astype(np.int32),
            np.ones(n, np.bool_),
            ("d",),
        ),
        mask,
        np.arange(50, 50 + prefix, dtype=np.int64),
        [DonorTokens(np.arange(1000, 1000 + n + 5), np.array(history, np.float32))],
        used,
        n_layers=LAYERS,
        query_attention=None if query is None else np.array(query, np.float32),
    )


def test_sources_slots_and_positions_by_hand() -> None:
    plan = plan_of([PREFIX, PREFIX, FRESH, SPAN, FUZZY, SPAN], policy())
    assert plan.source.tolist() == [PREFIX, PREFIX, FRESH, SPAN, FUZZY, FRESH]
    assert plan.slots.tolist() == [50, 51, -1, 1008, 1009, -1]
    assert plan.position.tolist() == [0, 1, -1, 8, 9, -1]
    assert plan.donor.tolist() == [0, 0, -1, 0, 0, -1]
    assert plan.reasons.tolist() == [REUSED, REUSED, UNMATCHED, REUSED, REUSED, EDGE]
    assert plan.fresh_rows.tolist() == plan.rows_to_run.tolist() == [2, 5]
    assert plan.counts == {"fresh": 2, "prefix": 2, "span": 1, "fuzzy": 1}
    assert not plan.is_exact


def test_first_and_last_tokens_are_exact_or_fresh() -> None:
    plan = plan_of([SPAN] * 10, policy(sink_tokens=2, tail_tokens=3))
    assert plan.fresh_rows.tolist() == [0, 1, 7, 8, 9]
    assert plan.reasons[plan.fresh_rows].tolist() == [EDGE] * 5
    plan = plan_of([PREFIX] * 8 + [SPAN] * 2, policy(sink_tokens=2, tail_tokens=4))
    assert plan.fresh_rows.tolist() == [8, 9]
    assert plan.is_exact


def test_a_donors_own_first_tokens_are_never_reused_elsewhere() -> None:
    plan = plan_of([FUZZY, FUZZY, SPAN, SPAN, SPAN], policy(sink_tokens=8))
    assert plan.reasons.tolist() == [EDGE] * 5  # they stand on positions 5 … 9 of the donor
    moved = plan_of([SPAN] * 12, policy(sink_tokens=7))
    assert moved.fresh_rows.tolist() == [0, 1, 2, 3, 4, 5, 6, 11]
    prefix = plan_of([PREFIX] * 4 + [FRESH], policy(sink_tokens=7))
    assert prefix.fresh_rows.tolist() == [4]


def test_the_last_token_is_always_fresh() -> None:
    for source in ([FRESH], [SPAN], [SPAN, SPAN], [PREFIX, SPAN]):
        plan = plan_of(source, policy())
        assert plan.reasons[-1] == EDGE
        assert plan.slots[-1] == plan.position[-1] == plan.donor[-1] == -1


def test_a_prompt_shorter_than_its_edges_is_fresh() -> None:
    assert plan_of([SPAN] * 3, policy(tail_tokens=24)).fresh_rows.tolist() == [0, 1, 2]
    assert plan_of([SPAN] * 3, policy(sink_tokens=24)).fresh_rows.tolist() == [0, 1, 2]


def test_the_guards_tokens_are_fresh_unless_it_is_off() -> None:
    source = [SPAN, FUZZY, SPAN, FRESH, SPAN, SPAN]
    plan = plan_of(source, policy(), unsafe=[1, 3, 4])
    assert plan.reasons.tolist() == [REUSED, FACT, REUSED, UNMATCHED, FACT, EDGE]
    plan = plan_of(source, policy(fact_guard=False), unsafe=[1, 3, 4])
    assert plan.fresh_rows.tolist() == [3, 5]


def test_heads_of_long_runs_are_fresh() -> None:
    source = [FRESH, *[SPAN] * 64, FRESH, *[SPAN] * 31, FRESH]
    plan = plan_of(source, policy(head_tokens=32), unsafe=[2])
    assert np.flatnonzero(plan.reasons == HEAD).tolist() == [1, 3, 4]  # a sixteenth of 64
    assert plan.reasons[2] == FACT
    plan = plan_of(source, policy(head_tokens=2))
    assert np.flatnonzero(plan.reasons == HEAD).tolist() == [1, 2]
    assert not np.any(plan_of(source, policy(head_tokens=0)).reasons == HEAD)


def test_the_budget_is_a_share_of_what_may_be_chosen_rounded_up() -> None:
    source = [SPAN, FUZZY, FUZZY, FUZZY, SPAN, FUZZY, FUZZY, FRESH, FUZZY, SPAN]
    spent = policy(selection="tail", recompute=0.25)
    plan = plan_of(source, spent, unsafe=[8])
    assert np.flatnonzero(plan.reasons == SELECTED).tolist() == [5, 6]  # ⌈0.25 × 5⌉ of 1 2 3 5 6
    everything = policy(selection="tail", recompute=0.25, only_unmatched=False)
    plan = plan_of(source, everything, unsafe=[8])
    assert np.flatnonzero(plan.reasons == SELECTED).tolist() == [5, 6]  # ⌈0.25 × 7⌉ of 0 … 6
    plan = plan_of(source, policy(selection="tail", recompute=0.5, only_unmatched=False))
    assert np.flatnonzero(plan.reasons == SELECTED).tolist() == [4, 5, 6, 8]  # 8 may be chosen


def test_all_of_the_budget_leaves_nothing_fuzzy_but_prefixes_are_never_chosen() -> None:
    source = [PREFIX, PREFIX, FUZZY, SPAN, FUZZY, SPAN]
    plan = plan_of(source, policy(selection="random", recompute=1.0))
    assert plan.source.tolist() == [PREFIX, PREFIX, FRESH, SPAN, FRESH, FRESH]
    plan = plan_of(source, policy(selection="random", recompute=1.0, only_unmatched=False))
    assert plan.source.tolist() == [PREFIX, PREFIX, FRESH, FRESH, FRESH, FRESH]
    assert plan.is_exact


def test_history_and_query_attention_reach_their_policies() -> None:
    source = [FUZZY] * 5
    history = [0] * 5 + [1, 9, 2, 8, 3]  # token i stands on i + 5
    plan = plan_of(source, policy(selection="donor_history", recompute=0.5), history=history)
    assert np.flatnonzero(plan.reasons == SELECTED).tolist() == [1, 3]
    plan = plan_of(
        source, policy(selection="query_attention", recompute=0.5), query=[4, 1, 3, 2, 9]
    )
    assert np.flatnonzero(plan.reasons == SELECTED).tolist() == [0, 2]


def test_deviation_leaves_the_choice_to_the_layers() -> None:
    source = [FUZZY] * 8 + [SPAN, SPAN]
    plan = plan_of(source, policy(selection="deviation", recompute=0.25), unsafe=[0])
    assert plan.deviation is not None
    assert plan.deviation.candidates.tolist() == [1, 2, 3, 4, 5, 6, 7]
    assert plan.deviation.keep == (7, 3, 2, 1)  # budget ⌈0.25 × 7⌉ = 2: 3, 2, 1
    assert plan.fresh_rows.tolist() == [0, 9]
    assert plan.rows_to_run.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 9]
    assert np.all(plan.slots[1:8] >= 0)  # still reused unless the layers say otherwise
    assert not plan.is_exact


def test_deviation_without_a_budget_or_candidates_has_no_schedule() -> None:
    assert plan_of([FUZZY] * 4, policy(selection="deviation")).deviation is None
    plan = plan_of([SPAN] * 4, policy(selection="deviation", recompute=0.5))
    assert plan.deviation is None


def test_a_full_plan_computes_everything() -> None:
    plan = full_plan(np.arange(4, dtype=np.int32))
    assert plan.is_exact
    assert plan.rows_to_run.tolist() == [0, 1, 2, 3]
    assert plan.counts == {"fresh": 4, "prefix": 0, "span": 0, "fuzzy": 0}
    assert plan.slots.tolist() == [-1] * 4


@examples(200)
@given(
    prefix=st.integers(0, 6),
    rest=st.lists(st.sampled_from([FRESH, SPAN, FUZZY]), min_size=1, max_size=30),
    unsafe=st.sets(st.integers(0, 30)),
    recompute=st.floats(0, 1),
    selection=st.sampled_from(["none", "tail", "first_k", "random", "donor_history", "deviation"]),
    only_unmatched=st.booleans(),
    edges=st.tuples(st.integers(0, 8), st.integers(1, 8)),
)
def test_every_token_is_fresh_with_a_reason_or_reused_with_a_slot(
    prefix: int,
    rest: list[int],
    unsafe: set[int],
    recompute: float,
    selection: str,
    only_unmatched: bool,
    edges: tuple[int, int],
) -> None:
    n = prefix + len(rest)
    used = policy(
        recompute=recompute,
        selection=selection,
        only_unmatched=only_unmatched,
        sink_tokens=edges[0],
        tail_tokens=edges[1],
    )
    history = np.random.default_rng(n).random(n + 5)
    at_risk = [i for i in unsafe if prefix <= i < n]
    plan = plan_of([PREFIX] * prefix + rest, used, unsafe=at_risk, history=history.tolist())
    fresh = plan.source == FRESH
    np.testing.assert_array_equal(fresh, plan.reasons != REUSED)
    for part in (plan.slots, plan.position, plan.donor):
        np.testing.assert_array_equal(fresh, part == -1)
    assert fresh[-1]
    assert not fresh[:prefix].any()
    assert fresh[at_risk].all()
    edge = np.r_[: min(edges[0], n), max(n - edges[1], 0) : n]
    assert np.all(fresh[edge] | (plan.source[edge] == PREFIX))
    selected = int(np.count_nonzero(plan.reasons == SELECTED))
    assert selected <= np.ceil(recompute * n)
    if plan.deviation is not None:
        candidates = plan.deviation.candidates
        assert np.all(plan.source[candidates] > PREFIX)
        if only_unmatched:
            assert np.all(plan.source[candidates] == FUZZY)


def test_counts_name_every_source() -> None:
    assert list(full_plan(np.arange(2, dtype=np.int32)).counts) == [
        "fresh", "prefix", "span", "fuzzy",
    ]  # fmt: skip


def test_a_missing_query_attention_is_an_error_and_not_a_silent_none() -> None:
    with pytest.raises(AssertionError, match="question's attention"):
        plan_of([FUZZY] * 5, policy(selection="query_attention", recompute=0.5))


def test_the_planned_compute_fraction_counts_rows_in_the_layers_they_leave() -> None:
    plan = plan_of([FRESH] * 3 + [FUZZY] * 6 + [FRESH], policy())
    assert plan.compute_fraction == 0.4
    # 4 fresh rows, and of 6 candidates those that each layer keeps.
    schedule = DeviationSchedule((6, 3, 2, 1), np.arange(3, 9, dtype=np.int32))
    planned = replace(plan, deviation=schedule)
    assert planned.compute_fraction == pytest.approx((4 + (6 + 3 + 2 + 1) / 4) / 10)
