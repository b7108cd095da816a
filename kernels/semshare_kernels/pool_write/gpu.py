"""Pool writes on the GPU: keys and values in one Triton kernel."""

from __future__ import annotations

import triton
from torch import Tensor

from semshare_kernels.device import current_device_of
from semshare_kernels.pool_write.triton_kernel import scatter

MAX_BLOCK = 1024  # elements


def write_slots(
    keys: Tensor, values: Tensor, slots: Tensor, new_keys: Tensor, new_values: Tensor
) -> None:
    """See `semshare_kernels.pool_write.write_slots`."""
    width = keys.shape[1] * keys.shape[2]
    with current_device_of(keys):
        scatter[(len(slots),)](
            keys,
            values,
            new_keys.contiguous(),
            new_values.contiguous(),
            slots,
            WIDTH=width,
            BLOCK=min(triton.next_power_of_2(width), MAX_BLOCK),
            num_warps=4,
        )
