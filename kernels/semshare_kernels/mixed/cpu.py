"""Mixed attention on the CPU: blocks of torch's fused attention, merged by log-sum-exp.

Long runs of consecutive slots are read where they lie, with queries turned to where the keys were
stored. All others are gathered and turned, a cache-sized part at a time. What each query may see
depends on positions alone, so the blocks are cut once for all layers: blocks nobody sees don't
exist, blocks everybody sees carry no mask.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from semshare_kernels.fused import additive_mask, fused
from semshare_kernels.key_table import Index, KeyTable
from semshare_kernels.merge.cpu import merge_into
from semshare_kernels.mixed.plan import Block, MixedPlan, Segment
from semshare_kernels.native import move_rows
from semshare_kernels.rotary.rotation import Rotation, rotated
from semshare_kernels.shape import AttentionShape

# Query rows a masked block takes. Smaller blocks skip more of the unseen triangle, larger ones
# call the fused kernel less often; 64 to 256 measured alike at 500 × 5,000 on two cores.
BLOCK_ROWS = 128
# So few last rows that see all of a segment join the masked block before them.
FEW_ROWS = 16
# Keys that the later half of the rows all see are a block without a mask, if there are so many:
# the fused kernel is faster without one, and faster still with more rows.
MIN_UNMASKED_KEYS = 128
# Shorter runs are gathered: each run read in place costs calls of the fused kernel of its own.
MIN_VIEW_KEYS = 128
# Keys gathered at once. The copy stays in the cache and is never as large as a long sequence.
SCRATCH_KEYS = 1024


def plan_for_cpu(
    q_pos: Index, keys: KeyTable, window: int | None, shape: AttentionShape
) -> MixedPlan:
    """A `MixedPlan` with blocks; arguments as those of `plan_mixed`."""
    runs = _runs(keys)
    # Turning all queries for a run costs more than turning its keys where the queries are many.
    shortest_turned = max(MIN_VIEW_KEYS, len(q_pos) * shape.group // 2)
    views = [
        (start, stop)
        for start, stop in runs
        if stop - start >= (shortest_turned if keys.shifts[start] else MIN_VIEW_KEYS)
    ]
    if len(runs) - len(views) <= 1:
        views = runs  # gathering one run saves no call
    in_view = np.zeros(len(keys), dtype=np.bool_)
    for start, stop in views:
        in_view[start:stop] = True
    gathered = np.flatnonzero(~in_view)
    gathered = gathered[np.argsort(keys.positions[gathered], kind="stable")]
    order = np.concatenate([*(np.arange(*run) for run in views), gathered]).astype(np.int64)
    table = keys.take(order)
    shifts = np.unique([0, *(keys.shifts[start] for start, _ in views)]).astype(np.int64)
    lengths = [stop - start for start, stop in views]
    first_turned = sum(lengths)
    bounds = np.concatenate(([0], np.cumsum(lengths))).astype(np.int64).tolist()
    segments = [
        Segment(
            start,
            stop,
            query=int(np.searchsorted(shifts, table.shifts[start])),
            slot=int(table.slots[start]),
        )
        for start, stop in pairwise(bounds)
    ]
    upright = int(np.searchsorted(shifts, 0))
    segments += [
        Segment(start, min(start + SCRATCH_KEYS, len(table)), query=upright, slot=None)
        for start in range(first_turned, len(table), SCRATCH_KEYS)
    ]
    seen = np.zeros(len(q_pos), dtype=np.bool_)
    with_blocks = []
    for segment in segments:
        blocks = []
        positions = table.positions[segment.start : segment.stop]
        for block in _blocks(q_pos, positions, window, shape.dtype):
            rows = slice(block.query_start, block.query_stop)
            blocks.append(replace(block, merges=bool(seen[rows].any())))
            seen[rows] = True
        if blocks:
            with_blocks.append(replace(segment, blocks=tuple(blocks)))
    return MixedPlan(q_pos, window, table, order, shifts, first_turned, tuple(with_blocks))


def _runs(keys: KeyTable) -> list[tuple[int, int]]:
    """Maximal [start, stop) of consecutive slots, one shift and ascending positions."""
    breaks = (
        (np.diff(keys.slots) != 1) | (np.diff(keys.shifts) != 0) | (np.diff(keys.positions) <= 0)
    )
    bounds = [0, *(np.flatnonzero(breaks) + 1).tolist(), len(keys)]
    return [(start, stop) for start, stop in pairwise(bounds) if start < stop]


def _blocks(q_pos: Index, kv_pos: Index, window: int | None, dtype: torch.dtype) -> list[Block]:
    n_q, n_k = len(q_pos), len(kv_pos)
    first = int(np.searchsorted(q_pos, kv_pos[0]))  # queries before it see none of the keys
    if first == n_q:
        return []
    if window is not None and q_pos[-1] - kv_pos[0] < window:
        window = None  # every key is within every query's window
    if window is None and n_q - first == n_k and np.array_equal(q_pos[first:], kv_pos):
        return [Block(first, n_q, 0, n_k, causal=n_k > 1, mask=None)]

    def masked(start: int, stop: int, low: int) -> list[Block]:
        if window is not None:
            low = int(np.searchsorted(kv_pos, q_pos[start] - window, side="right"))
        high = int(np.searchsorted(kv_pos, q_pos[stop - 1], side="right"))
        if low >= high:
            return []
        hidden = kv_pos[None, low:high] > q_pos[start:stop, None]
        if window is not None:
            hidden |= kv_pos[None, low:high] <= q_pos[start:stop, None] - window
        return [Block(start, stop, low, high, causal=False, mask=additive_mask(hidden, dtype))]

    def triangle(start: int, stop: int, low: int) -> list[Block]:
        """Blocks for rows [start, stop) and the keys from `low` on that any of them sees."""
        if stop - start <= BLOCK_ROWS:
            return masked(start, stop, low)
        middle = (start + stop) // 2
        blocks = triangle(start, middle, low)
        common = int(np.searchsorted(kv_pos, q_pos[middle], side="right"))
        if window is None and common - low >= MIN_UNMASKED_KEYS:
            blocks.append(Block(middle, stop, low, common, causal=False, mask=None))
            low = common
        return blocks + triangle(middle, stop, low)

    # Queries from `complete` on see every key of the segment, unless a window hides some.
    complete = n_q if window is not None else int(np.searchsorted(q_pos, kv_pos[-1]))
    if first < complete and n_q - complete < FEW_ROWS:
        complete = n_q
    blocks = triangle(first, complete, 0) if first < complete else []
    if complete < n_q:
        blocks.append(Block(complete, n_q, 0, n_k, causal=False, mask=None))
    return blocks


def mixed_attention(
    plan: MixedPlan,
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    scale: float,
    turn: Rotation | None,
) -> tuple[Tensor, Tensor]:
    """The CPU path of `mixed_attention`."""
    n_q, heads, d = queries.shape[1:]
    out: Tensor | None = None
    for segment in plan.segments:
        k, v = segment_keys(plan, segment, keys, turn), segment_values(plan, segment, values)
        query = queries[segment.query]
        for block in segment.blocks:
            rows = slice(block.query_start, block.query_stop)
            columns = slice(block.key_start, block.key_stop)
            part, part_lse = fused(
                query[rows], k[columns], v[columns], scale, mask=block.mask, causal=block.causal
            )
            if out is None:
                if len(part) == n_q and len(plan.segments) == len(segment.blocks) == 1:
                    return part, part_lse  # one block holds everything: nothing to merge
                out = queries.new_zeros((n_q, heads, d), dtype=torch.float32)
                lse = out.new_full((n_q, heads), -torch.inf)
            if block.merges:
                merge_into(out[rows], lse[rows], part, part_lse)
            else:
                out[rows], lse[rows] = part, part_lse
    if out is None:
        raise ValueError("no query sees any key: every query must see at least its own")
    return out.to(queries.dtype), lse


def segment_keys(plan: MixedPlan, segment: Segment, keys: Tensor, turn: Rotation | None) -> Tensor:
    """Keys `[n, kv_heads, d]` of a segment: a view of the pool, or gathered and turned."""
    if segment.slot is not None:
        return keys[segment.slot : segment.slot + len(segment)]
    slots = torch.from_numpy(plan.keys.slots[segment.start : segment.stop]).to(keys.device)
    if turn is None or segment.start < plan.first_turned:
        return gathered_keys(keys, slots, None)
    part = slice(segment.start - plan.first_turned, segment.stop - plan.first_turned)
    return gathered_keys(keys, slots, turn.part(part))


def gathered_keys(keys: Tensor, slots: Tensor, rotation: Rotation | None) -> Tensor:
    """Keys `[n, kv_heads, d]` at `slots` `[n]`, turned."""
    if not keys.is_cuda and rotation is not None:
        gathered = keys.new_empty((len(slots), *keys.shape[1:]))
        if move_rows(keys, slots, gathered, torch.arange(len(slots)), rotation):
            return gathered
    gathered = keys.index_select(0, slots)
    return gathered if rotation is None else rotated(gathered, rotation)


def segment_values(plan: MixedPlan, segment: Segment, values: Tensor) -> Tensor:
    """Values `[n, kv_heads, d]` of a segment, in place or gathered."""
    if segment.slot is not None:
        return values[segment.slot : segment.slot + len(segment)]
    slots = torch.from_numpy(plan.keys.slots[segment.start : segment.stop]).to(values.device)
    return values.index_select(0, slots)
