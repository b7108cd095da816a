"""Re-alignment on the GPU: gather, rotation and scatter in one Triton kernel."""

from __future__ import annotations

import triton
from torch import Tensor

from semshare_kernels.device import current_device_of
from semshare_kernels.rotary.rotation import Rotation
from semshare_kernels.rotary.triton_kernel import realign

BLOCK_TOKENS = 16


def realign_keys(keys: Tensor, source: Tensor, target: Tensor, rotation: Rotation | None) -> None:
    """See `semshare_kernels.rotary.realign_keys`."""
    if rotation is None:
        keys.index_copy_(0, target, keys.index_select(0, source))
        return
    if len(source) == 0:
        return
    _, heads, d = keys.shape
    with current_device_of(keys):
        realign[(triton.cdiv(len(source), BLOCK_TOKENS), heads)](
            keys,
            source,
            target,
            rotation.cos,
            rotation.sin,
            len(source),
            HEADS=heads,
            D=d,
            ROPE_D=2 * rotation.cos.shape[1],
            BLOCK_N=BLOCK_TOKENS,
            BLOCK_D=triton.next_power_of_2(d),
            num_warps=4,
        )
