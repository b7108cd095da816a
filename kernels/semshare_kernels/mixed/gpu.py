"""Mixed attention on the GPU: one Triton kernel over tiles of query rows."""

from __future__ import annotations

from semshare_kernels.key_table import Index, KeyTable
from semshare_kernels.mixed.plan import MixedPlan, by_shift, cut
from semshare_kernels.shape import AttentionShape
from semshare_kernels.tiles.configs import rows_a_tile, tile_config
from semshare_kernels.tiles.launch import Tiles, keys_a_part
from semshare_kernels.tiles.program import tile_program


def plan_for_gpu(
    q_pos: Index, keys: KeyTable, window: int | None, shape: AttentionShape
) -> MixedPlan:
    """A `MixedPlan` for a GPU; arguments as those of `plan_mixed`."""
    segments = by_shift(keys, len(q_pos), shape.group)
    config = tile_config(len(q_pos) * shape.group, shape.head_dim, shape.dtype)
    cuts = cut(q_pos, segments, window, rows_a_tile(config, shape.group))
    program = tile_program(
        len(q_pos),
        cuts.tile_row,
        cuts.tile_rows,
        cuts.items,
        part_keys=keys_a_part(int(cuts.tile_keys.sum()), config, shape),
    )
    tiles = Tiles.on(
        shape.device,
        config,
        program,
        query_at=cuts.query_at,
        slots=segments.table.slots,
        key_at=segments.table.positions,
        first_turned=segments.first_turned,
        window=window,
    )
    return MixedPlan(q_pos, window, segments, tiles)
