"""`merge_states` on the GPU: one Triton program a row and head."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from semshare_kernels.device import current_device_of
from semshare_kernels.merge.triton_kernel import merge_parts


def merge_states(
    part_out: Tensor, part_lse: Tensor, offsets: Tensor, parts: Tensor
) -> tuple[Tensor, Tensor]:
    """See `semshare_kernels.merge.merge_states`."""
    n_rows, (_, heads, d) = len(offsets) - 1, part_out.shape
    out = part_out.new_empty((n_rows, heads, d), dtype=torch.float32)
    lse = part_lse.new_empty((n_rows, heads))
    with current_device_of(part_out):
        merge_parts[(n_rows, heads)](
            part_out,
            part_lse,
            offsets,
            parts,
            out,
            lse,
            HEADS=heads,
            D=d,
            BLOCK_D=triton.next_power_of_2(d),
            num_warps=1,
        )
    return out, lse
