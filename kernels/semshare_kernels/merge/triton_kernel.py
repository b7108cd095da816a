"""Triton kernel of `merge_states`."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def merge_parts(
    part_out,  # [n_parts, HEADS, D]
    part_lse,  # [n_parts, HEADS] float32
    offsets,  # [n_rows + 1] int64
    parts,  # [offsets[-1]] int64
    out,  # [n_rows, HEADS, D]
    lse,  # [n_rows, HEADS] float32
    HEADS: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,  # D rounded up to a power of two: what lies past D must not be written
):
    """One row and head: the largest exponent first, then the weighted sum."""
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    first = tl.load(offsets + row)
    last = tl.load(offsets + row + 1)
    d = tl.arange(0, BLOCK_D)
    in_d = d < D
    top = float("-inf")
    for index in range(first, last):
        part = tl.load(parts + index)
        top = tl.maximum(top, tl.load(part_lse + part * HEADS + head))
    shift = tl.where(top == float("-inf"), 0.0, top)
    total = 0.0
    acc = tl.zeros([BLOCK_D], tl.float32)
    for index in range(first, last):
        at = tl.load(parts + index) * HEADS + head
        weight = tl.exp(tl.load(part_lse + at) - shift)
        total += weight
        acc += weight * tl.load(part_out + at * D + d, mask=in_d, other=0.0).to(tl.float32)
    nothing = total == 0.0
    total = tl.where(nothing, 1.0, total)
    at = row * HEADS + head
    tl.store(out + at * D + d, (acc / total).to(out.dtype.element_ty), mask=in_d)
    tl.store(lse + at, tl.where(nothing, float("-inf"), shift + tl.log(total)))
