"""Rows that pass through a model's layers together, and what each of them attends to.

`PromptRows` are some tokens of one sequence: a chunk of a prefill, the tokens that are scored, a
repair. `DecodeRows` are one more token of each of several sequences, whose shared KV is read once.
What does not change from layer to layer (plans of attention, rotations) is made once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from semshare.engine.adapter import NO_ROPE, ModelAdapter
from semshare.kv.arrival import Arrival
from semshare.kv.pool import KVPool
from semshare.kv.sequence import KVSequence, key_tree
from semshare.planning.deviation import keep_most_deviating
from semshare.types import DeviationSchedule, Scores, Slots
from semshare_kernels import (
    DecodePlan,
    KeyTable,
    KeyTree,
    Rotation,
    apply_rotary,
    attention_mass,
    decode_attention,
    mixed_attention,
    plan_decode,
    plan_mixed,
)

_Rope = dict[str, tuple[Tensor, Tensor]]  # cos and sin of each rope kind
# Layers whose attention is planned alike: by their window; where a prompt was cut to what each
# layer retains, every layer by itself.
_Like = tuple[int | None, int | None]


@dataclass(slots=True)
class AttentionRecord:
    """Attention that the rows of some forward calls paid to each position, in each layer.

    Rows before `first_position` are not counted.
    """

    first_position: int = 0
    mass: Scores = field(default_factory=lambda: np.zeros((0, 0), np.float32))  # [layers, length]

    def add(self, layer: int, positions: NDArray[np.int64], mass: Tensor) -> None:
        """Add `mass` `[n]` float32 of the keys at `positions` `[n]`, each at most once."""
        layers, length = self.mass.shape
        missing = max(layer + 1 - layers, 0), max(int(positions.max()) + 1 - length, 0)
        if any(missing):
            self.mass = np.pad(self.mass, [(0, more) for more in missing])
        self.mass[layer, positions] += mass.cpu().numpy()

    def upto(self, n: int) -> Scores:
        """`[n]` the attention of the first `n` positions, summed over the layers."""
        summed = self.mass.sum(axis=0)
        return np.pad(summed, (0, max(n - len(summed), 0)))[:n]


class Rows(Protocol):
    """Rows of one pass."""

    @property
    def ids(self) -> NDArray[np.integer]:
        """`[n]`."""

    @property
    def n_logits(self) -> int:
        """Of how many rows, the last ones, the next token's logits are wanted."""

    @property
    def begins_the_prompt(self) -> bool:
        """Whether nothing is reused before them: then they get transformers' numbers to the bit."""

    def prepare(self, adapter: ModelAdapter, pool: KVPool) -> PreparedRows:
        """What they need in each layer, from the KV as it lies now."""


class PreparedRows(Protocol):
    """Rows on their way through the layers."""

    slots: Slots  # [n] where their KV goes

    def upright(self, key: Tensor, kind: str) -> Tensor:
        """RoPE of `key` `[n, kv_heads, d]` at the rows' positions."""

    def kept(self, layer: int, key: Tensor, value: Tensor) -> Tensor | None:
        """Which rows go on from here, ascending indices; None for all. The others are dropped."""

    def attend(self, layer: int, query: Tensor) -> Tensor:
        """Attention `[n, heads, d]` of the layer, whose new KV is written; `query` is not rotated.

        `layer` ascends from call to call.
        """


@dataclass(frozen=True, slots=True, eq=False)
class PromptRows:
    """Tokens of one sequence, each of which sees what stands before it.

    sequence:   holds all KV that the rows may see; `positions` are own tokens of it.
    ids:        `[n]`.
    positions:  `[n]` ascending.
    n_logits:   of the last rows.
    deviation:  lets the row set shrink with depth, by its own rule.
    record:     adds the attention that these rows pay.
    arrivals:   KV of the sequence that may still be on its way, layer by layer.
    """

    sequence: KVSequence
    ids: NDArray[np.integer]
    positions: NDArray[np.int64]
    n_logits: int = 1
    deviation: DeviationSchedule | None = None
    record: AttentionRecord | None = None
    arrivals: Sequence[Arrival] = ()

    @property
    def begins_the_prompt(self) -> bool:
        """See `Rows`."""
        return int(self.positions[-1]) == len(self.ids) - 1

    def prepare(self, adapter: ModelAdapter, pool: KVPool) -> PreparedRows:
        """See `Rows`."""
        return _PreparedPrompt(adapter, pool, self)


@dataclass(frozen=True, slots=True, eq=False)
class DecodeRows:
    """One token at the end of each of several sequences, which have its slot already."""

    sequences: Sequence[KVSequence]
    ids: NDArray[np.integer]  # [n]
    positions: NDArray[np.int64]  # [n]

    @property
    def n_logits(self) -> int:
        """All rows'."""
        return len(self.ids)

    @property
    def begins_the_prompt(self) -> bool:
        """They end it."""
        return False

    def prepare(self, adapter: ModelAdapter, pool: KVPool) -> PreparedRows:
        """See `Rows`."""
        return _PreparedDecode(adapter, pool, self)


class _PreparedPrompt:
    def __init__(self, adapter: ModelAdapter, pool: KVPool, rows: PromptRows) -> None:
        self._adapter, self._pool, self._rows = adapter, pool, rows
        self._positions = rows.positions
        self.slots = rows.sequence.own_slots(rows.positions)
        self._length = int(rows.positions[-1]) + 1
        self._plan_again()

    def _plan_again(self) -> None:
        self._rope = self._adapter.rope(_index(self._positions, self._adapter))
        self._turns: dict[_Like, _TurnedQueries] = {}

    def upright(self, key: Tensor, kind: str) -> Tensor:
        return key if kind == NO_ROPE else apply_rotary(key, *self._rope[kind])

    def kept(self, layer: int, key: Tensor, value: Tensor) -> Tensor | None:
        if self._rows.deviation is None:
            return None
        slots = _index(self.slots, self._adapter)
        reused = self._pool.keys[layer][slots], self._pool.values[layer][slots]
        kept = keep_most_deviating(
            self._rows.deviation, layer, self._positions, key, value, *reused
        )
        if kept is not None:
            index = kept.cpu().numpy()
            self.slots, self._positions = self.slots[index], self._positions[index]
            self._plan_again()
        return kept

    def attend(self, layer: int, query: Tensor) -> Tensor:
        adapter, record = self._adapter, self._rows.record
        for arrival in self._rows.arrivals:
            arrival.wait(layer + 1)
        kind, window = adapter.rope_kinds[layer], adapter.windows[layer]
        alone = None if self._rows.sequence.retained is None else layer
        if (window, alone) not in self._turns:
            table = self._rows.sequence.key_table(self._length, layer=alone)
            self._turns[window, alone] = _TurnedQueries(adapter, table, self._positions, window)
        work = self._turns[window, alone]
        keys, values = _read_from(self._pool, layer, in_cells=alone is not None)
        queries, turn = work.of(query, kind), work.turn.get(kind)
        out, lse = mixed_attention(work.plan, queries, keys, values, adapter.scale, turn)
        if record is not None:
            first = int(np.searchsorted(self._positions, record.first_position))
            mass = attention_mass(
                work.plan, queries, keys, lse, adapter.scale, turn, first_query=first
            )
            record.add(layer, work.table.positions, mass)
        return out


class _TurnedQueries:
    """A plan of mixed attention, with the rotations that it asks for."""

    def __init__(
        self,
        adapter: ModelAdapter,
        table: KeyTable,
        positions: NDArray[np.int64],
        window: int | None,
    ) -> None:
        self.table = table
        self.plan = plan_mixed(positions, table, window=window, shape=adapter.attention_shape)
        self._rope = adapter.rope(_index(positions - self.plan.shifts[:, None], adapter))
        self.turn = rotations(adapter, self.plan.turned_shifts)

    def of(self, query: Tensor, kind: str) -> Tensor:
        """`[n_shifts, n, heads, d]` as the plan wants them, of `query` `[n, heads, d]`."""
        if kind == NO_ROPE:
            return query.expand(len(self.plan.shifts), *query.shape)
        return apply_rotary(query, *self._rope[kind])


class _PreparedDecode:
    def __init__(self, adapter: ModelAdapter, pool: KVPool, rows: DecodeRows) -> None:
        self._adapter, self._pool, self._positions = adapter, pool, rows.positions
        self.slots = np.concatenate(
            [
                sequence.own_slots(rows.positions[index : index + 1])
                for index, sequence in enumerate(rows.sequences)
            ]
        )
        self._sequences = rows.sequences
        self._in_cells = any(sequence.retained is not None for sequence in rows.sequences)
        self._rope = adapter.rope(_index(rows.positions, adapter))
        self._trees: dict[int | None, KeyTree] = {}  # by layer, or one for all
        self._plans: dict[_Like, tuple[DecodePlan, Tensor, _Rope]] = {}

    def upright(self, key: Tensor, kind: str) -> Tensor:
        return key if kind == NO_ROPE else apply_rotary(key, *self._rope[kind])

    def kept(self, *_: object) -> None:
        return None  # every answer gets its token

    def attend(self, layer: int, query: Tensor) -> Tensor:
        adapter = self._adapter
        kind, window = adapter.rope_kinds[layer], adapter.windows[layer]
        alone = layer if self._in_cells else None
        if alone not in self._trees:
            self._trees[alone] = key_tree(self._sequences, layer=alone)
        if (window, alone) not in self._plans:
            at, tree = self._positions, self._trees[alone]
            plan = plan_decode(at, tree, window=window, shape=adapter.attention_shape)
            turned_for = _index(at[plan.row_sequence] - plan.row_shift, adapter)
            rows = _index(plan.row_sequence, adapter)
            self._plans[window, alone] = plan, rows, adapter.rope(turned_for)
        plan, rows, rope = self._plans[window, alone]
        queries = query.index_select(0, rows)
        if kind != NO_ROPE:
            queries = apply_rotary(queries, *rope[kind])
        keys, values = _read_from(self._pool, layer, in_cells=self._in_cells)
        return decode_attention(plan, queries, keys, values, adapter.scale)[0]


def _read_from(pool: KVPool, layer: int, *, in_cells: bool) -> tuple[Tensor, Tensor]:
    """The keys and values that a layer's slots, or its cells, are indices into."""
    if in_cells:
        return pool.all_keys, pool.all_values
    return pool.keys[layer], pool.values[layer]


def rotations(adapter: ModelAdapter, shifts: NDArray[np.int64]) -> dict[str, Rotation]:
    """By rope kind, what moves keys by `shifts` `[n]`; empty where none moves."""
    return adapter.shift_rotation(torch.from_numpy(shifts)) if shifts.any() else {}


def _index(values: NDArray[np.int64], adapter: ModelAdapter) -> Tensor:
    return torch.from_numpy(values).to(adapter.device)
