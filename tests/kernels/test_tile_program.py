"""Tile programs: cutting tiles into parts loses no key and writes every row."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from properties import examples

from semshare_kernels.tiles.program import Items, TileProgram, tile_program

Pair = tuple[int, int]  # row of the result, key


def items_of(tiles: list[list[int]]) -> Items:
    """For each tile, items of the given lengths, one after the other in the slot table."""
    tile = np.repeat(np.arange(len(tiles)), [len(lengths) for lengths in tiles])
    length = np.array([length for lengths in tiles for length in lengths], np.int64)
    stop = np.cumsum(length)
    return Items(tile, 100 * tile, stop - length, stop, stop - length // 2)


def pairs_of(program: TileProgram, n_rows: int) -> list[Pair]:
    """All (row of the result, key) that the tiles compute, merged or not."""
    target = np.arange(n_rows)
    if program.merge is not None:
        target = np.full(program.n_written, -1)
        for row in range(n_rows):
            mine = program.merge.parts[program.merge.offsets[row] : program.merge.offsets[row + 1]]
            assert (target[mine] == -1).all()
            target[mine] = row
    pairs = []
    for tile, first in enumerate(program.tile_row):
        for row in target[first : first + program.tile_rows[tile]]:
            for item in range(program.tile_items[tile], program.tile_items[tile + 1]):
                keys = range(program.items.start[item], program.items.stop[item])
                pairs += [(int(row), key) for key in keys]
    return sorted(pairs)


@examples(150)
@given(
    st.lists(
        st.tuples(st.integers(1, 3), st.lists(st.integers(0, 9), max_size=4)),
        min_size=1,
        max_size=5,
    ),
    st.integers(1, 12),
)
def test_parts_hold_the_same_pairs_and_no_more_keys_than_allowed(
    tiles: list[tuple[int, list[int]]], part_keys: int
) -> None:
    rows = np.array([rows for rows, _ in tiles])
    first = np.cumsum(rows) - rows
    items = items_of([lengths for _, lengths in tiles])
    n_rows = int(rows.sum())
    whole = tile_program(n_rows, first, rows, items, part_keys=1000)
    cut = tile_program(n_rows, first, rows, items, part_keys=part_keys)
    assert whole.merge is None
    assert pairs_of(cut, n_rows) == pairs_of(whole, n_rows)
    length = cut.items.stop - cut.items.start
    for tile in range(len(cut.tile_rows)):
        assert length[cut.tile_items[tile] : cut.tile_items[tile + 1]].sum() <= part_keys
    # Every row is written, also that of a tile without keys; what all rows see stays what it was.
    assert cut.n_written == cut.tile_rows.sum() >= n_rows
    assert set(zip(cut.items.query, cut.items.seen, strict=True)) <= set(
        zip(items.query, items.seen, strict=True)
    )


def test_rows_may_belong_to_any_row_of_the_result() -> None:
    """Two nodes: one read by sequences 2 and 0, one by sequence 1 and 2."""
    items = items_of([[3], [2]])
    target = np.array([2, 0, 1, 2])
    program = tile_program(
        3, np.array([0, 2]), np.array([2, 2]), items, part_keys=100, target=target
    )
    assert pairs_of(program, 3) == sorted(
        [(2, key) for key in range(5)] + [(0, key) for key in range(3)] + [(1, 3), (1, 4)]
    )
