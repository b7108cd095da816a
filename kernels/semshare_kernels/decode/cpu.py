"""Shared-prefix decode on the CPU: a tile for each node and its sequences, then one merge.

Node first, the queries of all sequences that read a node are rows of the same matrix products, and
its KV passes through the cache once (ChunkAttention, arXiv 2402.15220; Hydragen, arXiv
2402.05099). What one sequence reads by itself is a tile of one row.
"""

from __future__ import annotations

from semshare_kernels.decode.plan import DecodePlan, cut, sharing_pays
from semshare_kernels.decode.tree import KeyTree
from semshare_kernels.key_table import Index
from semshare_kernels.shape import AttentionShape
from semshare_kernels.tiles.cpu import CpuTiles, keys_a_part, rows_a_tile
from semshare_kernels.tiles.program import tile_program

# What a tile costs beside its keys, as bytes of KV that are read meanwhile. Fitted to where sharing
# begins to pay (`semshare bench decode`, crossover).
CALL_BYTES = 40_000


def plan_for_cpu(
    q_pos: Index,
    tree: KeyTree,
    window: int | None,
    shape: AttentionShape,
    *,
    call_bytes: int | None = None,
) -> DecodePlan:
    """A `DecodePlan` for a CPU; arguments as those of `plan_decode`, and another cost of a tile."""
    links = tree.links()
    is_shared = sharing_pays(
        tree, links, shape, call_bytes=CALL_BYTES if call_bytes is None else call_bytes
    )
    tiles = cut(q_pos, tree, links, is_shared, window, rows_a_tile(shape))
    program = tile_program(
        len(q_pos),
        tiles.tile_row,
        tiles.tile_rows,
        tiles.items,
        part_keys=keys_a_part(tiles.tile_rows, tiles.items.stop - tiles.items.start, shape),
        target=links.sequence,
    )
    runnable = CpuTiles.of(
        program,
        shape,
        query_at=tiles.query_at,
        slots=tree.slots,
        key_at=tree.stored_at,
        first_turned=len(tree.slots),
        window=window,
    )
    return DecodePlan(links.sequence, links.shift, runnable)
