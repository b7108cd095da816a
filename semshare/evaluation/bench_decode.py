"""`semshare bench decode`: shared-prefix decode against attention over each sequence's own copy."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor

from semshare.errors import SemShareError
from semshare.evaluation.environment import machine, versions
from semshare.evaluation.progress import progress_bar
from semshare_kernels import AttentionShape, KeyTree, decode_attention, plan_decode
from semshare_kernels.decode.cpu import CALL_BYTES, plan_for_cpu
from semshare_kernels.decode.plan import sharing_pays

# Maximum error against attention over each sequence's own copy in the same dtype.
_LIMITS = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
_HEADS, _HEAD_DIM = 32, 128
_NO_SHARING_KEYS = 1024
# Separate copies are made for as many sequences as fit into this; the others read the same ones,
# which have left the cache long before.
_COPY_BYTES = 4 << 30
_CROSSOVER_SHAPES = (
    AttentionShape(9, 3, 64, torch.float32, torch.device("cpu")),  # the bundled model's
    AttentionShape(32, 8, 128, torch.bfloat16, torch.device("cpu")),
)
_CROSSOVER_KEYS = (8, 16, 32, 64, 128, 256)
_CROSSOVER_OWN_KEYS = 64
_NEVER = 1 << 60  # bytes that a tile would cost for sharing never to pay


class WrongResult(SemShareError):
    """A result is not what it is measured against: nothing is printed."""


def run_decode(*, repeats: int) -> dict[str, Any]:
    """Time decode steps at ChunkAttention's shapes (arXiv 2402.15220, table 3).

    Args:
        repeats: timed runs of each side, in turns; medians are compared.

    Returns:
        `rows` of `{heads, d, batch, shared, dtype, speedup}`, with seconds and the maximum error;
        `unshared_ratio`, the speed without any sharing; `gemm_fraction_16k`, what the shared phase
        reaches of a plain matrix product's rate; `crossover`, from how many shared keys on sharing
        pays, as measured and as the cost model has it.

    """
    cases = [
        (dtype, 32, shared)
        for dtype in (torch.bfloat16, torch.float32)
        for shared in (1024, 2048, 4096)
    ]
    cases.append((torch.bfloat16, 64, 16_384))
    rows = []
    with progress_bar("decode", len(cases) + 4, enabled=True) as (note, advance):
        for dtype, batch, shared in cases:
            note(f"{dtype}, {shared} shared")
            rows.append(_measure(dtype, batch, shared, own=1, repeats=repeats))
            advance("")
        unshared = {}
        for dtype in (torch.bfloat16, torch.float32):
            note("nothing shared")
            unshared[_name(dtype)] = _measure(dtype, 32, 0, own=_NO_SHARING_KEYS, repeats=repeats)[
                "speedup"
            ]
            advance("")
        note("matrix product")
        fraction = _gemm_fraction(torch.bfloat16, 64, 16_384, repeats)
        advance("crossover")
        crossover = [
            _crossover(shape, readers, repeats)
            for shape in _CROSSOVER_SHAPES
            for readers in (2, 4, 16)
        ]
        advance("")
    return {
        "rows": rows,
        "unshared_ratio": min(unshared.values()),
        "unshared_by_dtype": unshared,
        "gemm_fraction_16k": fraction,
        "crossover": crossover,
        "machine": machine(),
        "versions": versions(),
    }


def _measure(
    dtype: torch.dtype, batch: int, shared: int, *, own: int, repeats: int
) -> dict[str, Any]:
    """One decode step of `batch` sequences over `shared` common keys and `own` of each."""
    tree, q_pos = _tree(batch, shared, own)
    shape = AttentionShape(_HEADS, _HEADS, _HEAD_DIM, dtype, torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    keys, values = (
        torch.randn(len(tree.slots), _HEADS, _HEAD_DIM, generator=generator).to(dtype)
        for _ in range(2)
    )
    query = torch.randn(batch, _HEADS, _HEAD_DIM, generator=generator).to(dtype)
    plan = plan_decode(q_pos, tree, window=None, shape=shape)
    scale = _HEAD_DIM**-0.5
    rows = query[torch.from_numpy(plan.row_sequence)]
    one_copy = 2 * (shared + own) * _HEADS * _HEAD_DIM * dtype.itemsize
    copied = min(max(_COPY_BYTES // one_copy, 1), batch)
    copies = [_copies(pool, tree, copied) for pool in (keys, values)]  # [copied, heads, n, d]

    def ours() -> Tensor:
        return decode_attention(plan, rows, keys, values, scale)[0]

    def separate() -> Tensor:
        parts = [
            torch.nn.functional.scaled_dot_product_attention(
                part[:, :, None], copies[0][: len(part)], copies[1][: len(part)], scale=scale
            )[:, :, 0]
            for part in torch.split(query, copied)
        ]
        return parts[0]

    error = float((ours()[:copied].float() - separate().float()).abs().max())
    if not error <= _LIMITS[dtype]:
        raise WrongResult(
            f"decode over {shared} shared keys in {_name(dtype)} is off by {error:.2g}: at most "
            f"{_LIMITS[dtype]:.2g} is rounding"
        )
    seconds = in_turns((ours, separate), repeats)
    return {
        "heads": _HEADS,
        "d": _HEAD_DIM,
        "batch": batch,
        "shared": shared,
        "own": own,
        "dtype": _name(dtype),
        "speedup": round(seconds[1] / seconds[0], 2),
        "shared_s": round(seconds[0], 6),
        "separate_s": round(seconds[1], 6),
        "max_error": error,
    }


def _tree(batch: int, shared: int, own: int) -> tuple[KeyTree, np.ndarray]:
    lengths = [shared, *[own] * batch]
    starts = np.concatenate(([0], np.cumsum(lengths))).astype(np.int64)
    stored_at = np.concatenate([np.arange(shared), *[shared + np.arange(own)] * batch])
    path = [np.array([0, 1 + index] if shared else [1 + index]) for index in range(batch)]
    tree = KeyTree(
        np.arange(starts[-1]),
        stored_at.astype(np.int64),
        starts,
        tuple(path),
        tuple(np.zeros(len(nodes), np.int64) for nodes in path),
    )
    return tree, np.full(batch, shared + own - 1)


def _copies(pool: Tensor, tree: KeyTree, sequences: int) -> Tensor:
    """The first sequences' keys `[sequences, heads, n, d]`, as separate caches hold them."""
    copies = []
    for path, shifts in zip(tree.paths[:sequences], tree.shifts, strict=False):
        slots = torch.from_numpy(tree.keys_of(path, shifts).slots)
        copies.append(pool[slots].transpose(0, 1).contiguous())
    return torch.stack(copies)


def _gemm_fraction(dtype: torch.dtype, batch: int, shared: int, repeats: int) -> float:
    """Rate of the shared phase over that of plain products of the same operand shapes."""
    tree, q_pos = _tree(batch, shared, own=1)
    shape = AttentionShape(_HEADS, _HEADS, _HEAD_DIM, dtype, torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    keys, values = (
        torch.randn(len(tree.slots), _HEADS, _HEAD_DIM, generator=generator).to(dtype)
        for _ in range(2)
    )
    plan = plan_decode(q_pos, tree, window=None, shape=shape)
    query = torch.randn(len(plan.row_sequence), _HEADS, _HEAD_DIM, generator=generator).to(dtype)
    left = query[:batch].transpose(0, 1).contiguous()  # [heads, batch, d]
    right = keys[:shared].permute(1, 2, 0).contiguous()  # [heads, d, n]
    weights = torch.randn(_HEADS, batch, shared, generator=generator).to(dtype)
    value = values[:shared].transpose(0, 1).contiguous()

    def products() -> None:
        torch.bmm(left, right)
        torch.bmm(weights, value)

    def phase() -> None:
        decode_attention(plan, query, keys, values, _HEAD_DIM**-0.5)

    plain, ours = in_turns((products, phase), repeats)
    return round(plain / ours, 3)


def _crossover(shape: AttentionShape, readers: int, repeats: int) -> dict[str, Any]:
    """From how many shared keys on it pays to read a node once, measured and predicted."""
    gain, predicted = [], []
    for shared in _CROSSOVER_KEYS:
        tree, q_pos = _tree(readers, shared, _CROSSOVER_OWN_KEYS)
        keys, values = (
            torch.randn(len(tree.slots), shape.kv_heads, shape.head_dim).to(shape.dtype)
            for _ in range(2)
        )
        query = torch.randn(readers, shape.heads, shape.head_dim).to(shape.dtype)

        def step(call_bytes: int) -> Callable[[], object]:
            plan = plan_for_cpu(q_pos, tree, None, shape, call_bytes=call_bytes)  # noqa: B023
            rows = query[torch.from_numpy(plan.row_sequence)]  # noqa: B023
            return lambda: decode_attention(plan, rows, keys, values, 0.1)  # noqa: B023

        shared_s, each_s = in_turns((step(-_NEVER), step(_NEVER)), repeats)
        gain.append(each_s / shared_s)
        pays = sharing_pays(tree, tree.links(), shape, call_bytes=CALL_BYTES)
        predicted.append(bool(pays[0]))
    return {
        "heads": shape.heads,
        "kv_heads": shape.kv_heads,
        "d": shape.head_dim,
        "dtype": _name(shape.dtype),
        "readers": readers,
        "keys": list(_CROSSOVER_KEYS),
        "gain": [round(ratio, 2) for ratio in gain],
        "measured_keys": _first_from_which([ratio >= 1 for ratio in gain]),
        "predicted_keys": _first_from_which(predicted),
    }


def _first_from_which(pays: list[bool]) -> int | None:
    """The fewest keys from which on all pay; None if the most don't."""
    first = None
    for keys, does in zip(reversed(_CROSSOVER_KEYS), reversed(pays), strict=True):
        if not does:
            break
        first = keys
    return first


def in_turns(sides: tuple[Callable[[], object], ...], repeats: int) -> list[float]:
    """Median seconds of each side, run one after the other so that both see the same machine."""
    seconds: list[list[float]] = [[] for _ in sides]
    for _ in range(repeats + 1):
        for side, taken in zip(sides, seconds, strict=True):
            started = time.perf_counter()
            side()
            taken.append(time.perf_counter() - started)
    return [median(taken[1:]) for taken in seconds]  # the first run touches the memory


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
