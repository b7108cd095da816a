"""Where the keys of a sequence lie in the pool, and where they stand in the sequence."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Index = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class KeyTable:
    """One row a key, in any order; all arrays `[n_keys]`."""

    slots: Index  # of the pool
    positions: Index  # in the sequence
    shifts: Index  # position in the sequence − position the key was rotated for

    def __len__(self) -> int:
        return len(self.slots)

    def take(self, index: Index) -> KeyTable:
        """The keys at `index`, in that order."""
        return KeyTable(self.slots[index], self.positions[index], self.shifts[index])
