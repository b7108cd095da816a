"""Mixed attention on the CPU: tiles of query rows over runs of the slot table."""

from __future__ import annotations

from semshare_kernels.key_table import Index, KeyTable
from semshare_kernels.mixed.plan import MixedPlan, by_shift, cut
from semshare_kernels.shape import AttentionShape
from semshare_kernels.tiles.cpu import CpuTiles, keys_a_part, rows_a_tile
from semshare_kernels.tiles.program import tile_program


def plan_for_cpu(
    q_pos: Index, keys: KeyTable, window: int | None, shape: AttentionShape
) -> MixedPlan:
    """A `MixedPlan` for a CPU; arguments as those of `plan_mixed`."""
    segments = by_shift(keys, len(q_pos), shape.group)
    cuts = cut(q_pos, segments, window, rows_a_tile(shape))
    program = tile_program(
        len(q_pos),
        cuts.tile_row,
        cuts.tile_rows,
        cuts.items,
        part_keys=keys_a_part(cuts.tile_rows, cuts.tile_keys, shape),
    )
    tiles = CpuTiles.of(
        program,
        shape,
        query_at=cuts.query_at,
        slots=segments.table.slots,
        key_at=segments.table.positions,
        first_turned=segments.first_turned,
        window=window,
    )
    return MixedPlan(q_pos, window, segments, tiles)
