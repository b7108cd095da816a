"""How mixed attention is cut into work, from positions alone: the same in every layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from semshare_kernels.key_table import Index, KeyTable

if TYPE_CHECKING:
    from semshare_kernels.tiles.launch import Tiles  # needs Triton


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """Queries [query_start, query_stop) over keys [key_start, key_stop) of one segment."""

    query_start: int
    query_stop: int
    key_start: int  # counted from the segment's first key
    key_stop: int
    causal: bool  # query i sees keys 0 … i of the block, which is square
    mask: Tensor | None  # [queries, keys] additive, in the model's dtype; None: all visible
    merges: bool = False  # an earlier block has some of these rows


@dataclass(frozen=True, slots=True, eq=False)
class Segment:
    """Keys [start, stop) of a plan's table, ascending in position, that are attended together."""

    start: int
    stop: int
    query: int  # which set of rotated queries they take
    slot: int | None  # their first slot, if they are read in place from consecutive slots
    blocks: tuple[Block, ...] = ()  # what a CPU runs; together they cover each visible pair once

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True, slots=True, eq=False)
class MixedPlan:
    """Which query sees which key, and how the work is cut.

    The caller gives one set of queries for each of `shifts`, rotated for position − shift, which
    is where keys of that shift were stored. Keys from `first_turned` on are turned by their own
    shift instead, and meet the queries of shift 0.
    """

    q_pos: Index  # [n_q]
    window: int | None
    keys: KeyTable  # in the plan's order, which is by segment
    order: Index  # [n_keys] the places they had in the table the plan was made from
    shifts: Index  # [n_shifts]
    first_turned: int
    segments: tuple[Segment, ...]
    tiles: Tiles | None = None  # what a GPU runs

    @property
    def turned_shifts(self) -> Index:
        """`[n_turned]` by how many positions each key from `first_turned` on is turned."""
        return self.keys.shifts[self.first_turned :]
