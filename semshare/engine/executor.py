"""Runs a model's layers on chosen rows over a sequence's mixed KV. Decides nothing.

Prefill, decode, scoring and recording of attention are the same call: some token ids at some
positions, each layer's keys and values written into the sequence's own slots, attention over all
of its segments.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from semshare.engine.adapter import NO_ROPE, ModelAdapter
from semshare.kv.pool import KVPool
from semshare.kv.sequence import KVSequence, Layout, Segment
from semshare.planning.deviation import keep_most_deviating
from semshare.types import DeviationSchedule, Scores
from semshare_kernels import (
    AttentionPlan,
    apply_rotary,
    attention_mass,
    mixed_attention,
    plan_attention,
    realign_keys,
)

Rope = dict[str, tuple[Tensor, Tensor]]  # rope kind → cos, sin


@dataclass(slots=True)
class AttentionRecord:
    """Attention that the rows of some forward calls paid to each position, over all layers.

    Rows before `first_position` are not counted.
    """

    first_position: int = 0
    mass: Scores = field(default_factory=lambda: np.zeros(0, dtype=np.float32))  # [length]

    def add(self, positions: NDArray[np.int64], mass: Tensor) -> None:
        """Add `mass` `[n]` float32 of the keys at `positions` `[n]`."""
        end = int(positions[-1]) + 1
        if end > len(self.mass):
            self.mass = np.pad(self.mass, (0, end - len(self.mass)))
        self.mass[positions] += mass.cpu().numpy()

    def upto(self, n: int) -> Scores:
        """`[n]` the attention of the first `n` positions."""
        return np.pad(self.mass, (0, max(n - len(self.mass), 0)))[:n]


@dataclass(frozen=True, slots=True)
class ForwardResult:
    """What one forward call made."""

    logits: Tensor  # [1 or n_rows, vocab] float32
    rows_computed: int  # (row, layer) pairs that ran


class Executor:
    """A model and the pool its KV lies in."""

    def __init__(self, adapter: ModelAdapter, pool: KVPool) -> None:
        self.adapter = adapter
        self.pool = pool

    def load(self, sequence: KVSequence, layout: Layout) -> None:
        """Copy a layout's copied tokens into the sequence's own slots, keys re-aligned."""
        if len(layout.copied) == 0:
            return
        source = self._index(layout.copied_slots)
        target = self._index(sequence.own_slots(layout.copied))
        moved = bool(layout.copied_shift.any())
        rotations = self.adapter.shift_rotation(torch.from_numpy(layout.copied_shift))
        for index, kind in enumerate(self.adapter.rope_kinds):
            keys = self.pool.keys[index].index_select(0, source)
            if moved and kind != NO_ROPE:
                keys = realign_keys(keys, *rotations[kind])
            self.pool.keys[index].index_copy_(0, target, keys)
            values = self.pool.values[index].index_select(0, source)
            self.pool.values[index].index_copy_(0, target, values)

    def forward(
        self,
        sequence: KVSequence,
        ids: NDArray[np.integer],
        positions: NDArray[np.int64],
        *,
        all_logits: bool = False,
        deviation: DeviationSchedule | None = None,
        record: AttentionRecord | None = None,
    ) -> ForwardResult:
        """Compute tokens at their positions, in every layer, writing their KV.

        Args:
            sequence: holds all KV that the rows may see; `positions` are own tokens of it.
            ids: `[n_rows]`.
            positions: `[n_rows]` ascending.
            all_logits: of all rows instead of the last one.
            deviation: lets the row set shrink with depth, by its own rule.
            record: adds the attention that these rows pay.

        """
        segments = sequence.segments()
        rows = _Rows(self.adapter, segments, positions)
        hidden = self.adapter.embed(torch.from_numpy(ids.astype(np.int64)).to(self.adapter.device))
        slots = self._index(sequence.own_slots(positions))
        computed = 0
        for index in range(self.adapter.n_layers):
            computed += len(hidden)
            q, k, v = self.adapter.attention_inputs(index, hidden)
            k = rows.rotate(k, self.adapter.rope_kinds[index], shift=0)
            layer_keys, layer_values = self.pool.keys[index], self.pool.values[index]
            if deviation is not None:
                kept = keep_most_deviating(
                    deviation, index, rows.positions, k, v, layer_keys[slots], layer_values[slots]
                )
                if kept is not None:
                    hidden, q, k, v, slots = (t[kept] for t in (hidden, q, k, v, slots))
                    rows = _Rows(self.adapter, segments, rows.positions[kept.cpu().numpy()])
            layer_keys.index_copy_(0, slots, k)
            layer_values.index_copy_(0, slots, v)
            attended = self._attend(index, rows, q, record)
            hidden = self.adapter.layer_output(index, hidden, attended)
        wanted = hidden if all_logits else hidden[-1:]
        return ForwardResult(self.adapter.logits(wanted), computed)

    def _attend(self, index: int, rows: _Rows, q: Tensor, record: AttentionRecord | None) -> Tensor:
        kind = self.adapter.rope_kinds[index]
        by_shift = {shift: rows.rotate(q, kind, shift) for shift in rows.shifts}
        queries = [by_shift[segment.shift] for segment in rows.segments]
        keys = [_slice(self.pool.keys[index], segment) for segment in rows.segments]
        values = [_slice(self.pool.values[index], segment) for segment in rows.segments]
        plan = rows.attention_plan(self.adapter.windows[index])
        out, lse = mixed_attention(plan, queries, keys, values, self.adapter.scale)
        if record is not None:
            first = int(np.searchsorted(rows.positions, record.first_position))
            mass = attention_mass(plan, queries, keys, lse, self.adapter.scale, first_query=first)
            for segment, part in zip(rows.segments, mass, strict=True):
                record.add(segment.positions, part)
        return out

    def _index(self, slots: NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(slots).to(self.adapter.device)


class _Rows:
    """What depends on the rows' positions alone and is the same in every layer."""

    def __init__(
        self, adapter: ModelAdapter, segments: list[Segment], positions: NDArray[np.int64]
    ) -> None:
        self.positions = positions
        last = positions[-1]
        self.segments = [segment for segment in segments if segment.positions[0] <= last]
        self.shifts = sorted({segment.shift for segment in self.segments} | {0})
        at = torch.from_numpy(positions).to(adapter.device)
        self._rope: dict[int, Rope] = {shift: adapter.rope(at - shift) for shift in self.shifts}
        self._adapter = adapter
        self._plans: dict[int | None, AttentionPlan] = {}

    def rotate(self, x: Tensor, kind: str, shift: int) -> Tensor:
        """RoPE of `x` `[n, heads, d]` as if each row stood `shift` positions earlier."""
        return x if kind == NO_ROPE else apply_rotary(x, *self._rope[shift][kind])

    def attention_plan(self, window: int | None) -> AttentionPlan:
        """The blocks for layers with this sliding window."""
        if window not in self._plans:
            self._plans[window] = plan_attention(
                self.positions,
                [segment.positions for segment in self.segments],
                window=window,
                dtype=self._adapter.dtype,
                device=self._adapter.device,
            )
        return self._plans[window]


def _slice(layer: Tensor, segment: Segment) -> Tensor:
    return layer[segment.slot_start : segment.slot_start + len(segment)]
