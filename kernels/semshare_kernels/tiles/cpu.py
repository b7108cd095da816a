"""Runs a tile program on a CPU: in C, or without a compiler by torch's fused attention."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from semshare_kernels import native
from semshare_kernels.fused import additive_mask, fused_grouped
from semshare_kernels.key_table import Index
from semshare_kernels.merge.cpu import merge_into, merge_states
from semshare_kernels.shape import AttentionShape
from semshare_kernels.tiles.program import NO_WINDOW, TileProgram

# Tiles of so few rows × heads of a group read all heads of a token in turn, at the memory's speed.
FEW_ROWS = 4
# Queries and sums that a task keeps, bytes: well inside a second-level cache.
STATE_BYTES = 1 << 17
# Tasks a thread, so that all are done at about the same time.
TASKS_A_THREAD = 4
# Fewer keys are not worth a partial result of their own.
MIN_PART_KEYS = 256


def rows_a_tile(group: int) -> int:
    """Query rows of a tile, whose `group` heads are rows of its products.

    As many as there can be: keys are unpacked once for all of them.
    """
    return max(native.MAX_ROWS // group, 1)


def heads_a_task(tile_rows: Index, shape: AttentionShape) -> Index:
    """`[n_tiles]` KV heads that one task has of each tile: as many as their state leaves room for.

    Args:
        tile_rows: `[n_tiles]` query rows.
        shape: of the attention.

    """
    rows = tile_rows * shape.group
    rows = np.where(rows <= FEW_ROWS, rows, -(-rows // native.VECTOR) * native.VECTOR)
    state = np.maximum(rows, 1) * shape.head_dim * 2 * torch.float32.itemsize
    heads: Index = np.clip(STATE_BYTES // state, 1, shape.kv_heads)
    return heads


def keys_a_part(tile_rows: Index, tile_keys: Index, shape: AttentionShape) -> int:
    """Most keys a tile walks over, so that there are tasks enough for all threads.

    Args:
        tile_rows, tile_keys: `[n_tiles]` query rows and keys.
        shape: of the attention.

    """
    tasks = -(-shape.kv_heads // heads_a_task(tile_rows, shape))
    wanted = int((tile_keys * tasks).sum()) // (torch.get_num_threads() * TASKS_A_THREAD)
    return max(wanted, MIN_PART_KEYS)


@dataclass(frozen=True, slots=True, eq=False)
class CpuTiles:
    """A tile program with its tables, cut into tasks by KV heads."""

    work: native.TileWork
    program: TileProgram
    merged_from: tuple[Tensor, Tensor] | None  # offsets and parts, where results are partial

    @staticmethod
    def of(
        program: TileProgram,
        shape: AttentionShape,
        *,
        query_at: Index,
        slots: Index,
        key_at: Index,
        window: int | None,
    ) -> CpuTiles:
        """Tables of a program; arguments as those of `semshare_kernels.tiles.launch.Tiles.on`."""
        span = heads_a_task(program.tile_rows, shape)
        tasks = -(-shape.kv_heads // span)
        tile = np.repeat(np.arange(len(span)), tasks)
        nth = np.arange(len(tile)) - np.repeat(np.cumsum(tasks) - tasks, tasks)
        head = nth * span[tile]
        items = program.items
        work = native.TileWork(
            {
                "query_at": query_at,
                "slots": slots,
                "key_at": key_at,
                "tile_row": program.tile_row,
                "tile_rows": program.tile_rows,
                "tile_items": program.tile_items,
                "item_query": items.query,
                "item_start": items.start,
                "item_stop": items.stop,
                "item_seen": items.seen,
                "task_tile": tile,
                "task_head": head,
                "task_heads": np.minimum(span[tile], shape.kv_heads - head),
            },
            n_tasks=len(tile),
            heads=shape.heads,
            kv_heads=shape.kv_heads,
            d=shape.head_dim,
            window=NO_WINDOW if window is None else window,
            few_rows=FEW_ROWS,
        )
        merged_from = None
        if program.merge is not None:
            merge = program.merge
            merged_from = (torch.from_numpy(merge.offsets), torch.from_numpy(merge.parts))
        return CpuTiles(work, program, merged_from)

    def attend(
        self, query: Tensor, keys: Tensor, values: Tensor, scale: float
    ) -> tuple[Tensor, Tensor]:
        """Run all tiles.

        Args:
            query: `[n_query_rows, heads, d]`.
            keys, values: `[n_slots, kv_heads, d]` of the pool.
            scale: of the dot products.

        Returns:
            out `[n_rows, heads, d]` in the queries' dtype and lse `[n_rows, heads]` float32.

        """
        _, heads, d = query.shape
        out = query.new_empty((self.program.n_written, heads, d), dtype=torch.float32)
        lse = out.new_empty((self.program.n_written, heads))
        if not native.attend_tiles(self.work, query, keys, values, out, lse, scale):
            self._attend_in_torch(query, keys, values, out, lse, scale)
        if self.merged_from is not None:
            out, lse = merge_states(out, lse, *self.merged_from)
        return out.to(query.dtype), lse

    def _attend_in_torch(
        self, query: Tensor, keys: Tensor, values: Tensor, out: Tensor, lse: Tensor, scale: float
    ) -> None:
        out.zero_()
        lse.fill_(-torch.inf)
        program, items, tables = self.program, self.program.items, self.work.arrays
        for index in range(len(items.tile)):
            tile = items.tile[index]
            row, n_rows = int(program.tile_row[tile]), int(program.tile_rows[tile])
            start, stop = int(items.start[index]), int(items.stop[index])
            if start == stop:
                continue
            base = int(items.query[index])
            mask = None
            if stop > items.seen[index]:
                at = tables["query_at"][base : base + n_rows]
                distance = at[:, None] - tables["key_at"][None, start:stop]
                mask = additive_mask((distance < 0) | (distance >= self.work.window), query.dtype)
            slots = tables["slots"][start:stop]
            in_a_row = slots[-1] - slots[0] == len(slots) - 1 and bool((np.diff(slots) == 1).all())
            where = slice(slots[0], slots[-1] + 1) if in_a_row else torch.from_numpy(slots)
            part, part_lse = fused_grouped(
                query[base : base + n_rows], keys[where], values[where], scale, mask=mask
            )
            written = slice(row, row + n_rows)
            merge_into(out[written], lse[written], part, part_lse)
