"""How a decode step over a tree is cut into work, from positions alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from semshare_kernels.key_table import Index
from semshare_kernels.mixed.plan import MixedPlan
from semshare_kernels.shape import AttentionShape

if TYPE_CHECKING:
    from semshare_kernels.tiles.launch import Tiles  # needs Triton


@dataclass(frozen=True, slots=True, eq=False)
class SharedNode:
    """A node that a CPU reads once for several sequences."""

    slots: Tensor  # [n]
    first_slot: int | None  # if they are consecutive: read in place
    rows: Tensor  # [readers] rows of the rotated queries
    sequences: Tensor  # [readers]
    mask: Tensor | None  # [readers × group, n] additive, where a window hides some


@dataclass(frozen=True, slots=True, eq=False)
class PrivateKeys:
    """What one sequence reads by itself on a CPU."""

    sequence: int
    plan: MixedPlan
    rows: Tensor  # [n_shifts] rows of the rotated queries
    turned: slice  # of all keys that are turned on load


@dataclass(frozen=True, slots=True, eq=False)
class ShortPrivateKeys:
    """What sequences with few keys of their own read, padded to one length for one call."""

    sequences: Tensor  # [b]
    rows: Tensor  # [b] rows of the rotated queries, at shift 0
    slots: Tensor  # [b × n]; padding repeats a slot of the sequence
    mask: Tensor  # [b, 1, 1, n] additive
    turned: slice  # of all keys that are turned on load: all of these, or none


@dataclass(frozen=True, slots=True, eq=False)
class DecodePlan:
    """A decode step of several sequences, one query each.

    The caller gives one rotated query for each row: that of sequence `row_sequence`, for its
    position − `row_shift`. Keys that are turned on load are turned by `turned_shifts`.
    """

    n_sequences: int
    row_sequence: Index  # [n_rows]
    row_shift: Index  # [n_rows]
    turned_shifts: Index  # [n_turned]
    shared: tuple[SharedNode, ...] = ()
    private: tuple[PrivateKeys, ...] = ()
    short: ShortPrivateKeys | None = None
    tiles: Tiles | None = None  # what a GPU runs


def sharing_pays(
    readers: Index, keys: Index, shape: AttentionShape, *, call_bytes: int
) -> NDArray[np.bool_]:
    """Whether a node is better read once for all its readers than by each of them.

    Reading it once saves the KV of all readers but one. It costs a call, and each reader a partial
    result that is written, read and merged: about four passes over a float32 row of heads.

    Args:
        readers, keys: `[n_nodes]` sequences that read a node, and its length.
        shape: of the model's attention.
        call_bytes: bytes of KV that are read in the time of a call, measured.

    """
    key_bytes = 2 * shape.kv_heads * shape.head_dim * shape.dtype.itemsize
    merge_bytes = 4 * shape.heads * shape.head_dim * 4
    saved: NDArray[np.int64] = (readers - 1) * keys * key_bytes
    return saved > call_bytes + readers * merge_bytes
