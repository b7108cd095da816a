"""Writes fresh keys and values into their slots of the pool."""

from __future__ import annotations

from torch import Tensor

__all__ = ["write_slots"]


def write_slots(
    keys: Tensor, values: Tensor, slots: Tensor, new_keys: Tensor, new_values: Tensor
) -> None:
    """Scatter keys and values of n tokens.

    Args:
        keys, values: `[n_slots, kv_heads, d]` of the pool, changed at `slots`.
        slots: `[n]` int64, each at most once.
        new_keys, new_values: `[n, kv_heads, d]` in the pool's dtype.

    """
    if keys.is_cuda:
        from semshare_kernels.pool_write.gpu import write_slots as write_on_gpu  # noqa: PLC0415

        write_on_gpu(keys, values, slots, new_keys, new_values)
        return
    keys.index_copy_(0, slots, new_keys)
    values.index_copy_(0, slots, new_values)
