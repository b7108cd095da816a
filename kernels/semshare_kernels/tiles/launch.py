"""Runs a tile program on a device. Needs Triton."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import triton
from torch import Tensor

from semshare_kernels.device import current_device_of
from semshare_kernels.key_table import Index
from semshare_kernels.merge.gpu import merge_states
from semshare_kernels.rotary.rotation import Rotation
from semshare_kernels.shape import AttentionShape
from semshare_kernels.tiles.configs import MAX_REGISTERS, TileConfig
from semshare_kernels.tiles.program import NO_WINDOW, TileProgram
from semshare_kernels.tiles.triton_kernel import attend_tiles

_TILES_A_UNIT = 4  # of a multiprocessor: a few, since tiles differ in length
_MIN_PART_BLOCKS = 4  # blocks of keys below which merging costs more than it spreads


def product_precision(dtype: torch.dtype) -> str:
    """How the kernels multiply: float32 in three parts on matrix units, nearly exactly."""
    return "tf32x3" if dtype == torch.float32 else "tf32"


def keys_a_part(total_keys: int, config: TileConfig, shape: AttentionShape) -> int:
    """Most keys a tile walks over, so that there are tiles enough to fill the device.

    Args:
        total_keys: of all tiles together.
        config: block sizes.
        shape: of the attention, with the device.

    """
    units = 1
    if shape.device.type == "cuda":
        units = torch.cuda.get_device_properties(shape.device).multi_processor_count
    wanted = total_keys * shape.kv_heads / (units * _TILES_A_UNIT)
    blocks = max(int(-(-wanted // config.block_n)), _MIN_PART_BLOCKS)
    return blocks * config.block_n


@dataclass(frozen=True, slots=True, eq=False)
class Tiles:
    """A tile program with its tables, on the device that runs it."""

    config: TileConfig
    program: TileProgram
    arrays: dict[str, Tensor]  # int64, named as the kernel names them
    merged_from: tuple[Tensor, Tensor] | None  # offsets and parts, where results are partial
    first_turned: int
    window: int

    @staticmethod
    def on(
        device: torch.device,
        config: TileConfig,
        program: TileProgram,
        *,
        query_at: Index,
        slots: Index,
        key_at: Index,
        first_turned: int,
        window: int | None,
    ) -> Tiles:
        """Copy a program and its tables to a device.

        Args:
            device: where queries, keys and values are.
            config: block sizes; `block_m` holds every tile's rows.
            program: what each tile walks over.
            query_at: `[n_query_rows]` positions the query rows are compared at.
            slots: `[n_keys]` of the pool.
            key_at: `[n_keys]` positions the keys are compared at.
            first_turned: keys from here on are turned as they are loaded.
            window: sliding window, tokens; None for full attention.

        """

        def to_device(array: Index) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(array, dtype=np.int64)).to(device)

        items = program.items
        arrays = {
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
        }
        merged_from = None
        if program.merge is not None:
            merged_from = (to_device(program.merge.offsets), to_device(program.merge.parts))
        return Tiles(
            config=config,
            program=program,
            arrays={name: to_device(array) for name, array in arrays.items()},
            merged_from=merged_from,
            first_turned=first_turned,
            window=NO_WINDOW if window is None else window,
        )

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
            query: `[n_query_rows, heads, d]`, contiguous.
            keys, values: `[n_slots, kv_heads, d]` of the pool, contiguous.
            scale: of the dot products.
            turn: of the keys from `first_turned` on, `[n_turned, r / 2]`; None if all lie right.

        Returns:
            out `[n_rows, heads, d]` in the queries' dtype and lse `[n_rows, heads]` float32.

        """
        heads, d = query.shape[1:]
        written = self.program.n_written
        partial = self.merged_from is not None
        out = query.new_empty((written, heads, d), dtype=torch.float32 if partial else query.dtype)
        lse = query.new_empty((written, heads), dtype=torch.float32)
        with current_device_of(query):
            self._launch(query, keys, values, out, lse, scale, turn)
        if self.merged_from is None:
            return out, lse
        merged, lse = merge_states(out, lse, *self.merged_from)
        return merged.to(query.dtype), lse

    def _launch(
        self,
        query: Tensor,
        keys: Tensor,
        values: Tensor,
        out: Tensor,
        lse: Tensor,
        scale: float,
        turn: Rotation | None,
    ) -> None:
        heads, d = query.shape[1:]
        kv_heads = keys.shape[1]
        unused = lse  # in the place of tables that are not read
        attend_tiles[(len(self.program.tile_rows), kv_heads)](
            query=query,
            keys=keys,
            values=values,
            cos=unused if turn is None else turn.cos,
            sin=unused if turn is None else turn.sin,
            out=out,
            lse=lse,
            **self.arrays,
            first_turned=self.first_turned,
            window=self.window,
            scale=scale,
            HEADS=heads,
            KV_HEADS=kv_heads,
            D=d,
            BLOCK_D=triton.next_power_of_2(d),
            CHUNK_D=min(triton.next_power_of_2(d), self.config.chunk_d),
            ROPE_D=2 if turn is None else 2 * turn.cos.shape[1],
            BLOCK_M=self.config.block_m,
            BLOCK_N=self.config.block_n,
            TURNS=turn is not None,
            PRECISION=product_precision(query.dtype),
            num_warps=self.config.warps,
            num_stages=self.config.stages,
            maxnreg=MAX_REGISTERS,
        )
