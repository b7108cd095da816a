"""The Triton kernel behind every attention op: tiles of rows over runs of pool slots.

A *tile* is a few output rows of one KV head's query heads. It walks over its *items*, runs of keys
in the slot table, and keeps an online softmax over all of them (Milakov and Gimelshein, arXiv
1805.02867; FlashAttention-2, arXiv 2307.08691), so that prefill over many segments and decode over
one node are the same loop. What a tile walks over is data (`TileProgram`); the kernel decides
nothing.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def attend_tiles(
    query,  # [n_query_rows, HEADS, D] rotated to where the keys of the items were stored
    query_at,  # [n_query_rows] int64, their positions there
    keys,  # [n_slots, KV_HEADS, D] the pool's
    values,
    slots,  # [n_keys] int64, the slot table
    key_at,  # [n_keys] int64, positions the keys are compared at
    cos,  # [n_keys - first_turned, ROPE_D / 2] float32, of keys that are rotated on load
    sin,
    out,  # [n_out_rows, HEADS, D]
    lse,  # [n_out_rows, HEADS] float32
    tile_row,  # [n_tiles] int64, first output row
    tile_rows,  # [n_tiles] int64, output rows
    tile_items,  # [n_tiles + 1] int64
    item_query,  # [n_items] int64, the query row for the tile's first output row
    item_start,  # [n_items] int64, keys of the slot table
    item_stop,
    item_seen,  # keys before this one are seen by every row of the tile
    first_turned,  # keys of the slot table from here on are rotated on load
    window,  # a row at p sees keys at p − window + 1 … p
    scale,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,  # D rounded up to a power of two
    CHUNK_D: tl.constexpr,  # dimensions whose products are made at a time: registers bound it
    ROPE_D: tl.constexpr,  # dimensions that RoPE turns
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    TURNS: tl.constexpr,  # whether any key is rotated on load
    PRECISION: tl.constexpr,  # of products of float32
):
    """A tile of rows of one KV head's query heads, over all of its items."""
    tile = tl.program_id(0)
    kv_head = tl.program_id(1)
    group: tl.constexpr = HEADS // KV_HEADS
    # The query heads of one KV head are rows of the same products.
    m = tl.arange(0, BLOCK_M)
    row = m // group
    head = kv_head * group + m % group
    live = row < tl.load(tile_rows + tile)
    d = tl.arange(0, BLOCK_D)
    in_d = d < D

    top = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    log2e: tl.constexpr = 1.4426950408889634
    scale_log2 = scale * log2e
    for item in range(tl.load(tile_items + tile), tl.load(tile_items + tile + 1)):
        base = tl.load(item_query + item)
        at = tl.load(query_at + base + row, mask=live, other=-1)
        q_rows = query + ((base + row) * HEADS + head) * D
        if CHUNK_D == BLOCK_D:
            q = tl.load(q_rows[:, None] + d[None, :], mask=live[:, None] & in_d[None, :], other=0.0)
        stop = tl.load(item_stop + item)
        seen = tl.load(item_seen + item)
        for first in range(tl.load(item_start + item), stop, BLOCK_N):
            n = first + tl.arange(0, BLOCK_N)
            valid = n < stop
            slot = tl.load(slots + n, mask=valid, other=0)  # int64: large pools pass 2³¹ elements
            offset = (slot * KV_HEADS + kv_head) * D
            score = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
            for chunk in tl.static_range(0, BLOCK_D, CHUNK_D):
                e = chunk + tl.arange(0, CHUNK_D)
                if CHUNK_D != BLOCK_D:
                    q = tl.load(
                        q_rows[:, None] + e[None, :],
                        mask=live[:, None] & (e < D)[None, :],
                        other=0.0,
                    )
                k = tl.load(
                    keys + offset[:, None] + e[None, :],
                    mask=valid[:, None] & (e < D)[None, :],
                    other=0.0,
                )
                if TURNS:  # noqa: SIM102 - known when it is compiled, the other is not
                    if first >= first_turned:
                        row_cos = cos + (n - first_turned) * (ROPE_D // 2)
                        row_sin = sin + (n - first_turned) * (ROPE_D // 2)
                        k = turned(k, keys + offset, row_cos, row_sin, e, valid, ROPE_D)
                score = tl.dot(q, tl.trans(k), score, input_precision=PRECISION)
            score *= scale_log2
            if first + BLOCK_N > tl.minimum(seen, stop):  # an item may end before what is seen
                distance = at[:, None] - tl.load(key_at + n, mask=valid, other=0)[None, :]
                visible = valid[None, :] & (distance >= 0) & (distance < window)
                score = tl.where(visible, score, float("-inf"))
            new_top = tl.maximum(top, tl.max(score, 1))
            # A row that has seen nothing yet: exp2(−inf − −inf) would be NaN.
            shift = tl.where(new_top == float("-inf"), 0.0, new_top)
            weight = tl.exp2(score - shift[:, None])
            decay = tl.exp2(top - shift)
            total = total * decay + tl.sum(weight, 1)
            v = tl.load(
                values + offset[:, None] + d[None, :],
                mask=valid[:, None] & in_d[None, :],
                other=0.0,
            )
            acc = acc * decay[:, None]
            acc = tl.dot(weight.to(v.dtype), v, acc, input_precision=PRECISION)
            top = new_top
    out_row = tl.load(tile_row + tile) + row
    nothing = total == 0.0
    result = acc / tl.where(nothing, 1.0, total)[:, None]
    tl.store(
        out + ((out_row * HEADS + head) * D)[:, None] + d[None, :],
        result.to(out.dtype.element_ty),
        mask=live[:, None] & in_d[None, :],
    )
    log_total = (top + tl.log2(tl.where(nothing, 1.0, total))) / log2e
    tl.store(lse + out_row * HEADS + head, tl.where(nothing, float("-inf"), log_total), mask=live)


@triton.jit
def turned(
    k,  # [BLOCK_N, CHUNK_D]
    key_rows,  # [BLOCK_N] pointers to the whole keys
    cos,  # [BLOCK_N] pointers to [ROPE_D / 2] float32
    sin,
    e,  # [CHUNK_D] dimensions of k
    valid,  # [BLOCK_N]
    ROPE_D: tl.constexpr,
):
    """Some dimensions of keys, rotated in float32; dimension j turns with j ± ROPE_D / 2."""
    half: tl.constexpr = ROPE_D // 2
    partner = tl.where(e < half, e + half, e - half)
    turns = valid[:, None] & (e < ROPE_D)[None, :]
    other = tl.load(key_rows[:, None] + partner[None, :], mask=turns, other=0.0)
    c = tl.load(cos[:, None] + (e % half)[None, :], mask=turns, other=1.0)
    s = tl.load(sin[:, None] + (e % half)[None, :], mask=turns, other=0.0)
    s = tl.where((e < half)[None, :], -s, s)
    return (k.to(tl.float32) * c + other.to(tl.float32) * s).to(k.dtype)
