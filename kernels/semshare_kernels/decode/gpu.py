"""Shared-prefix decode on the GPU: a tile for each node and its sequences, then one merge."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from semshare_kernels.decode.plan import DecodePlan, sharing_pays
from semshare_kernels.decode.tree import KeyTree
from semshare_kernels.key_table import Index
from semshare_kernels.rotary.rotation import Rotation
from semshare_kernels.shape import AttentionShape
from semshare_kernels.tiles.configs import rows_a_tile, tile_config
from semshare_kernels.tiles.launch import Tiles, keys_a_part
from semshare_kernels.tiles.program import Items, tile_program

# Tiles run side by side: one more costs little but its partial results.
CALL_BYTES = 16_384


def plan_for_gpu(
    q_pos: Index, tree: KeyTree, window: int | None, shape: AttentionShape
) -> DecodePlan:
    """A `DecodePlan` of tiles; arguments as those of `plan_decode`."""
    sequence, node, shift = tree.links()
    order = np.argsort(node, kind="stable")
    sequence, node, shift = sequence[order], node[order], shift[order]
    at = q_pos[sequence] - shift  # where each link's query stands beside the node's keys
    lengths = np.diff(tree.node_start)
    readers = np.bincount(node, minlength=tree.n_nodes)
    is_shared = sharing_pays(readers, lengths, shape, call_bytes=CALL_BYTES)
    most = int(readers[is_shared].max(initial=1))
    config = tile_config(most * shape.group, shape.head_dim, shape.dtype)
    # A tile takes as many links of a shared node as it holds, and one link of any other.
    within = np.arange(len(node)) - np.searchsorted(node, node)
    fits = np.where(is_shared[node], rows_a_tile(config, shape.group), 1)
    tile_row = np.flatnonzero(within % fits == 0)
    tile_rows = np.diff(np.append(tile_row, len(node)))
    start, stop = tree.node_start[node[tile_row]], tree.node_start[node[tile_row] + 1]
    seen = stop.copy()
    if window is not None:
        for tile, row in enumerate(tile_row):
            rows = at[row : row + tile_rows[tile]]
            stored = tree.stored_at[start[tile] : stop[tile]]
            hidden = np.searchsorted(stored, [rows.min() - window, rows.max() - window], "right")
            seen[tile] = stop[tile] if hidden[1] == 0 else start[tile]
            start[tile] += hidden[0]
    items = Items(np.arange(len(tile_row)), tile_row, start, stop, seen)
    program = tile_program(
        len(q_pos),
        tile_row,
        tile_rows,
        items,
        part_keys=keys_a_part(int((stop - start).sum()), config, shape),
        target=sequence,
    )
    tiles = Tiles.on(
        shape.device,
        config,
        program,
        query_at=at,
        slots=tree.slots,
        key_at=tree.stored_at,
        first_turned=len(tree.slots),
        window=window,
    )
    return DecodePlan(len(q_pos), sequence, shift, np.empty(0, np.int64), tiles=tiles)


def decode_attention(
    plan: DecodePlan,
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    scale: float,
    turn: Rotation | None,
) -> tuple[Tensor, Tensor]:
    """The GPU path of `decode_attention`."""
    if plan.tiles is None:
        raise AssertionError("a plan for the CPU can't be run on a GPU")
    return plan.tiles.attend(queries, keys, values, scale, turn)
