"""What each tile of `attend_tiles` walks over, in Triton and in C. Pure index arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Protocol

import numpy as np
from torch import Tensor

from semshare_kernels.key_table import Index
from semshare_kernels.rotary.rotation import Rotation

NO_WINDOW = 1 << 62  # a sliding window longer than any sequence


class RunnableTiles(Protocol):
    """A tile program on the device that runs it."""

    def attend(
        self,
        query: Tensor,
        keys: Tensor,
        values: Tensor,
        scale: float,
        turn: Rotation | None = None,
    ) -> tuple[Tensor, Tensor]:
        """out `[n_rows, heads, d]` in the queries' dtype, lse `[n_rows, heads]` float32."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Items:
    """Runs of keys that tiles walk over, in any order; all arrays `[n_items]`."""

    tile: Index  # whose item it is
    query: Index  # the query row that stands for the tile's first output row
    start: Index  # keys [start, stop) of the slot table
    stop: Index
    seen: Index  # keys before this one are seen by every row of the tile

    @staticmethod
    def joined(several: Sequence[Items]) -> Items:
        """All of several, one after the other."""
        return Items(
            *(
                np.concatenate([getattr(items, field.name) for items in several]).astype(np.int64)
                for field in fields(Items)
            )
        )

    def take(self, index: Index) -> Items:
        """The items at `index`, in that order."""
        return Items(
            self.tile[index],
            self.query[index],
            self.start[index],
            self.stop[index],
            self.seen[index],
        )


@dataclass(frozen=True, slots=True, eq=False)
class Merge:
    """Output row i is merged from rows parts[offsets[i]:offsets[i + 1]] of partial results."""

    offsets: Index  # [n_rows + 1]
    parts: Index  # [n_written]


@dataclass(frozen=True, slots=True, eq=False)
class TileProgram:
    """Tiles of rows with their items."""

    n_written: int  # rows that tiles write: of the result, or of partial results
    tile_row: Index  # [n_tiles] first row a tile writes
    tile_rows: Index  # [n_tiles] rows it writes
    tile_items: Index  # [n_tiles + 1] its items are tile_items[t] … tile_items[t + 1] − 1
    items: Items
    merge: Merge | None  # None: each row of the result is written by one tile


def tile_program(
    n_rows: int,
    tile_row: Index,
    tile_rows: Index,
    items: Items,
    *,
    part_keys: int,
    target: Index | None = None,
) -> TileProgram:
    """Tiles as they are run: a tile with many keys is cut into parts that run side by side.

    Args:
        n_rows: of the result.
        tile_row, tile_rows: `[n_tiles]` first row and number of rows of each tile.
        items: of all tiles.
        part_keys: most keys of a tile.
        target: which row of the result each of the tiles' rows belongs to; None: they are the
            rows of the result, each in one tile.

    """
    items = items.take(np.argsort(items.tile, kind="stable"))
    items, tile_of_part = _cut(items, len(tile_row), part_keys)
    tile_row, tile_rows = tile_row[tile_of_part], tile_rows[tile_of_part]
    counts = np.bincount(items.tile, minlength=len(tile_row))
    tile_items = np.concatenate(([0], np.cumsum(counts)))
    if target is None and int(tile_rows.sum()) == n_rows:
        return TileProgram(n_rows, tile_row, tile_rows, tile_items, items, merge=None)
    written = np.concatenate(([0], np.cumsum(tile_rows)))
    within = np.arange(written[-1]) - np.repeat(written[:-1], tile_rows)
    row = np.repeat(tile_row, tile_rows) + within
    row = row if target is None else target[row]
    merge = Merge(
        offsets=np.concatenate(([0], np.cumsum(np.bincount(row, minlength=n_rows)))),
        parts=np.argsort(row, kind="stable"),
    )
    return TileProgram(int(written[-1]), written[:-1], tile_rows, tile_items, items, merge)


def _cut(items: Items, n_tiles: int, part_keys: int) -> tuple[Items, Index]:
    """Cut tiles into parts of at most `part_keys` keys; also returns each part's tile.

    A tile without items stays, as one part: its rows have to be written too.
    """
    length = items.stop - items.start
    end = np.cumsum(length)
    tile_begin = np.concatenate(([0], end))[np.searchsorted(items.tile, items.tile)]
    begin = end - length - tile_begin  # keys of the same tile before this item
    first_part = begin // part_keys
    pieces = (begin + length - 1) // part_keys - first_part + 1
    index = np.repeat(np.arange(len(length)), pieces)
    piece = np.arange(len(index)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    part = first_part[index] + piece
    low = np.maximum(part * part_keys - begin[index], 0)
    high = np.minimum((part + 1) * part_keys - begin[index], length[index])
    parts = np.ones(n_tiles, dtype=np.int64)
    np.maximum.at(parts, items.tile[index], part + 1)
    first_of_tile = np.cumsum(parts) - parts
    cut = Items(
        tile=first_of_tile[items.tile[index]] + part,
        query=items.query[index],
        start=items.start[index] + low,
        stop=items.start[index] + high,
        seen=items.seen[index],
    )
    return cut, np.repeat(np.arange(n_tiles), parts)
