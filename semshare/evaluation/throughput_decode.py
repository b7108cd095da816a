"""Decode steps over a prefix that all rows share, against a copy of it for each row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from semshare import BenchmarkRefused, SemShare, fidelity
from semshare.engine.adapter import ModelAdapter
from semshare.engine.executor import Executor
from semshare.evaluation.bench_decode import in_turns
from semshare.evaluation.bounds import ROUNDING_KL
from semshare.evaluation.environment import available_bytes
from semshare.kv.pool import KVPool
from semshare.kv.sequence import KVSequence, Layout, lay_out
from semshare.planning.plan import full_plan
from semshare.types import Ids

_CHUNK = 1024  # rows of the prefix that are computed at a time
_NOTHING = np.empty(0, np.int64)
_MATRIX_SIDES = (512, 1024, 2048)


@dataclass(frozen=True, slots=True)
class DecodeSpeed:
    """Median seconds of a step of `batch` rows over `keys` keys each."""

    batch: int
    keys: int
    shared_s: float
    copies_s: float
    kl: float  # of the logits over copies ‖ over the shared prefix, mean nats a row


@torch.inference_mode()
def measure_decode(engine: SemShare, prefix: Ids, batch: int, repeats: int) -> DecodeSpeed:
    """Time the engine's own decode steps, in turns over shared and over separate KV.

    Args:
        engine: whose model runs; the KV lies in a pool of its own, which is freed afterwards.
        prefix: `[n]` ids that all rows begin with.
        batch: rows of a step, each with a token of its own after the prefix.
        repeats: timed steps of each side.

    Raises:
        BenchmarkRefused: the two sides' logits differ by more than rounding, or the copies don't
            fit into the machine's free memory.

    """
    adapter = engine.model
    executor = Executor(adapter, _pool(adapter, len(prefix), batch, repeats + 2))
    first = KVSequence(executor.pool, lay_out(full_plan(prefix)), _NOTHING, room=0)
    for start in range(0, len(prefix), _CHUNK):
        part = prefix[start : start + _CHUNK]
        executor.forward(first, part, np.arange(start, start + len(part)))
    shared = [first.fork(room=repeats + 2) for _ in range(batch)]
    copies = [_copy(executor, first, room=repeats + 2) for _ in range(batch)]
    # Rows must differ, or a mistake in whose KV is read could not show.
    ids = np.arange(batch) * (adapter.vocab_size // batch)

    def step(rows: list[KVSequence]) -> Tensor:
        return executor.decode(rows, ids, np.concatenate([row.append(1) for row in rows]))

    kl = fidelity.kl(step(copies), step(shared))
    limit = ROUNDING_KL[adapter.dtype]
    if not kl <= limit:
        raise BenchmarkRefused(
            f"decode over {len(prefix)} shared tokens is {kl:.2g} nats a row from decode over "
            f"copies of them: at most {limit:.2g} is rounding. No speed is reported."
        )
    shared_s, copies_s = in_turns((lambda: step(shared), lambda: step(copies)), repeats)
    return DecodeSpeed(batch, shared[0].length, shared_s, copies_s, kl)


def _copy(executor: Executor, source: KVSequence, *, room: int) -> KVSequence:
    """A sequence with KV of its own, equal to `source`'s, of which all tokens are own."""
    slots, positions = source.own
    layout = Layout((), positions, positions, slots, np.zeros_like(slots))
    sequence = KVSequence(executor.pool, layout, _NOTHING, room=room)
    executor.load(sequence, layout)
    return sequence


def _pool(adapter: ModelAdapter, prefix: int, batch: int, room: int) -> KVPool:
    """Slots for a prefix, as many copies of it, and the answers over both."""
    page_size = 16
    pages = (batch + 1) * -(-(prefix + room) // page_size) + batch * -(-room // page_size)
    cell = adapter.n_kv_heads * adapter.head_dim * adapter.dtype.itemsize
    wanted = pages * page_size * 2 * adapter.n_layers * cell
    free = available_bytes()
    if wanted > free:
        raise BenchmarkRefused(
            f"{batch} copies of {prefix} tokens take {wanted >> 20} MiB and {free >> 20} MiB are "
            "free: ask for fewer --requests"
        )
    return KVPool(
        n_layers=adapter.n_layers,
        n_kv_heads=adapter.n_kv_heads,
        head_dim=adapter.head_dim,
        dtype=adapter.dtype,
        device=adapter.device,
        budget_bytes=wanted,
        page_size=page_size,
    )


def step_flops(adapter: ModelAdapter, batch: int, keys: int) -> float:
    """Floating-point operations that a decode step can't do without.

    Two for each parameter of a projection and each row; in attention two for each number of a key
    and of a value, for each query head of each row.
    """
    linears = [part for part in adapter.hf_model.modules() if isinstance(part, nn.Linear)]
    parameters = sum(linear.weight.numel() for linear in linears)
    attention = 4 * adapter.n_layers * adapter.n_heads * adapter.head_dim * keys
    return float(batch * (2 * parameters + attention))


def product_rate(dtype: torch.dtype, repeats: int) -> float:
    """Floating-point operations a second of torch's fastest square matrix product here."""

    def product(side: int) -> Callable[[], object]:
        left, right = (torch.randn(side, side).to(dtype) for _ in range(2))
        return lambda: left @ right

    seconds = in_turns(tuple(product(side) for side in _MATRIX_SIDES), repeats)
    return max(2 * side**3 / taken for side, taken in zip(_MATRIX_SIDES, seconds, strict=True))
