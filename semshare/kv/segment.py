"""Runs of tokens whose KV lies in a row, all read with the same shift."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from semshare.kv.pool import Cells
from semshare.types import Slots


@dataclass(frozen=True, slots=True)
class Segment:
    """Slots [slot_start, slot_start + n) whose tokens have these positions in the sequence.

    In a single layer the slots may be cells (see `KVPool`). `shift` is position in the sequence −
    position the key was rotated for.
    """

    slot_start: int
    positions: NDArray[np.int64]  # [n] ascending
    shift: int

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def slots(self) -> Slots:
        """`[n]`."""
        return np.arange(self.slot_start, self.slot_start + len(self))


def runs_of(
    slots: Slots | Cells, positions: NDArray[np.int64], shifts: NDArray[np.int64]
) -> tuple[Segment, ...]:
    """Tokens in as few runs as they make; all arrays `[n]`, positions ascending."""
    order = np.lexsort((slots, shifts))  # one slot may be read twice, with different shifts
    slots, shifts = slots[order], shifts[order]
    ends = (np.diff(slots) != 1) | (np.diff(shifts) != 0) | (np.diff(order) <= 0)
    bounds = [0, *(np.flatnonzero(ends) + 1).tolist(), len(order)]
    return tuple(
        Segment(int(slots[a]), positions[order[a:b]], int(shifts[a]))
        for a, b in pairwise(bounds)
        if a < b
    )
