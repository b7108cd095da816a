"""Runs a model's layers on chosen rows over mixed KV. Decides nothing.

One pass takes rows of any number of sequences (`semshare.engine.rows`): the model's own modules see
all of them as one batch, so that its weights are read once; each writes its keys and values into
its own slots and attends to its own sequences.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from semshare.engine.adapter import AS_TRANSFORMERS, Linears, ModelAdapter
from semshare.engine.rows import (
    AttentionRecord,
    DecodeRows,
    PreparedRows,
    PromptRows,
    Rows,
    rotations,
)
from semshare.kv.compressed import CompressedView
from semshare.kv.pool import KVPool
from semshare.kv.sequence import KVSequence, Layout
from semshare_kernels import few_rows_linears, native, realign_keys, write_slots


@dataclass(frozen=True, slots=True)
class ForwardResult:
    """What a pass made of some rows."""

    logits: Tensor  # [n_logits, vocab] float32
    rows_computed: int  # (row, layer) pairs; a row counts in the layers that it leaves


class Executor:
    """A model and the pool its KV lies in.

    Args:
        adapter: the model.
        pool: its KV.
        compressed: reads what lies in the pool in int8; needed where anything does.

    """

    def __init__(
        self, adapter: ModelAdapter, pool: KVPool, compressed: CompressedView | None = None
    ) -> None:
        self.adapter = adapter
        self.pool = pool
        self._compressed = compressed
        if adapter.device.type == "cpu":
            native.library()  # compiled on its first use ever: not while a request waits

    def load(self, sequence: KVSequence, layout: Layout) -> None:
        """Copy a layout's copied tokens into the sequence's own slots, keys re-aligned."""
        if len(layout.copied) == 0:
            return
        is_plain = layout.copied_slots < self.pool.n_slots
        self._load_plain(sequence, layout, np.flatnonzero(is_plain))
        self._load_compressed(sequence, layout, np.flatnonzero(~is_plain))

    def _load_plain(self, sequence: KVSequence, layout: Layout, which: NDArray[np.int64]) -> None:
        source = self._index(layout.copied_slots[which])
        target = self._index(sequence.own_slots(layout.copied[which]))
        turns = rotations(self.adapter, layout.copied_shift[which])
        for index, kind in enumerate(self.adapter.rope_kinds):
            realign_keys(self.pool.keys[index], source, target, turns.get(kind))
            realign_keys(self.pool.values[index], source, target, None)

    def _load_compressed(
        self, sequence: KVSequence, layout: Layout, which: NDArray[np.int64]
    ) -> None:
        if len(which) == 0:
            return
        if self._compressed is None:
            raise AssertionError("nothing here can read compressed donors")
        source = self._index(layout.copied_slots[which])
        target = self._index(sequence.own_slots(layout.copied[which]))
        turns = rotations(self.adapter, layout.copied_shift[which])
        for index, kind in enumerate(self.adapter.rope_kinds):
            self._compressed.load(index, source, target, turns.get(kind))

    def run(self, several: Sequence[Rows]) -> list[ForwardResult]:
        """Compute rows in every layer, writing their KV.

        No rows of one pass may read what others of the same pass write.
        """
        prepared = [rows.prepare(self.adapter, self.pool) for rows in several]
        computed = [0] * len(several)
        hidden = self.adapter.embed(self._index(np.concatenate([rows.ids for rows in several])))
        linears = AS_TRANSFORMERS
        if not any(rows.begins_the_prompt for rows in several):
            linears = few_rows_linears(hidden)
        for layer in range(self.adapter.n_layers):
            hidden = self._layer(layer, hidden, prepared, linears)
            for index, rows in enumerate(prepared):
                computed[index] += len(rows.slots)
        wanted = [rows.n_logits for rows in several]
        parts = torch.split(hidden, [len(rows.slots) for rows in prepared])
        last = _joined([part[len(part) - n :] for part, n in zip(parts, wanted, strict=True)])
        logits = torch.split(self.adapter.logits(last, linears), wanted)
        return [ForwardResult(*result) for result in zip(logits, computed, strict=True)]

    def _layer(
        self, layer: int, hidden: Tensor, several: Sequence[PreparedRows], linears: Linears
    ) -> Tensor:
        kind = self.adapter.rope_kinds[layer]
        keys, values = self.pool.keys[layer], self.pool.values[layer]
        lengths = [len(rows.slots) for rows in several]
        inputs = [
            torch.split(part, lengths)
            for part in self.adapter.attention_inputs(layer, hidden, linears)
        ]
        rest, attended = [], []
        for rows, before, query, key, value in zip(
            several, torch.split(hidden, lengths), *inputs, strict=True
        ):
            of_rows = before, query, rows.upright(key, kind), value
            kept = rows.kept(layer, *of_rows[2:])
            if kept is not None:
                of_rows = tuple(part[kept] for part in of_rows)
            write_slots(keys, values, self._index(rows.slots), *of_rows[2:])
            rest.append(of_rows[0])
            attended.append(rows.attend(layer, of_rows[1]))
        return self.adapter.layer_output(layer, _joined(rest), _joined(attended), linears)

    def forward(
        self,
        sequence: KVSequence,
        ids: NDArray[np.integer],
        positions: NDArray[np.int64],
        *,
        all_logits: bool = False,
        record: AttentionRecord | None = None,
    ) -> ForwardResult:
        """`run` of `PromptRows` alone, with the logits of the last row or of all."""
        n_logits = len(ids) if all_logits else 1
        (result,) = self.run([PromptRows(sequence, ids, positions, n_logits, record=record)])
        return result

    def decode(
        self,
        sequences: Sequence[KVSequence],
        ids: NDArray[np.integer],
        positions: NDArray[np.int64],
    ) -> Tensor:
        """`run` of `DecodeRows` alone; logits `[n_sequences, vocab]` float32."""
        (result,) = self.run([DecodeRows(sequences, ids, positions)])
        return result.logits

    def _index(self, values: NDArray[np.integer]) -> Tensor:
        return torch.from_numpy(values.astype(np.int64, copy=False)).to(self.adapter.device)


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)
