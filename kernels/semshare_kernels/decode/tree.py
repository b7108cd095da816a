"""A tree of KV nodes and the sequences that read it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from semshare_kernels.key_table import Index, KeyTable


@dataclass(frozen=True, slots=True, eq=False)
class Links:
    """Each sequence with each node that it reads, by node; all arrays `[n_links]`."""

    sequence: Index
    node: Index  # ascending
    shift: Index  # position in the sequence − position the node's keys were rotated for


@dataclass(frozen=True, slots=True, eq=False)
class KeyTree:
    """Nodes of consecutive text, each read by one or more sequences.

    A node stands where its keys were rotated for; a sequence that has it elsewhere reads it with a
    shift, so that one donor serves sequences in which it sits at different positions.
    """

    slots: Index  # [n_keys] of the pool, node after node
    stored_at: Index  # [n_keys] positions the keys were rotated for
    node_start: Index  # [n_nodes + 1] node i holds keys node_start[i] … node_start[i + 1] − 1
    paths: tuple[Index, ...]  # for each sequence the nodes it reads
    shifts: tuple[Index, ...]  # and its position − stored position on each of them

    @property
    def n_nodes(self) -> int:
        """Nodes."""
        return len(self.node_start) - 1

    @property
    def node_lengths(self) -> Index:
        """`[n_nodes]` keys of each."""
        return np.diff(self.node_start)

    def links(self) -> Links:
        """Who reads what."""
        sequence = np.repeat(np.arange(len(self.paths)), [len(path) for path in self.paths])
        empty = np.empty(0, np.int64)
        node = np.concatenate([empty, *self.paths])
        shift = np.concatenate([empty, *self.shifts])
        order = np.argsort(node, kind="stable")
        return Links(*(part[order].astype(np.int64) for part in (sequence, node, shift)))

    def keys_of(self, nodes: Index, shifts: Index) -> KeyTable:
        """The keys of some nodes as a sequence sees them that has each at its shift."""
        ranges = [np.arange(self.node_start[i], self.node_start[i + 1]) for i in nodes]
        index = np.concatenate([np.empty(0, np.int64), *ranges]).astype(np.int64)
        shift = np.repeat(shifts, [len(part) for part in ranges]).astype(np.int64)
        return KeyTable(self.slots[index], self.stored_at[index] + shift, shift)
