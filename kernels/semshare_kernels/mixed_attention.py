"""Attention of scattered queries over segments of reused and fresh KV.

A sequence's KV lies in *segments*: runs of pool slots, each with the positions its tokens have in
this sequence. A donor's segment is read where it lies; instead of moving its keys by Δ, the few
queries are rotated by −Δ. What each query may see depends on positions alone, which are the same
in every layer, so `plan_attention` cuts the work into blocks once and `mixed_attention` runs them
in each layer: blocks nobody sees don't exist, blocks everybody sees carry no mask.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# Query rows a masked block takes. Smaller blocks skip more of the unseen triangle, larger ones
# call the fused kernel less often; 64 to 256 measured alike at 500 × 5,000 on two cores.
BLOCK_ROWS = 128
# So few last rows that see all of a segment join the masked block before them.
FEW_ROWS = 16
# Scores held at once where there is no fused kernel: 256 MB of float32.
MAX_SCORES = 1 << 26
# Keys that the later half of the rows all see are a block without a mask, if there are so many:
# the fused kernel is faster without one, and faster still with more rows.
MIN_UNMASKED_KEYS = 128


@dataclass(frozen=True, slots=True)
class AttentionBlock:
    """Queries [query_start, query_stop) over keys [key_start, key_stop) of one segment."""

    segment: int
    query_start: int
    query_stop: int
    key_start: int
    key_stop: int
    causal: bool  # query i sees keys 0 … i of the block, which is square
    mask: Tensor | None  # [queries, keys] additive, in the model's dtype; None: all visible
    merges: bool = False  # an earlier block has some of these rows


@dataclass(frozen=True, slots=True)
class AttentionPlan:
    """The blocks that together cover each (query, visible key) pair once."""

    n_queries: int
    blocks: tuple[AttentionBlock, ...]

    @property
    def is_single_block(self) -> bool:
        """One block holds all queries, so nothing has to be merged."""
        return len(self.blocks) == 1 and (
            self.blocks[0].query_stop - self.blocks[0].query_start == self.n_queries
        )


def plan_attention(
    q_pos: NDArray[np.int64],
    kv_pos: Sequence[NDArray[np.int64]],
    *,
    window: int | None,
    dtype: torch.dtype,
    device: torch.device,
) -> AttentionPlan:
    """Cut attention into blocks, from positions alone.

    Args:
        q_pos: `[n_q]` ascending positions of the queries.
        kv_pos: for each segment `[n_k]` ascending positions of its keys.
        window: sliding window of the layers this plan is for, tokens; None for full attention.
        dtype, device: of the masks.

    Every query must see at least one key, its own, in some segment.

    """
    blocks: list[AttentionBlock] = []
    seen = np.zeros(len(q_pos), dtype=np.bool_)
    for segment, positions in enumerate(kv_pos):
        for block in _segment_blocks(segment, q_pos, positions, window, dtype, device):
            rows = slice(block.query_start, block.query_stop)
            blocks.append(replace(block, merges=bool(seen[rows].any())))
            seen[rows] = True
    return AttentionPlan(n_queries=len(q_pos), blocks=tuple(blocks))


def _segment_blocks(
    segment: int,
    q_pos: NDArray[np.int64],
    kv_pos: NDArray[np.int64],
    window: int | None,
    dtype: torch.dtype,
    device: torch.device,
) -> list[AttentionBlock]:
    n_q, n_k = len(q_pos), len(kv_pos)
    if n_k == 0:
        return []
    first = int(np.searchsorted(q_pos, kv_pos[0]))  # queries before it see none of the keys
    if first == n_q:
        return []
    span = int(q_pos[-1] - kv_pos[0])
    if window is not None and span < window:
        window = None  # every key is within every query's window
    if window is None and n_q - first == n_k and np.array_equal(q_pos[first:], kv_pos):
        return [AttentionBlock(segment, first, n_q, 0, n_k, causal=n_k > 1, mask=None)]

    def masked(start: int, stop: int, low: int) -> list[AttentionBlock]:
        if window is not None:
            low = int(np.searchsorted(kv_pos, q_pos[start] - window, side="right"))
        high = int(np.searchsorted(kv_pos, q_pos[stop - 1], side="right"))
        if low >= high:
            return []
        hidden = kv_pos[None, low:high] > q_pos[start:stop, None]
        if window is not None:
            hidden |= kv_pos[None, low:high] <= q_pos[start:stop, None] - window
        mask = None
        if hidden.any():
            # The lowest finite number instead of −inf: a row that sees nothing in this block
            # then gets a weight of zero in the merge, where −inf would make it NaN.
            mask = torch.zeros(hidden.shape, dtype=dtype, device=device)
            mask.masked_fill_(torch.from_numpy(hidden).to(device), torch.finfo(dtype).min)
        return [AttentionBlock(segment, start, stop, low, high, causal=False, mask=mask)]

    def triangle(start: int, stop: int, low: int) -> list[AttentionBlock]:
        """Blocks for rows [start, stop) and the keys from `low` on that any of them sees."""
        if stop - start <= BLOCK_ROWS:
            return masked(start, stop, low)
        middle = (start + stop) // 2
        blocks = triangle(start, middle, low)
        common = int(np.searchsorted(kv_pos, q_pos[middle], side="right"))
        if window is None and common - low >= MIN_UNMASKED_KEYS:
            blocks.append(
                AttentionBlock(segment, middle, stop, low, common, causal=False, mask=None)
            )
            low = common
        return blocks + triangle(middle, stop, low)

    # Queries from `complete` on see every key of the segment, unless a window hides some.
    complete = n_q if window is not None else int(np.searchsorted(q_pos, kv_pos[-1]))
    if first < complete and n_q - complete < FEW_ROWS:
        complete = n_q
    blocks = triangle(first, complete, 0) if first < complete else []
    if complete < n_q:
        blocks.append(AttentionBlock(segment, complete, n_q, 0, n_k, causal=False, mask=None))
    return blocks


def mixed_attention(
    plan: AttentionPlan,
    queries: Sequence[Tensor],
    keys: Sequence[Tensor],
    values: Sequence[Tensor],
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Run a plan in one layer.

    Args:
        plan: from `plan_attention` for the same positions.
        queries: for each segment `[n_q, heads, d]`, rotated to where its keys were stored;
            segments with the same shift share one tensor.
        keys, values: for each segment `[n_k, kv_heads, d]`; views into the pool are read in place.
        scale: of the dot products.

    Returns:
        out `[n_q, heads, d]` in the queries' dtype and lse `[n_q, heads]` float32, natural log.
        Equal to `reference.mixed_attention` up to rounding.

    """
    if plan.is_single_block:
        return _run_block(plan.blocks[0], queries, keys, values, scale)
    n_q, heads, d = queries[0].shape
    out = queries[0].new_zeros((n_q, heads, d), dtype=torch.float32)
    lse = out.new_full((n_q, heads), -torch.inf)
    for block in plan.blocks:
        rows = slice(block.query_start, block.query_stop)
        part = _run_block(block, queries, keys, values, scale)
        if block.merges:
            _merge_into(out[rows], lse[rows], *part)
        else:
            out[rows], lse[rows] = part
    return out.to(queries[0].dtype), lse


def _merge_into(out: Tensor, lse: Tensor, part: Tensor, part_lse: Tensor) -> None:
    """`reference.merge_states` in place, in two passes; a row of `part` has seen some key."""
    out.lerp_(part.float(), torch.sigmoid(part_lse - lse)[..., None])
    torch.logaddexp(lse, part_lse, out=lse)


def _run_block(
    block: AttentionBlock,
    queries: Sequence[Tensor],
    keys: Sequence[Tensor],
    values: Sequence[Tensor],
    scale: float,
) -> tuple[Tensor, Tensor]:
    query = queries[block.segment][block.query_start : block.query_stop]
    key = keys[block.segment][block.key_start : block.key_stop]
    value = values[block.segment][block.key_start : block.key_stop]
    if query.device.type == "cpu":
        return _fused_cpu(query, key, value, block, scale)
    return _dense(query, key, value, block, scale)


def _fused_cpu(
    query: Tensor, key: Tensor, value: Tensor, block: AttentionBlock, scale: float
) -> tuple[Tensor, Tensor]:
    """torch's CPU flash attention, the one behind `scaled_dot_product_attention`, with its LSE."""
    n_q, heads, d = query.shape
    kv_heads = key.shape[1]
    if n_q == 1:
        # One query row a head: the heads that share a KV head become rows of one product.
        query = query.view(kv_heads, heads // kv_heads, d)[None]
    else:
        query = query.transpose(0, 1)[None]  # [1, heads, n_q, d]
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query,
        key.transpose(0, 1)[None],
        value.transpose(0, 1)[None],
        0.0,
        block.causal,
        attn_mask=None if block.mask is None else block.mask[None, None],
        scale=scale,
    )
    if n_q == 1:
        return out.reshape(1, heads, d), lse.reshape(1, heads)
    return out[0].transpose(0, 1), lse[0].transpose(0, 1)


def _dense(
    query: Tensor, key: Tensor, value: Tensor, block: AttentionBlock, scale: float
) -> tuple[Tensor, Tensor]:
    """Plain matrix products in float32, for devices without a fused path."""
    n_q, heads, _ = query.shape
    out = torch.empty_like(query)
    lse = query.new_empty((n_q, heads), dtype=torch.float32)
    spread = value.float().transpose(0, 1).repeat_interleave(heads // value.shape[1], dim=0)
    for rows in _row_chunks(0, n_q, heads * len(key)):
        scores = _block_scores(query, key, block, rows, scale)
        total = torch.logsumexp(scores, dim=-1)
        weights = torch.exp(scores - total[..., None])
        out[rows] = (weights @ spread).transpose(0, 1).to(out.dtype)
        lse[rows] = total.transpose(0, 1)
    return out, lse


def _row_chunks(start: int, stop: int, scores_a_row: int) -> Iterator[slice]:
    """Rows [start, stop) in parts whose scores take no more than `MAX_SCORES`."""
    step = max(MAX_SCORES // scores_a_row, 1)
    for first in range(start, stop, step):
        yield slice(first, min(first + step, stop))


def _block_scores(
    query: Tensor, key: Tensor, block: AttentionBlock, rows: slice, scale: float
) -> Tensor:
    """Scaled, masked dot products `[heads, rows, n_k]` float32 of some rows of a block."""
    heads, d = query.shape[1:]
    kv_heads = key.shape[1]
    grouped = query[rows].float().view(-1, kv_heads, heads // kv_heads, d).permute(1, 2, 0, 3)
    keys = key.float().permute(1, 2, 0)[:, None]  # [kv_heads, 1, d, n_k]
    scores = (grouped @ keys).flatten(0, 1) * scale
    if block.causal:
        index = torch.arange(len(key), device=scores.device)
        hidden = index[None] > index[rows, None]
        scores.masked_fill_(hidden, torch.finfo(scores.dtype).min)
    elif block.mask is not None:
        scores += block.mask[rows]
    return scores


def attention_mass(
    plan: AttentionPlan,
    queries: Sequence[Tensor],
    keys: Sequence[Tensor],
    lse: Tensor,
    scale: float,
    *,
    first_query: int = 0,
) -> list[Tensor]:
    """How much attention each key got: probabilities summed over heads and queries.

    Args:
        plan, queries, keys, scale: as `mixed_attention` was run with.
        lse: `[n_q, heads]`, which it returned.
        first_query: queries before this one are not counted.

    Returns:
        For each segment `[n_k]` float32; all together they sum to counted queries × heads.

    """
    mass = [key.new_zeros(key.shape[0], dtype=torch.float32) for key in keys]
    for block in plan.blocks:
        if block.query_stop <= first_query:
            continue
        query = queries[block.segment][block.query_start : block.query_stop]
        key = keys[block.segment][block.key_start : block.key_stop]
        total = mass[block.segment][block.key_start : block.key_stop]
        block_lse = lse[block.query_start : block.query_stop]
        counted = max(first_query - block.query_start, 0)
        for rows in _row_chunks(counted, len(query), query.shape[1] * len(key)):
            scores = _block_scores(query, key, block, rows, scale)
            weights = torch.exp(scores - block_lse[rows].transpose(0, 1)[..., None])
            total += weights.sum(dim=(0, 1))
    return mass
