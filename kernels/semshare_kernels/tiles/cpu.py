"""Runs a tile program on a CPU: in C, or by torch's fused attention where that is faster."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from semshare_kernels import native
from semshare_kernels.fused import additive_mask, fused_attention
from semshare_kernels.key_table import Index, in_a_row, rows_at
from semshare_kernels.merge.cpu import merge_into, merge_states
from semshare_kernels.rotary.rotation import Rotation, rotated
from semshare_kernels.shape import AttentionShape
from semshare_kernels.tiles.program import NO_WINDOW, TileProgram

# Tiles of so few rows × heads of a group read all heads of a token in turn, at the memory's speed.
FEW_ROWS = 4
# Rows × heads of a group in a tile that torch runs: its products are faster with many.
TORCH_ROWS = 512
# Keys that torch reads at once, if they don't lie in a row: gathered, they stay in the cache.
TORCH_KEYS = 1024
# Queries and sums that a task keeps, bytes: well inside a second-level cache.
STATE_BYTES = 1 << 16
# Tasks a thread, so that all are done at about the same time.
TASKS_A_THREAD = 8
# Fewer keys are not worth a partial result of their own.
MIN_PART_KEYS = 256


def runs_in_torch(shape: AttentionShape) -> bool:
    """Whether torch runs the tiles with many rows.

    Where there is no compiled loop for them, and where torch multiplies in AMX: in 16 bits that has
    16 times the rate of the float32 products that the loop makes.
    """
    return not native.attends(shape) or multiplies_in_amx(shape.dtype)


@cache
def multiplies_in_amx(dtype: torch.dtype) -> bool:
    """Whether the CPU has matrix instructions for this type."""
    name = {torch.bfloat16: "amx_bf16", torch.float16: "amx_fp16"}.get(dtype)
    return name is not None and bool(torch.cpu.get_capabilities().get(name))


def rows_a_tile(shape: AttentionShape) -> int:
    """Query rows of a tile, whose heads of a group are rows of its products.

    As many as there can be: keys are read once for all of them.
    """
    most = TORCH_ROWS if runs_in_torch(shape) else native.MAX_ROWS
    return max(most // shape.group, 1)


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

    work: native.TileWork  # what runs in C
    in_torch: Index  # tiles that torch runs
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
        first_turned: int,
        window: int | None,
    ) -> CpuTiles:
        """Tables of a program; arguments as those of `semshare_kernels.tiles.launch.Tiles.on`."""
        few_rows = FEW_ROWS if first_turned == len(slots) else 0
        rows = program.tile_rows * shape.group
        in_torch = np.zeros(len(rows), dtype=np.bool_)
        if runs_in_torch(shape):
            in_torch = (rows > few_rows) | (not native.attends(shape))
        in_torch |= rows > native.MAX_ROWS
        span = heads_a_task(program.tile_rows, shape)
        tasks = np.where(in_torch, 0, -(-shape.kv_heads // span))
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
            first_turned=first_turned,
            few_rows=few_rows,
        )
        merged_from = None
        if program.merge is not None:
            merge = program.merge
            merged_from = (torch.from_numpy(merge.offsets), torch.from_numpy(merge.parts))
        return CpuTiles(work, np.flatnonzero(in_torch), program, merged_from)

    def attend(
        self,
        query: Tensor,
        keys: Tensor,
        values: Tensor,
        scale: float,
        turn: Rotation | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Run all tiles.

        Args:
            query: `[n_query_rows, heads, d]`.
            keys, values: `[n_slots, kv_heads, d]` of the pool, contiguous.
            scale: of the dot products.
            turn: of the keys from `first_turned` on, `[n_turned, r / 2]`; None if all lie right.

        Returns:
            out `[n_rows, heads, d]` in the queries' dtype and lse `[n_rows, heads]` float32.

        """
        _, heads, d = query.shape
        out = query.new_empty((self.program.n_written, heads, d), dtype=torch.float32)
        lse = out.new_empty((self.program.n_written, heads))
        if self.work.n_tasks:
            native.attend_tiles(self.work, query, keys, values, out, lse, scale, turn)
        for tile in self.in_torch:
            row, n_rows = int(self.program.tile_row[tile]), int(self.program.tile_rows[tile])
            written = slice(row, row + n_rows)
            out[written], lse[written] = 0.0, -torch.inf
            for item in range(*self.program.tile_items[tile : tile + 2]):
                self._attend_item(
                    item, query, keys, values, out[written], lse[written], scale, turn
                )
        if self.merged_from is not None:
            out, lse = merge_states(out, lse, *self.merged_from)
        return out.to(query.dtype), lse

    def _attend_item(
        self,
        item: int,
        query: Tensor,
        keys: Tensor,
        values: Tensor,
        out: Tensor,
        lse: Tensor,
        scale: float,
        turn: Rotation | None,
    ) -> None:
        """Merge one item into its tile's `out` and `lse`, by torch."""
        items, tables, first_turned = self.program.items, self.work.arrays, self.work.first_turned
        rows = slice(int(items.query[item]), int(items.query[item]) + len(out))
        # What all rows see needs no mask.
        bounds = [int(items.start[item]), int(items.stop[item])]
        bounds.insert(1, min(max(int(items.seen[item]), bounds[0]), bounds[1]))
        for low, high in pairwise(bounds):
            step = high - low if in_a_row(tables["slots"][low:high]) else TORCH_KEYS
            for start in range(low, high, max(step, 1)):
                part = slice(start, min(start + step, high))
                key = rows_at(keys, tables["slots"][part])
                if turn is not None and part.start >= first_turned:
                    key = rotated(
                        key, turn.part(slice(part.start - first_turned, part.stop - first_turned))
                    )
                mask = None
                if part.stop > items.seen[item]:
                    distance = tables["query_at"][rows, None] - tables["key_at"][None, part]
                    hidden = (distance < 0) | (distance >= self.work.window)
                    mask = additive_mask(hidden, query.dtype)
                value = rows_at(values, tables["slots"][part])
                merge_into(out, lse, *fused_attention(query[rows], key, value, scale, mask=mask))
