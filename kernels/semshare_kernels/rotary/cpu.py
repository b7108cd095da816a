"""Rotary embedding on the CPU."""

from __future__ import annotations

import torch
from torch import Tensor

from semshare_kernels.native import move_rows
from semshare_kernels.rotary.rotation import Rotation, rotated

# Bytes of keys turned at a time without the loops in C: the copies in between stay in the cache.
_PART_BYTES = 1 << 20


def rotate_half(x: Tensor) -> Tensor:
    """(x1, x2) → (−x2, x1) over the last dimension's halves."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((-second, first), dim=-1)


def apply_rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate each row of `x` by its own angles, in `x`'s dtype.

    The order of operations is transformers', so that equal inputs give bit-equal outputs.

    Args:
        x: `[..., n, heads, d]`.
        cos, sin: `[..., n, r]` with r ≤ d; the dimensions past r are passed through (partial
            rotary). Leading dimensions are broadcast: one set of queries for several positions.

    """
    cos, sin = cos[..., None, :], sin[..., None, :]
    r = cos.shape[-1]
    if r == x.shape[-1]:
        return x * cos + rotate_half(x) * sin
    turned = x[..., :r] * cos + rotate_half(x[..., :r]) * sin
    kept = x[..., r:].expand(*turned.shape[:-1], -1)
    return torch.cat((turned, kept), dim=-1)


def realign_keys(keys: Tensor, source: Tensor, target: Tensor, rotation: Rotation | None) -> None:
    """See `semshare_kernels.rotary.realign_keys`."""
    if move_rows(keys, source, keys, target, rotation):
        return
    step = max(_PART_BYTES // (keys[0].numel() * 4), 1)
    for start in range(0, len(source), step):
        part = slice(start, start + step)
        moved = keys.index_select(0, source[part])
        if rotation is not None:
            moved = rotated(moved, rotation.part(part))
        keys.index_copy_(0, target[part], moved)
