"""Triton kernel of `write_slots`."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def scatter(
    keys,  # [n_slots, WIDTH] the pool's, WIDTH = KV heads × head size
    values,
    new_keys,  # [n, WIDTH]
    new_values,
    slots,  # [n] int64
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One token, all heads."""
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots + token)
    for first in tl.static_range(0, WIDTH, BLOCK):
        at = first + tl.arange(0, BLOCK)
        inside = at < WIDTH
        key = tl.load(new_keys + token * WIDTH + at, mask=inside)
        value = tl.load(new_values + token * WIDTH + at, mask=inside)
        tl.store(keys + slot * WIDTH + at, key, mask=inside)
        tl.store(values + slot * WIDTH + at, value, mask=inside)
