"""Cuts a computed prompt to the KV that its layers retain; see `semshare.planning.retention`."""

from __future__ import annotations

import numpy as np
import torch

from semshare.engine.executor import Executor
from semshare.engine.rows import AttentionRecord, rotations
from semshare.kv.retained import RetainedPrompt, move, pack, slots_wanted
from semshare.kv.sequence import KVSequence
from semshare.planning.retention import LOOKING_ROWS, RECENT, Retention, retained
from semshare.types import ReusePlan, Scores


def looking_record(plan: ReusePlan) -> AttentionRecord:
    """Records the attention of the last rows that a prefill of `plan` computes."""
    rows = plan.rows_to_run
    return AttentionRecord(first_position=int(rows[-LOOKING_ROWS:][0]))


def retain(
    executor: Executor,
    sequence: KVSequence,
    attention: AttentionRecord,
    retention: Retention,
    *,
    room: int,
) -> KVSequence | None:
    """Move what each layer keeps of a prompt into cells of pages of their own.

    A token's score in a layer is the attention that it got × the L2 norm of its values: what it
    has added to the last rows of the prompt (VATP, arXiv 2406.12335, does so with the L1 norm).

    Args:
        executor: the model and its pool.
        sequence: the prompt's KV and no more; released where it was cut.
        attention: of the prompt's last rows, in every layer.
        retention: how much is kept.
        room: most tokens of an answer that follows.

    Returns:
        The sequence to go on from, or None if all of the prompt is kept.

    Raises:
        PoolExhausted: no slots for what is kept, and nothing left to evict; `sequence` is as it
            was, but for reserved slots that no token lies in.

    """
    pool, n_layers, n = executor.pool, executor.adapter.n_layers, sequence.length
    budgets = retention.budgets(n, n_layers)
    if sum(budgets) == n * n_layers:
        return None
    table = sequence.key_table()
    scores = attention.mass * _value_norms(executor, sequence)
    kept = retained(scores, budgets, sinks=retention.sinks, recent=RECENT)
    sequence.give_back_spare()
    pages = pool.allocate(slots_wanted(budgets))
    try:
        cells = pack(budgets, pool.slots_of(pages), n_slots=pool.n_slots)
        turns = [
            rotations(executor.adapter, table.shifts[positions]).get(kind)
            for positions, kind in zip(kept, executor.adapter.rope_kinds, strict=True)
        ]
        move(pool, table.slots, kept, cells, turns)
        cut = KVSequence.after(pool, RetainedPrompt.of(n, pages, kept, cells), room=room)
    finally:
        pool.release(pages)  # the sequence holds them, if it was made
    sequence.release()
    return cut


def _value_norms(executor: Executor, sequence: KVSequence) -> Scores:
    """`[layers, n]` Euclidean norms of each token's values, over all heads."""
    slots = torch.from_numpy(sequence.key_table().slots).to(executor.adapter.device)
    norms = [values[slots].float().flatten(1).norm(dim=1) for values in executor.pool.values]
    return np.stack([norm.cpu().numpy() for norm in norms])
