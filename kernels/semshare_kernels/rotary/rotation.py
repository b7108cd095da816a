"""Rotations of keys by angles of their own."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Rotation:
    """Angles Δ · inv_freq of n keys, half-split layout, both `[n, r / 2]` float32, contiguous.

    Without attention scaling, which stored keys carry already. Of a head's d ≥ r dimensions the
    first r are turned, the rest passed through (partial rotary).
    """

    cos: Tensor
    sin: Tensor

    def part(self, rows: slice) -> Rotation:
        """Of some of the keys."""
        return Rotation(self.cos[rows], self.sin[rows])


def rotated(keys: Tensor, rotation: Rotation) -> Tensor:
    """Keys `[n, kv_heads, d]`, turned in float32, in the dtype they come in."""
    half = rotation.cos.shape[1]
    moved = keys.float()
    result = torch.empty_like(moved) if 2 * half == keys.shape[-1] else moved.clone()
    # Two fused multiply-adds a half: this runs over every reused token, in every layer.
    c, s = rotation.cos[:, None], rotation.sin[:, None]
    first, second = moved[..., :half], moved[..., half : 2 * half]
    torch.mul(first, c, out=result[..., :half]).addcmul_(second, s, value=-1.0)
    torch.mul(second, c, out=result[..., half : 2 * half]).addcmul_(first, s)
    return result.to(keys.dtype)
