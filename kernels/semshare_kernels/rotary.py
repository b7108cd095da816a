"""Rotary position embedding of queries and keys, half-split layout (RoFormer, arXiv 2104.09864)."""

from __future__ import annotations

import torch
from torch import Tensor


def rotate_half(x: Tensor) -> Tensor:
    """(x1, x2) → (−x2, x1) over the last dimension's halves."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((-second, first), dim=-1)


def apply_rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate each row of `x` by its own angles, in `x`'s dtype.

    The order of operations is transformers', so that equal inputs give bit-equal outputs.

    Args:
        x: `[n, heads, d]`.
        cos, sin: `[n, r]` with r ≤ d; the dimensions past r are passed through (partial rotary).

    """
    cos, sin = cos[:, None], sin[:, None]  # [n, 1, r]
    r = cos.shape[-1]
    if r == x.shape[-1]:
        return x * cos + rotate_half(x) * sin
    rotated = x[..., :r] * cos + rotate_half(x[..., :r]) * sin
    return torch.cat((rotated, x[..., r:]), dim=-1)


def realign_keys(keys: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Move rotated keys by a number of positions each: one more rotation, float32 inside.

    RoPE(k, p + Δ) = R(Δ) · RoPE(k, p), because rotations in a plane add up.

    Args:
        keys: `[n, kv_heads, d]`, rotated for where they were stored.
        cos, sin: `[n, r]` float32, of the angles Δ · inv_freq, without attention scaling (which
            the stored keys already carry).

    Returns:
        `[n, kv_heads, d]` in the dtype of `keys`.

    """
    r = cos.shape[-1]
    moved = keys.float()
    rotated = torch.empty_like(moved) if r == keys.shape[-1] else moved.clone()
    # Two fused multiply-adds a half instead of `apply_rotary`'s copies: this runs over every
    # reused token of a prompt, in every layer.
    half = r // 2
    c, s = cos[:, None, :half], sin[:, None, :half]
    first, second = moved[..., :half], moved[..., half:r]
    torch.mul(first, c, out=rotated[..., :half]).addcmul_(second, s, value=-1.0)
    torch.mul(second, c, out=rotated[..., half:r]).addcmul_(first, s)
    return rotated.to(keys.dtype)
