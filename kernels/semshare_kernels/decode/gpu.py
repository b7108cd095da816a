"""Shared-prefix decode on the GPU: a tile for each node and its sequences, then one merge."""

from __future__ import annotations

import numpy as np

from semshare_kernels.decode.plan import DecodePlan, cut, sharing_pays
from semshare_kernels.decode.tree import KeyTree
from semshare_kernels.key_table import Index
from semshare_kernels.shape import AttentionShape
from semshare_kernels.tiles.configs import rows_a_tile, tile_config
from semshare_kernels.tiles.launch import Tiles, keys_a_part
from semshare_kernels.tiles.program import tile_program

# Tiles run side by side: one more costs little but its partial results.
CALL_BYTES = 16_384


def plan_for_gpu(
    q_pos: Index, tree: KeyTree, window: int | None, shape: AttentionShape
) -> DecodePlan:
    """A `DecodePlan` for a GPU; arguments as those of `plan_decode`."""
    links = tree.links()
    is_shared = sharing_pays(tree, links, shape, call_bytes=CALL_BYTES)
    most = int(np.bincount(links.node, minlength=tree.n_nodes)[is_shared].max(initial=1))
    config = tile_config(most * shape.group, shape.head_dim, shape.dtype)
    tiles = cut(q_pos, tree, links, is_shared, window, rows_a_tile(config, shape.group))
    total_keys = int((tiles.items.stop - tiles.items.start).sum())
    program = tile_program(
        len(q_pos),
        tiles.tile_row,
        tiles.tile_rows,
        tiles.items,
        part_keys=keys_a_part(total_keys, config, shape),
        target=links.sequence,
    )
    runnable = Tiles.on(
        shape.device,
        config,
        program,
        query_at=tiles.query_at,
        slots=tree.slots,
        key_at=tree.stored_at,
        first_turned=len(tree.slots),
        window=window,
    )
    return DecodePlan(links.sequence, links.shift, runnable)
