"""Puts alignment, guard and selection together into the reuse plan. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from semshare.config import ReusePolicy
from semshare.planning.deviation import shrinking_schedule
from semshare.planning.selection import SelectionInputs, history_of, run_heads, select
from semshare.types import (
    STORED,
    Alignment,
    DeviationSchedule,
    FreshReason,
    Ids,
    Mask,
    ReusePlan,
    Scores,
    Slots,
    TokenSource,
)


@dataclass(frozen=True, slots=True)
class DonorTokens:
    """What a plan needs to know of one donor, by its position."""

    slots: Slots  # [donor tokens]
    history: Scores  # [donor tokens], or empty


def make_plan(
    ids: Ids,
    alignment: Alignment,
    unsafe: Mask,
    prefix_slots: Slots,
    donors: Sequence[DonorTokens],
    policy: ReusePolicy,
    *,
    n_layers: int,
    query_attention: Scores | None = None,
) -> ReusePlan:
    """Decide the source of every token.

    Args:
        ids: `[n]` of the target.
        alignment: what could stand for each token.
        unsafe: `[n]` tokens the guard wants computed.
        prefix_slots: slots of the exact prefix.
        donors: for each of `alignment.donors`.
        policy: the request's.
        n_layers: of the model, for the deviation schedule.
        query_attention: `[n]`, for the selection policy of that name.

    """
    n = len(ids)
    prefix = alignment.source == TokenSource.PREFIX
    reasons = np.zeros(n, dtype=np.uint8)
    reasons[alignment.source == TokenSource.FRESH] = FreshReason.UNMATCHED
    if policy.fact_guard:
        reasons[unsafe & (reasons == 0)] = FreshReason.FACT
    reasons[run_heads(alignment, policy.head_tokens) & (reasons == 0)] = FreshReason.HEAD
    edge = np.zeros(n, dtype=np.bool_)
    edge[: policy.sink_tokens] = True
    edge[n - min(n, policy.tail_tokens) :] = True
    # A donor's first tokens are its attention sinks: in the middle of a prompt they draw attention.
    edge |= (alignment.source > TokenSource.PREFIX) & (alignment.position < policy.sink_tokens)
    reasons[edge & ~prefix & (reasons == 0)] = FreshReason.EDGE
    reasons[n - 1] = FreshReason.EDGE  # its logits are the answer's first token

    eligible = (reasons == 0) & ~prefix
    if policy.only_unmatched:
        eligible &= alignment.source == TokenSource.FUZZY
    budget = int(np.ceil(policy.recompute * np.count_nonzero(eligible)))
    deviation = None
    if policy.selection == "deviation" and budget:
        candidates = np.flatnonzero(eligible).astype(np.int32)
        deviation = shrinking_schedule(candidates, n_layers, budget)
    elif budget:
        histories = [donor.history for donor in donors]
        inputs = SelectionInputs(
            alignment, history_of(alignment, histories), query_attention, policy.seed
        )
        reasons[select(policy.selection, inputs, eligible, budget)] = FreshReason.SELECTED

    reused = reasons == FreshReason.REUSED
    slots = np.full(n, -1, dtype=np.int64)
    slots[: len(prefix_slots)] = prefix_slots
    for index, donor in enumerate(donors):
        mine = np.flatnonzero((alignment.donor == index) & ~prefix & reused)
        slots[mine] = donor.slots[alignment.position[mine]]
    slots[~reused] = -1
    return ReusePlan(
        ids=ids,
        source=np.where(reused, alignment.source, TokenSource.FRESH).astype(np.uint8),
        donor=np.where(reused, alignment.donor, -1).astype(np.int32),
        position=np.where(reused, alignment.position, -1).astype(np.int32),
        slots=slots,
        donors=alignment.donors,
        reasons=reasons,
        deviation=deviation,
    )


def resident(plan: ReusePlan) -> ReusePlan:
    """The plan with everything computed whose KV is not in the pool."""
    stored = plan.slots == STORED
    if not stored.any():
        return plan
    deviation = plan.deviation
    if deviation is not None:
        candidates = deviation.candidates[~stored[deviation.candidates]]
        keep = tuple(min(kept, len(candidates)) for kept in deviation.keep)
        deviation = DeviationSchedule(keep, candidates) if len(candidates) else None
    return replace(
        plan,
        source=np.where(stored, TokenSource.FRESH, plan.source).astype(np.uint8),
        donor=np.where(stored, -1, plan.donor).astype(np.int32),
        position=np.where(stored, -1, plan.position).astype(np.int32),
        slots=np.where(stored, -1, plan.slots),
        reasons=np.where(stored, FreshReason.STORED, plan.reasons).astype(np.uint8),
        deviation=deviation,
    )


def full_plan(ids: Ids) -> ReusePlan:
    """Everything is computed."""
    n = len(ids)
    return ReusePlan(
        ids=ids,
        source=np.zeros(n, dtype=np.uint8),
        donor=np.full(n, -1, dtype=np.int32),
        position=np.full(n, -1, dtype=np.int32),
        slots=np.full(n, -1, dtype=np.int64),
        donors=(),
        reasons=np.full(n, FreshReason.UNMATCHED, dtype=np.uint8),
    )


def shared_plan(ids: Ids) -> ReusePlan:
    """Everything is another request's, which computed the same prompt exactly."""
    plan = full_plan(ids)
    return replace(
        plan,
        source=np.full(len(ids), TokenSource.PREFIX, dtype=np.uint8),
        position=np.arange(len(ids), dtype=np.int32),
        reasons=np.zeros(len(ids), dtype=np.uint8),
    )
