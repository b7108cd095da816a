"""Block sizes of the tile kernel: all that dispatch can choose, so that all can be checked."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch

MIN_ROWS = 16  # the fewest that matrix instructions take
_HEAD_SIZES = (64, 128, 256)
HEAD_DIMS = (64, 80, 96, 128, 256)
DTYPES = (torch.float16, torch.bfloat16, torch.float32)


@dataclass(frozen=True, slots=True)
class TileConfig:
    """How one variant of the kernel is compiled."""

    block_m: int  # query rows × heads of a group
    block_n: int  # keys at a time
    warps: int
    stages: int  # tiles of keys and values in flight
    chunk_d: int = 256  # head dimensions multiplied at a time, at most


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


# As many as a thread can have. Left to itself, the assembler spills a few to fit more blocks.
MAX_REGISTERS = 255
# By bytes of a number and head size up to: for many rows, and for so few that they fill one tile.
# The largest blocks found that spill no register on sm_80, sm_90 and sm_100.
_CONFIGS = {
    (2, 64): (TileConfig(32, 32, 8, 2), TileConfig(16, 64, 4, 2)),
    (2, 128): (TileConfig(32, 32, 4, 2), TileConfig(16, 64, 8, 2)),
    (2, 256): (TileConfig(64, 16, 8, 2), TileConfig(16, 32, 8, 2)),
    (4, 64): (TileConfig(32, 32, 8, 2), TileConfig(16, 32, 8, 2)),
    (4, 128): (TileConfig(16, 32, 4, 2), TileConfig(16, 32, 4, 2)),
    (4, 256): (TileConfig(16, 32, 8, 2, chunk_d=128), TileConfig(16, 32, 8, 2, chunk_d=128)),
}


@cache
def tile_config(rows: int, head_dim: int, dtype: torch.dtype) -> TileConfig:
    """The block sizes for so many rows (`semshare kernels check` compiles them all).

    Args:
        rows: query rows × heads of a group that there are to fill tiles with.
        head_dim: of queries, keys and values.
        dtype: of queries, keys and values.

    Raises:
        ValueError: for a head size that is too large.

    """
    if head_dim > _HEAD_SIZES[-1]:
        raise ValueError(f"heads of {head_dim}: these kernels take {_HEAD_SIZES[-1]} at most")
    size = next(size for size in _HEAD_SIZES if head_dim <= size)
    many, few = _CONFIGS[dtype.itemsize, size]
    return few if rows <= MIN_ROWS else many
