"""Pool writes: the given slots change, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from semshare_kernels import write_slots
from semshare_kernels.pool_write import gpu, reference


@pytest.mark.parametrize("write", [write_slots, gpu.write_slots])
@pytest.mark.parametrize("n", [1, 63, 80])
@pytest.mark.parametrize(("kv_heads", "d"), [(1, 63), (3, 64), (8, 256)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_equals_the_definition(
    write: Any, n: int, kv_heads: int, d: int, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(n)
    slots = torch.randperm(2 * n + 3, generator=generator)[:n]
    # Fresh keys come as a slice of a projection: not contiguous.
    fresh = torch.randn(n, 2 * kv_heads, d, generator=generator).to(dtype)
    new_keys, new_values = fresh[:, :kv_heads], fresh[:, kv_heads:]
    pools = []
    for way in (write, reference.write_slots):
        keys, values = (torch.full((2 * n + 3, kv_heads, d), 7.0, dtype=dtype) for _ in range(2))
        way(keys, values, slots, new_keys, new_values)
        pools.append((keys, values))
    assert torch.equal(pools[0][0], pools[1][0])
    assert torch.equal(pools[0][1], pools[1][1])
