"""A cheap first pass of the question over the donors' KV, for the selection that asks for it."""

from __future__ import annotations

from collections.abc import Sequence

from semshare.engine.executor import Executor
from semshare.engine.prefill import Prefill
from semshare.engine.rows import AttentionRecord
from semshare.engine.stopwatch import Stopwatch
from semshare.kv.arrival import Arrival
from semshare.planning.planner import Draft, Planner
from semshare.types import Scores


def query_attention(
    executor: Executor,
    planner: Planner,
    draft: Draft,
    watch: Stopwatch,
    arrivals: Sequence[Arrival] = (),
) -> tuple[Scores | None, int]:
    """The attention that the question pays to each token of the prompt.

    Args:
        executor, planner: of the session.
        draft: of the prompt.
        watch: counts the stages.
        arrivals: KV on its way when the draft was made.

    Returns:
        The attention `[n]`, None where the policy does not want it or there is nothing to choose,
        and the (row, layer) pairs that ran.

    """
    with watch.measure("plan"):
        plan = planner.question_plan(draft)
    if plan is None:
        return None, 0
    record = AttentionRecord(first_position=len(draft.ids) - draft.policy.tail_tokens)
    look = Prefill(executor, plan, watch, room=0, record=record, arrivals=arrivals)
    look.run(watch)
    look.sequence.release()
    return record.upto(len(draft.ids)), look.rows_computed
