"""How a decode step over a tree is cut into tiles, from positions alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from semshare_kernels.decode.tree import KeyTree, Links
from semshare_kernels.key_table import Index
from semshare_kernels.shape import AttentionShape
from semshare_kernels.tiles.program import Items, RunnableTiles


@dataclass(frozen=True, slots=True, eq=False)
class DecodePlan:
    """A decode step of several sequences, one query each.

    The caller gives one rotated query for each row: that of sequence `row_sequence`, for its
    position − `row_shift`.
    """

    row_sequence: Index  # [n_rows]
    row_shift: Index  # [n_rows]
    tiles: RunnableTiles


def sharing_pays(
    tree: KeyTree, links: Links, shape: AttentionShape, *, call_bytes: int
) -> NDArray[np.bool_]:
    """`[n_nodes]` whether a node is better read once for all its readers than by each of them.

    Reading it once saves the KV of all readers but one. It costs a tile of its own, and each reader
    a partial result that is written, read and merged: about four passes over a float32 row of
    heads.

    Args:
        tree, links: the nodes and who reads them.
        shape: of the model's attention.
        call_bytes: bytes of KV that are read in the time of a tile more, measured.

    """
    readers = np.bincount(links.node, minlength=tree.n_nodes)
    key_bytes = 2 * shape.kv_heads * shape.head_dim * shape.dtype.itemsize
    merge_bytes = 4 * shape.heads * shape.head_dim * 4
    saved = (readers - 1) * tree.node_lengths * key_bytes
    pays: NDArray[np.bool_] = saved > call_bytes + readers * merge_bytes
    return pays


@dataclass(frozen=True, slots=True, eq=False)
class DecodeTiles:
    """Tiles of links, for `tile_program`."""

    tile_row: Index  # [n_tiles] first link
    tile_rows: Index  # [n_tiles] links
    items: Items
    query_at: Index  # [n_links] where each link's query stands beside the node's keys


def cut(
    q_pos: Index,
    tree: KeyTree,
    links: Links,
    is_shared: NDArray[np.bool_],
    window: int | None,
    rows_a_tile: int,
) -> DecodeTiles:
    """A tile for each shared node and as many of its readers as fit, and for every other link.

    Args:
        q_pos: `[n_sequences]` positions of the queries.
        tree, links: the nodes and who reads them.
        is_shared: `[n_nodes]` from `sharing_pays`.
        window: sliding window, tokens; None for full attention.
        rows_a_tile: most links of a tile.

    """
    at = q_pos[links.sequence] - links.shift
    nth = np.arange(len(links.node)) - np.searchsorted(links.node, links.node)
    # Tiles of one size: a full one and a small rest would leave vectors of rows half empty.
    readers = np.maximum(np.bincount(links.node, minlength=tree.n_nodes), 1)
    tiles = -(-readers // rows_a_tile)
    rows = np.where(is_shared, -(-readers // tiles), 1)
    tile_row = np.flatnonzero(nth % rows[links.node] == 0)
    tile_rows = np.diff(np.append(tile_row, len(links.node)))
    node = links.node[tile_row]
    start, stop = tree.node_start[node], tree.node_start[node + 1]
    seen = stop.copy()
    if window is not None:
        for tile, row in enumerate(tile_row):
            rows = at[row : row + tile_rows[tile]]
            stored = tree.stored_at[start[tile] : stop[tile]]
            hidden = np.searchsorted(stored, [rows.min() - window, rows.max() - window], "right")
            seen[tile] = stop[tile] if hidden[0] == hidden[1] else start[tile]
            start[tile] += hidden[0]
    items = Items(np.arange(len(tile_row)), tile_row, start, stop, seen)
    return DecodeTiles(tile_row, tile_rows, items, at)
