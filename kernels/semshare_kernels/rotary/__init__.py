"""Rotary position embedding: of queries and fresh keys, and of keys that move.

RoPE(k, p + Δ) = R(Δ) · RoPE(k, p), because rotations in a plane add up (RoFormer, arXiv
2104.09864): a cached key is moved by one more rotation, whatever position it was computed at.
"""

from __future__ import annotations

from torch import Tensor

from semshare_kernels.rotary import reference
from semshare_kernels.rotary.cpu import apply_rotary
from semshare_kernels.rotary.cpu import realign_keys as _realign_on_cpu
from semshare_kernels.rotary.rotation import Rotation, rotated

__all__ = ["Rotation", "apply_rotary", "realign_keys", "reference", "rotated"]


def realign_keys(keys: Tensor, source: Tensor, target: Tensor, rotation: Rotation | None) -> None:
    """Copy keys from slots to other slots of a pool, each moved by a number of positions.

    Args:
        keys: `[n_slots, kv_heads, d]` of the pool, changed at `target`.
        source, target: `[n]` int64 slots; none is in both.
        rotation: `[n]` of the keys; None copies them as they are.

    """
    if keys.is_cuda:
        from semshare_kernels.rotary.gpu import realign_keys as realign_on_gpu  # noqa: PLC0415

        realign_on_gpu(keys, source, target, rotation)
    else:
        _realign_on_cpu(keys, source, target, rotation)
