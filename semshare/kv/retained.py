"""A prompt that keeps another number of tokens in each layer, packed into whole pages.

Slots would waste what the deeper layers have dropped: a slot is there in all layers. Tokens of any
layer may lie in any cell (see `KVPool`), so Σ kept tokens of L layers fit into ⌈Σ / L⌉ slots.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from semshare.kv.pool import Cells, KVPool
from semshare.kv.segment import Segment, runs_of
from semshare.types import Pages, Slots
from semshare_kernels import KeyTable, Rotation, realign_keys


@dataclass(frozen=True, slots=True, eq=False)
class RetainedPrompt:
    """What each layer keeps of a prompt. Its keys are rotated for where they stand in it.

    Args:
        length: tokens of the prompt.
        pages: where all cells lie.
        tables: for each layer the cells and positions of what it keeps, without any shift.
        runs: the same for each layer, as runs of cells.

    """

    length: int
    pages: Pages
    tables: tuple[KeyTable, ...]
    runs: tuple[tuple[Segment, ...], ...]

    @classmethod
    def of(
        cls, length: int, pages: Pages, kept: Sequence[NDArray[np.int64]], cells: Sequence[Cells]
    ) -> RetainedPrompt:
        """From each layer's positions, ascending, and as many cells."""
        unmoved = [np.zeros(len(positions), np.int64) for positions in kept]
        tables = tuple(map(KeyTable, cells, kept, unmoved))
        runs = tuple(runs_of(one.slots, one.positions, one.shifts) for one in tables)
        return cls(length, pages, tables, runs)

    @property
    def share(self) -> float:
        """Of all (token, layer) pairs."""
        return sum(map(len, self.tables)) / (self.length * len(self.tables))


def slots_wanted(counts: Sequence[int]) -> int:
    """Slots whose cells hold `counts` tokens, one count for each layer."""
    return -(-sum(counts) // len(counts))


def pack(counts: Sequence[int], slots: Slots, *, n_slots: int) -> tuple[Cells, ...]:
    """Where each layer's tokens go. Pure.

    The cells of `slots` are dealt out pool layer by pool layer, so that where slots are in a row a
    layer's cells are too, but for one jump at most for each pool layer they reach into.

    Args:
        counts: tokens of each layer.
        slots: `[slots_wanted(counts)]` or more, to be filled.
        n_slots: of the pool.

    Returns:
        For each layer `[count]` cells, no cell twice.

    """
    cells = (np.arange(len(counts))[:, None] * n_slots + slots).reshape(-1)
    ends = np.cumsum(counts)
    return tuple(np.split(cells[: ends[-1]], ends[:-1]))


def move(
    pool: KVPool,
    source: Slots,
    kept: Sequence[NDArray[np.int64]],
    cells: Sequence[Cells],
    rotations: Sequence[Rotation | None],
) -> None:
    """Copy what each layer keeps from the prompt's slots into cells.

    Args:
        pool: where all of it lies.
        source: `[n]` slots of the prompt's tokens, on other pages than `cells`.
        kept: for each layer, its positions in `source`.
        cells: for each layer, as many cells (`pack`).
        rotations: for each layer, what moves its keys to where they stand in the prompt; None
            where they are rotated for that already.

    """
    for layer, (positions, target, rotation) in enumerate(zip(kept, cells, rotations, strict=True)):
        at = torch.from_numpy(pool.cells_of(layer, source[positions])).to(pool.all_keys.device)
        to = torch.from_numpy(target).to(pool.all_keys.device)
        realign_keys(pool.all_keys, at, to, rotation)
        realign_keys(pool.all_values, at, to, None)
