"""How mixed attention is cut into tiles, from positions alone: the same in every layer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from semshare_kernels.key_table import Index, KeyTable
from semshare_kernels.tiles.program import Items, RunnableTiles

# A shift that fewer keys share gets no set of turned queries: its keys are turned on load. Nor does
# one whose set would be larger than half of its keys and values.
MIN_KEYS_A_SHIFT = 64


@dataclass(frozen=True, slots=True, eq=False)
class Segment:
    """Keys [start, stop) of a plan's table, ascending in position, that meet the same queries."""

    start: int
    stop: int
    query: int  # which set of rotated queries they take


@dataclass(frozen=True, slots=True, eq=False)
class Segments:
    """The keys of a sequence by shift."""

    table: KeyTable  # by segment
    order: Index  # [n_keys] the places they had before
    shifts: Index  # [n_shifts] of the sets of queries
    first_turned: int  # keys from here on are turned by shifts of their own, to meet shift 0
    segments: tuple[Segment, ...]


@dataclass(frozen=True, slots=True, eq=False)
class MixedPlan:
    """Which query sees which key, and how the work is cut.

    The caller gives one set of queries for each of `shifts`, rotated for position − shift, which
    is where keys of that shift were stored. Keys from `first_turned` on are turned by their own
    shift instead, and meet the queries of shift 0.
    """

    q_pos: Index  # [n_q]
    window: int | None
    by_shift: Segments
    tiles: RunnableTiles

    @property
    def shifts(self) -> Index:
        """`[n_shifts]` of the sets of queries."""
        return self.by_shift.shifts

    @property
    def turned_shifts(self) -> Index:
        """`[n_turned]` by how many positions each key that is turned on load is turned."""
        return self.by_shift.table.shifts[self.by_shift.first_turned :]


def by_shift(keys: KeyTable, n_q: int, group: int) -> Segments:
    """Keys in segments: by shift, then by position; turned keys last, as one segment.

    Args:
        keys: of the sequence.
        n_q: queries.
        group: query heads that share a KV head.

    """
    shifts, of_shift, counts = np.unique(keys.shifts, return_inverse=True, return_counts=True)
    kept = (counts >= max(MIN_KEYS_A_SHIFT, n_q * group)) | (shifts == 0)
    label = np.where(kept[of_shift], of_shift, len(shifts))
    order = np.lexsort((keys.positions, label))
    bounds = np.searchsorted(label[order], np.arange(len(shifts) + 2))
    wanted = np.unique([0, *shifts[kept]]).astype(np.int64)
    upright = int(np.searchsorted(wanted, 0))
    segments = tuple(
        Segment(
            int(bounds[index]),
            int(bounds[index + 1]),
            query=upright if index == len(shifts) else int(np.searchsorted(wanted, shifts[index])),
        )
        for index in range(len(shifts) + 1)
        if bounds[index] < bounds[index + 1]
    )
    return Segments(keys.take(order), order, wanted, int(bounds[len(shifts)]), segments)


@dataclass(frozen=True, slots=True, eq=False)
class MixedTiles:
    """Tiles of query rows, for `tile_program`."""

    tile_row: Index  # [n_tiles] first query
    tile_rows: Index  # [n_tiles] queries
    items: Items
    query_at: Index  # [n_shifts × n_q]: every set meets keys at their places

    @property
    def tile_keys(self) -> Index:
        """`[n_tiles]` keys that each walks over."""
        length = self.items.stop - self.items.start
        return np.bincount(self.items.tile, length, len(self.tile_row)).astype(np.int64)


def cut(q_pos: Index, keys: Segments, window: int | None, rows_a_tile: int) -> MixedTiles:
    """Tiles of a few queries each, with what they see of each segment.

    Args:
        q_pos: `[n_q]` ascending positions of the queries.
        keys: of the sequence.
        window: sliding window, tokens; None for full attention.
        rows_a_tile: most queries of a tile.

    """
    starts = np.arange(0, len(q_pos), rows_a_tile)
    stops = np.append(starts[1:], len(q_pos))
    items = Items.joined(
        [_items(segment, keys.table, q_pos, starts, stops, window) for segment in keys.segments]
    )
    return MixedTiles(starts, stops - starts, items, np.tile(q_pos, len(keys.shifts)))


def _items(
    segment: Segment,
    table: KeyTable,
    q_pos: Index,
    starts: Index,
    stops: Index,
    window: int | None,
) -> Items:
    """What each tile walks over of a segment."""
    positions = table.positions[segment.start : segment.stop]
    first, last = q_pos[starts], q_pos[stops - 1]
    high = np.searchsorted(positions, last, side="right")
    seen = np.searchsorted(positions, first, side="right")  # by the tile's first row, so by all
    low = np.zeros_like(high)
    if window is not None:
        low = np.searchsorted(positions, first - window, side="right")
        hides = np.searchsorted(positions, last - window, side="right") > low
        seen = np.where(hides, low, seen)
    tile = np.flatnonzero(low < high)
    return Items(
        tile=tile,
        query=segment.query * len(q_pos) + starts[tile],
        start=segment.start + low[tile],
        stop=segment.start + high[tile],
        seen=segment.start + seen[tile],
    )
