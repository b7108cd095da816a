"""Executes a reuse plan: a sequence with its slots, reused KV loaded, fresh rows computed."""

from __future__ import annotations

import torch

from semshare.engine.executor import AttentionRecord, Executor
from semshare.engine.served import PrefillRun, Stopwatch
from semshare.kv.sequence import KVSequence, lay_out
from semshare.types import ReusePlan


def prefill(
    executor: Executor,
    plan: ReusePlan,
    watch: Stopwatch,
    *,
    room: int,
    record: AttentionRecord | None = None,
) -> PrefillRun:
    """Prefill a prompt by its plan.

    Args:
        executor: the model and its pool.
        plan: what to reuse and what to compute.
        watch: counts the stages `load` and `prefill`.
        room: slots for the answer.
        record: adds the attention that the fresh rows pay.

    Raises:
        PoolExhausted: no slots, and nothing left to evict.
        ArithmeticError: reused KV gave logits that are not finite.

    Whatever is raised, no page stays behind.

    """
    pool = executor.pool
    with watch.measure("load"):
        layout = lay_out(plan)
        reused = pool.pages_of(plan.slots[plan.slots >= 0])
        sequence = KVSequence(pool, layout, reused, room=room)
    try:
        with watch.measure("load"):
            executor.load(sequence, layout)
        with watch.measure("prefill"):
            rows = plan.rows_to_run
            result = executor.forward(
                sequence, plan.ids[rows], rows, deviation=plan.deviation, record=record
            )
            if plan.source.any() and not torch.isfinite(result.logits).all():
                raise ArithmeticError("reused KV gave logits that are not finite")
    except BaseException:
        sequence.release()
        raise
    return PrefillRun(plan, sequence, result.logits, result.rows_computed)
