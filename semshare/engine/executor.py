"""Runs a model's layers on chosen rows over mixed KV. Decides nothing.

`forward` is prefill, scoring and recording of attention: some token ids at some positions of one
sequence, each layer's keys and values written into its own slots, attention over all of its
segments. `decode` is one more token of each of several sequences, whose shared KV is read once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from semshare.engine.adapter import NO_ROPE, ModelAdapter
from semshare.kv.pool import KVPool
from semshare.kv.sequence import KVSequence, Layout, key_tree
from semshare.planning.deviation import keep_most_deviating
from semshare.types import DeviationSchedule, Scores
from semshare_kernels import (
    DecodePlan,
    KeyTable,
    KeyTree,
    Rotation,
    apply_rotary,
    attention_mass,
    decode_attention,
    few_rows_linears,
    mixed_attention,
    native,
    plan_decode,
    plan_mixed,
    realign_keys,
    write_slots,
)

_Rope = dict[str, tuple[Tensor, Tensor]]  # cos and sin of each rope kind


@dataclass(slots=True)
class AttentionRecord:
    """Attention that the rows of some forward calls paid to each position, over all layers.

    Rows before `first_position` are not counted.
    """

    first_position: int = 0
    mass: Scores = field(default_factory=lambda: np.zeros(0, dtype=np.float32))  # [length]

    def add(self, positions: NDArray[np.int64], mass: Tensor) -> None:
        """Add `mass` `[n]` float32 of the keys at `positions` `[n]`, each at most once."""
        end = int(positions.max()) + 1
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
        if adapter.device.type == "cpu":
            native.library()  # compiled on its first use ever: not while a request waits

    def load(self, sequence: KVSequence, layout: Layout) -> None:
        """Copy a layout's copied tokens into the sequence's own slots, keys re-aligned."""
        if len(layout.copied) == 0:
            return
        source = self._index(layout.copied_slots)
        target = self._index(sequence.own_slots(layout.copied))
        rotations = _rotations(self.adapter, layout.copied_shift)
        for index, kind in enumerate(self.adapter.rope_kinds):
            realign_keys(self.pool.keys[index], source, target, rotations.get(kind))
            realign_keys(self.pool.values[index], source, target, None)

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
        table = sequence.key_table()
        rows = _Rows(self.adapter, table, positions)
        hidden = self._embedded(ids)
        slots = self._index(sequence.own_slots(positions))
        computed = 0
        for index in range(self.adapter.n_layers):
            computed += len(hidden)
            q, k, v = self.adapter.attention_inputs(index, hidden)
            k = rows.upright(k, self.adapter.rope_kinds[index])
            layer_keys, layer_values = self.pool.keys[index], self.pool.values[index]
            if deviation is not None:
                kept = keep_most_deviating(
                    deviation, index, rows.positions, k, v, layer_keys[slots], layer_values[slots]
                )
                if kept is not None:
                    hidden, q, k, v, slots = (t[kept] for t in (hidden, q, k, v, slots))
                    rows = _Rows(self.adapter, table, rows.positions[kept.cpu().numpy()])
            write_slots(layer_keys, layer_values, slots, k, v)
            attended = self._attend(index, rows, q, record)
            hidden = self.adapter.layer_output(index, hidden, attended)
        wanted = hidden if all_logits else hidden[-1:]
        return ForwardResult(self.adapter.logits(wanted), computed)

    def decode(
        self,
        sequences: Sequence[KVSequence],
        ids: NDArray[np.integer],
        positions: NDArray[np.int64],
    ) -> Tensor:
        """Compute one token at the end of each sequence, writing its KV.

        Args:
            sequences: each has the token's slot already.
            ids, positions: `[n_sequences]`.

        Returns:
            Logits `[n_sequences, vocab]` float32.

        """
        step = _DecodeStep(self.adapter, key_tree(sequences), positions)
        hidden = self._embedded(ids)
        linears = few_rows_linears(hidden)
        own = [
            sequence.own_slots(positions[index : index + 1])
            for index, sequence in enumerate(sequences)
        ]
        slots = self._index(np.concatenate(own))
        for index, kind in enumerate(self.adapter.rope_kinds):
            keys, values = self.pool.keys[index], self.pool.values[index]
            q, k, v = self.adapter.attention_inputs(index, hidden, linears)
            write_slots(keys, values, slots, step.upright(k, kind), v)
            plan, queries = step.work(q, self.adapter.windows[index], kind)
            attended, _ = decode_attention(plan, queries, keys, values, self.adapter.scale)
            hidden = self.adapter.layer_output(index, hidden, attended, linears)
        return self.adapter.logits(hidden, linears)

    def _embedded(self, ids: NDArray[np.integer]) -> Tensor:
        return self.adapter.embed(torch.from_numpy(ids.astype(np.int64)).to(self.adapter.device))

    def _attend(self, index: int, rows: _Rows, q: Tensor, record: AttentionRecord | None) -> Tensor:
        kind = self.adapter.rope_kinds[index]
        keys, values = self.pool.keys[index], self.pool.values[index]
        work = rows.work(self.adapter.windows[index])
        queries, turn = work.turned(q, kind), work.turn.get(kind)
        out, lse = mixed_attention(work.plan, queries, keys, values, self.adapter.scale, turn)
        if record is not None:
            first = int(np.searchsorted(rows.positions, record.first_position))
            mass = attention_mass(
                work.plan, queries, keys, lse, self.adapter.scale, turn, first_query=first
            )
            record.add(rows.table.positions, mass)
        return out

    def _index(self, slots: NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(slots).to(self.adapter.device)


class _Rows:
    """What depends on the rows' positions alone and is the same in every layer."""

    def __init__(
        self, adapter: ModelAdapter, table: KeyTable, positions: NDArray[np.int64]
    ) -> None:
        self.positions = positions
        self.table = table
        self._adapter = adapter
        self._rope = adapter.rope(torch.from_numpy(positions).to(adapter.device))
        self._work: dict[int | None, _Work] = {}

    def upright(self, x: Tensor, kind: str) -> Tensor:
        """RoPE of `x` `[n, heads, d]` at the rows' positions."""
        return x if kind == NO_ROPE else apply_rotary(x, *self._rope[kind])

    def work(self, window: int | None) -> _Work:
        """For layers with this sliding window."""
        if window not in self._work:
            self._work[window] = _Work(self._adapter, self.table, self.positions, window)
        return self._work[window]


class _Work:
    """A plan of attention, with the rotations that it asks for."""

    def __init__(
        self,
        adapter: ModelAdapter,
        table: KeyTable,
        positions: NDArray[np.int64],
        window: int | None,
    ) -> None:
        self.plan = plan_mixed(positions, table, window=window, shape=adapter.attention_shape)
        at = torch.from_numpy(positions - self.plan.shifts[:, None])
        self._rope = adapter.rope(at.to(adapter.device))
        self.turn = _rotations(adapter, self.plan.turned_shifts)

    def turned(self, q: Tensor, kind: str) -> Tensor:
        """Queries `[n_shifts, n, heads, d]` as the plan wants them, of `q` `[n, heads, d]`."""
        if kind == NO_ROPE:
            return q.expand(len(self.plan.shifts), *q.shape)
        return apply_rotary(q, *self._rope[kind])


class _DecodeStep:
    """What a decode step needs in each layer and is the same in all of them."""

    def __init__(self, adapter: ModelAdapter, tree: KeyTree, positions: NDArray[np.int64]) -> None:
        self._adapter, self._tree, self._positions = adapter, tree, positions
        self._rope = adapter.rope(torch.from_numpy(positions).to(adapter.device))
        self._plans: dict[int | None, tuple[DecodePlan, Tensor, _Rope]] = {}

    def upright(self, x: Tensor, kind: str) -> Tensor:
        """RoPE of `x` `[n_sequences, heads, d]` at their positions."""
        return x if kind == NO_ROPE else apply_rotary(x, *self._rope[kind])

    def work(self, q: Tensor, window: int | None, kind: str) -> tuple[DecodePlan, Tensor]:
        """The plan for layers with this window, and its queries of `q` `[n, heads, d]`."""
        if window not in self._plans:
            adapter, at = self._adapter, self._positions
            plan = plan_decode(at, self._tree, window=window, shape=adapter.attention_shape)
            turned_for = torch.from_numpy(at[plan.row_sequence] - plan.row_shift)
            rows = torch.from_numpy(plan.row_sequence).to(adapter.device)
            self._plans[window] = plan, rows, adapter.rope(turned_for.to(adapter.device))
        plan, rows, rope = self._plans[window]
        queries = q.index_select(0, rows)
        return plan, queries if kind == NO_ROPE else apply_rotary(queries, *rope[kind])


def _rotations(adapter: ModelAdapter, shifts: NDArray[np.int64]) -> dict[str, Rotation]:
    """By rope kind, what moves keys by `shifts`; empty where none moves."""
    return adapter.shift_rotation(torch.from_numpy(shifts)) if shifts.any() else {}
