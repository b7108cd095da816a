"""Triton kernels of `simhash` and `hamming_top_k`."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def encode(
    vectors,  # [n, DIM] float32
    planes,  # [DIM, BITS] float32
    codes,  # [n, BITS / 32] int32
    n,
    DIM: tl.constexpr,
    BITS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """32 bits of a few tokens."""
    token = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    in_n = token < n
    bit = tl.program_id(1) * 32 + tl.arange(0, 32)
    product = tl.zeros([BLOCK_N, 32], tl.float32)
    for first in range(0, DIM, BLOCK_DIM):
        d = first + tl.arange(0, BLOCK_DIM)
        x = tl.load(
            vectors + token[:, None] * DIM + d[None, :],
            mask=in_n[:, None] & (d < DIM)[None, :],
            other=0.0,
        )
        plane = tl.load(
            planes + d[:, None] * BITS + bit[None, :], mask=(d < DIM)[:, None], other=0.0
        )
        product = tl.dot(x, plane, product, input_precision=PRECISION)
    signs = (product > 0).to(tl.int32) << tl.arange(0, 32)[None, :]
    word = tl.sum(signs, 1)  # distinct bits: adding them is or-ing them
    tl.store(codes + token * (BITS // 32) + tl.program_id(1), word, mask=in_n)


@triton.jit
def hamming_top_k(
    codes,  # [n, WORDS] int32
    candidates,  # [m, WORDS] int32
    centre,  # [n] int64
    nearest,  # [n, K] int64
    n,
    m,
    radius,
    WORDS: tl.constexpr,
    K: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """A few codes against all candidates in their windows, once for each rank."""
    row = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    in_n = row < n
    at = tl.load(centre + row, mask=in_n, other=0)
    # Candidates that any row of the block may take.
    low = tl.maximum(tl.min(tl.where(in_n, at, m)) - radius, 0)
    high = tl.minimum(tl.max(tl.where(in_n, at, 0)) + radius + 1, m)
    none: tl.constexpr = 0x7FFFFFFFFFFFFFFF
    last = tl.full([BLOCK_N], -1, tl.int64)
    for k in tl.static_range(K):
        # The smallest rank above the one before: distance, then how far away, then which side.
        best = tl.full([BLOCK_N], none, tl.int64)
        for first in range(low, high, BLOCK_M):
            column = first + tl.arange(0, BLOCK_M).to(tl.int64)
            differing = tl.zeros([BLOCK_N, BLOCK_M], tl.int32)
            for word in tl.static_range(WORDS):
                mine = tl.load(codes + row * WORDS + word, mask=in_n, other=0)
                theirs = tl.load(candidates + column * WORDS + word, mask=column < m, other=0)
                differing += population_count(mine[:, None] ^ theirs[None, :])
            away = column[None, :] - at[:, None]
            away = tl.where(away < 0, -away, away)
            rank = (differing.to(tl.int64) << 52) | (away << 26) | column[None, :]
            allowed = (away <= radius) & (column < m)[None, :] & (rank > last[:, None])
            best = tl.minimum(best, tl.min(tl.where(allowed, rank, none), 1))
        found = tl.where(best == none, -1, best & 0x3FFFFFF)
        tl.store(nearest + row * K + k, found, mask=in_n)
        last = best


@triton.jit
def population_count(x):
    """Set bits of each int32, in parallel halves (Warren, Hacker's Delight, 5-1)."""
    x = x - ((x >> 1) & 0x55555555)
    x = (x & 0x33333333) + ((x >> 2) & 0x33333333)
    x = (x + (x >> 4)) & 0x0F0F0F0F
    return (x * 0x01010101) >> 24
