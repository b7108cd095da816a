"""Mixed attention on the CPU: tiles of query rows over runs of the slot table.

A prompt of which nothing is reused, and of which no window hides anything, is one call of torch's
own attention instead: then its numbers are those of transformers to the bit, which in bfloat16
decides one token in fifty.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from semshare_kernels.fused import causal_attention
from semshare_kernels.key_table import Index, KeyTable, rows_at
from semshare_kernels.mixed.plan import MixedPlan, by_shift, cut
from semshare_kernels.rotary.rotation import Rotation
from semshare_kernels.shape import AttentionShape
from semshare_kernels.tiles.cpu import CpuTiles, keys_a_part, rows_a_tile
from semshare_kernels.tiles.program import tile_program


def plan_for_cpu(
    q_pos: Index, keys: KeyTable, window: int | None, shape: AttentionShape
) -> MixedPlan:
    """A `MixedPlan` for a CPU; arguments as those of `plan_mixed`."""
    segments = by_shift(keys, len(q_pos), shape.group)
    table = segments.table
    hides = window is not None and q_pos[-1] - q_pos[0] >= window
    if np.array_equal(q_pos, table.positions) and not table.shifts.any() and not hides:
        return MixedPlan(q_pos, window, segments, WholePrompt(table.slots))
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


@dataclass(frozen=True, slots=True, eq=False)
class WholePrompt:
    """Every key is that of a query: causal attention as transformers runs it."""

    slots: Index  # in order of positions

    def attend(
        self,
        query: Tensor,
        keys: Tensor,
        values: Tensor,
        scale: float,
        turn: Rotation | None = None,
    ) -> tuple[Tensor, Tensor]:
        """See `CpuTiles.attend`; nothing is turned."""
        del turn
        return causal_attention(
            query, rows_at(keys, self.slots), rows_at(values, self.slots), scale
        )
