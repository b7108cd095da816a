"""`write_slots` by its definition, a slot at a time."""

from __future__ import annotations

from torch import Tensor


def write_slots(
    keys: Tensor, values: Tensor, slots: Tensor, new_keys: Tensor, new_values: Tensor
) -> None:
    """See `semshare_kernels.pool_write.write_slots`."""
    for index, slot in enumerate(slots.tolist()):
        keys[slot], values[slot] = new_keys[index], new_values[index]
