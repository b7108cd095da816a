"""Triton kernel of `realign_keys`."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def realign(
    keys,  # [n_slots, HEADS, D] the pool's
    source,  # [n] int64 slots
    target,  # [n] int64 slots
    cos,  # [n, ROPE_D / 2] float32
    sin,
    n,
    HEADS: tl.constexpr,
    D: tl.constexpr,
    ROPE_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,  # D rounded up to a power of two
):
    """A few tokens of one head: read, turned in float32, written."""
    token = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    head = tl.program_id(1)
    in_n = token < n
    d = tl.arange(0, BLOCK_D)
    half: tl.constexpr = ROPE_D // 2
    partner = tl.where(d < half, d + half, tl.where(d < ROPE_D, d - half, d))
    kept = in_n[:, None] & (d < D)[None, :]
    turned = in_n[:, None] & (d < ROPE_D)[None, :]
    read = (tl.load(source + token, mask=in_n, other=0) * HEADS + head) * D
    x = tl.load(keys + read[:, None] + d[None, :], mask=kept, other=0.0).to(tl.float32)
    other = tl.load(keys + read[:, None] + partner[None, :], mask=kept, other=0.0).to(tl.float32)
    angle = token[:, None] * half + (d % half)[None, :]
    c = tl.load(cos + angle, mask=turned, other=1.0)
    s = tl.load(sin + angle, mask=turned, other=0.0)
    s = tl.where((d < half)[None, :], -s, s)
    written = (tl.load(target + token, mask=in_n, other=0) * HEADS + head) * D
    moved = (x * c + other * s).to(keys.dtype.element_ty)
    tl.store(keys + written[:, None] + d[None, :], moved, mask=kept)
