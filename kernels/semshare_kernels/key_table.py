"""Where the keys of a sequence lie in the pool, and where they stand in the sequence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

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

    @staticmethod
    def joined(several: Sequence[KeyTable]) -> KeyTable:
        """All keys of several, one after the other."""
        return KeyTable(
            *(
                np.concatenate([getattr(table, field.name) for table in several])
                for field in fields(KeyTable)
            )
        )


def in_a_row(slots: Index) -> bool:
    """Whether slots are consecutive."""
    return (
        len(slots) > 0
        and slots[-1] - slots[0] == len(slots) - 1
        and bool((np.diff(slots) == 1).all())
    )


def rows_at(pool: Tensor, slots: Index) -> Tensor:
    """`[n, kv_heads, d]` of a pool's slots: in place if they are consecutive, gathered if not."""
    if in_a_row(slots):
        return pool[int(slots[0]) : int(slots[-1]) + 1]
    return pool.index_select(0, torch.from_numpy(slots).to(pool.device))
