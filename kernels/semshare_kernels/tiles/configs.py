"""Block sizes of the tile kernel: all that dispatch can choose, so that all can be checked."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch

MIN_ROWS = 16
SMALL_HEAD, WIDE_HEAD = 64, 128
HEAD_DIMS = (64, 80, 96, 128, 256)
DTYPES = (torch.float16, torch.bfloat16, torch.float32)


@dataclass(frozen=True, slots=True)
class TileConfig:
    """How one variant of the kernel is compiled."""

    block_m: int  # query rows × heads of a group
    block_n: int  # keys at a time
    warps: int
    stages: int  # tiles of keys and values in flight


def rows_a_tile(config: TileConfig, group: int) -> int:
    """Query rows of a tile, whose `group` heads are rows of its products.

    Raises:
        ValueError: not even one fits.

    """
    if group > config.block_m:
        raise ValueError(
            f"{group} query heads share a KV head: a tile of these kernels holds {config.block_m}"
        )
    return config.block_m // group


@cache
def tile_config(rows: int, head_dim: int, dtype: torch.dtype) -> TileConfig:
    """The block sizes for so many rows.

    The largest found that spill no register on sm_80, sm_90 and sm_100 (`semshare kernels check`).
    Sixteen rows are the fewest that matrix instructions take.

    Args:
        rows: query rows × heads of a group that there are to fill tiles with.
        head_dim: of queries, keys and values.
        dtype: of queries, keys and values.

    """
    few = rows <= MIN_ROWS
    if dtype.itemsize == torch.float32.itemsize:
        if head_dim <= SMALL_HEAD and not few:
            return TileConfig(32, 32, warps=8, stages=2)
        return TileConfig(16, 32, warps=4 if head_dim <= WIDE_HEAD else 8, stages=2)
    if head_dim <= WIDE_HEAD:
        return TileConfig(16, 64, warps=8, stages=2) if few else TileConfig(32, 32, 8, 2)
    return TileConfig(16, 32, warps=8, stages=2) if few else TileConfig(64, 16, 8, 2)
