"""Mixed attention on the GPU: one Triton kernel over tiles of query rows."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from semshare_kernels.key_table import Index, KeyTable
from semshare_kernels.mixed.plan import MixedPlan, Segment
from semshare_kernels.rotary.rotation import Rotation
from semshare_kernels.shape import AttentionShape
from semshare_kernels.tiles.configs import rows_a_tile, tile_config
from semshare_kernels.tiles.launch import Tiles, keys_a_part
from semshare_kernels.tiles.program import Items, tile_program

# A shift that fewer keys share gets no set of turned queries: its keys are turned on load.
MIN_KEYS_A_SHIFT = 64


def plan_for_gpu(
    q_pos: Index, keys: KeyTable, window: int | None, shape: AttentionShape
) -> MixedPlan:
    """A `MixedPlan` with tiles; arguments as those of `plan_mixed`."""
    shifts, of_shift, counts = np.unique(keys.shifts, return_inverse=True, return_counts=True)
    kept = (counts >= MIN_KEYS_A_SHIFT) | (shifts == 0)
    # By shift, then by position; turned keys last, as one segment whatever their shifts.
    label = np.where(kept[of_shift], of_shift, len(shifts))
    order = np.lexsort((keys.positions, label))
    table = keys.take(order)
    bounds = np.searchsorted(label[order], np.arange(len(shifts) + 2))
    wanted = np.unique([0, *shifts[kept]]).astype(np.int64)
    upright = int(np.searchsorted(wanted, 0))
    segments = tuple(
        Segment(
            int(bounds[index]),
            int(bounds[index + 1]),
            query=upright if index == len(shifts) else int(np.searchsorted(wanted, shifts[index])),
            slot=None,
        )
        for index in range(len(shifts) + 1)
        if bounds[index] < bounds[index + 1]
    )
    config = tile_config(len(q_pos) * shape.group, shape.head_dim, shape.dtype)
    starts = np.arange(0, len(q_pos), rows_a_tile(config, shape.group))
    stops = np.append(starts[1:], len(q_pos))
    items = Items.joined(
        [_items(segment, table, q_pos, starts, stops, window) for segment in segments]
    )
    part_keys = keys_a_part(int((items.stop - items.start).sum()), config, shape)
    program = tile_program(len(q_pos), starts, stops - starts, items, part_keys=part_keys)
    first_turned = int(bounds[len(shifts)])
    tiles = Tiles.on(
        shape.device,
        config,
        program,
        query_at=np.tile(q_pos, len(wanted)),  # every set meets keys at their places
        slots=table.slots,
        key_at=table.positions,
        first_turned=first_turned,
        window=window,
    )
    return MixedPlan(q_pos, window, table, order, wanted, first_turned, segments, tiles)


def _items(
    segment: Segment,
    table: KeyTable,
    q_pos: Index,
    starts: Index,
    stops: Index,
    window: int | None,
) -> Items:
    """What each tile walks over of a segment."""
    positions = table.positions[segment.start : segment.stop]
    first, last = q_pos[starts], q_pos[stops - 1]
    high = np.searchsorted(positions, last, side="right")
    seen = np.searchsorted(positions, first, side="right")  # by the tile's first row, so by all
    low = np.zeros_like(high)
    if window is not None:
        low = np.searchsorted(positions, first - window, side="right")
        hides = np.searchsorted(positions, last - window, side="right") > 0
        seen = np.where(hides, low, seen)
    tile = np.flatnonzero(low < high)
    return Items(
        tile=tile,
        query=segment.query * len(q_pos) + starts[tile],
        start=segment.start + low[tile],
        stop=segment.start + high[tile],
        seen=segment.start + seen[tile],
    )


def mixed_attention(
    plan: MixedPlan,
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    scale: float,
    turn: Rotation | None,
) -> tuple[Tensor, Tensor]:
    """The GPU path of `mixed_attention`."""
    if plan.tiles is None:
        raise AssertionError("a plan for the CPU can't be run on a GPU")
    return plan.tiles.attend(queries.flatten(0, 1), keys, values, scale, turn)
