"""`semshare bench kernels`: the other ops, each against what one would do without it."""

from __future__ import annotations

from typing import Any

import faiss
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from semshare.evaluation.bench_decode import WrongResult, in_turns
from semshare.evaluation.environment import machine, versions
from semshare.evaluation.progress import progress_bar
from semshare_kernels import (
    AttentionShape,
    KeyTable,
    Rotation,
    apply_rotary,
    few_rows_linear,
    mixed_attention,
    nearest_codes,
    plan_mixed,
    realign_keys,
    simhash,
    simhash_planes,
)
from semshare_kernels.rotary import rotated

# The bundled model's attention.
_SHAPE = AttentionShape(9, 3, 64, torch.float32, torch.device("cpu"))
_LAYERS = 30
_LINEARS = (  # outputs and inputs of a layer's projections, and of the head
    *((576, 576), (192, 576), (192, 576), (576, 576)),
    *((1536, 576), (1536, 576), (576, 1536)),
)
_HEAD = (49_152, 576)
_ROWS = (1, 4, 8, 16, 32, 64)
_TOKENS, _QUERIES, _SEGMENTS = 5000, 500, 40
_BITS, _DIM = 256, 128
_LIMIT = 1e-4  # maximum error in float32, over rotations by up to thousands of positions


def run_kernels(*, repeats: int) -> dict[str, Any]:
    """Time mixed prefill, token matching, re-alignment and products of few rows.

    Args:
        repeats: timed runs of each side, in turns; medians are compared.

    """
    with progress_bar("kernels", 4, enabled=True) as (note, advance):
        note("mixed prefill")
        mixed = _mixed(repeats)
        advance("token matching")
        matching = _matching(repeats)
        advance("re-alignment")
        realign = _realign(repeats)
        advance("products of few rows")
        linear = _linear(repeats)
        advance("")
    return {
        "mixed_prefill": mixed,
        "token_matching": matching,
        "realign": realign,
        "linear": linear,
        "machine": machine(),
        "versions": versions(),
    }


def _rotation(positions: np.ndarray) -> Rotation:
    inv_freq = 100_000.0 ** -(np.arange(0, _SHAPE.head_dim, 2) / _SHAPE.head_dim)
    angles = positions[:, None] * inv_freq
    return Rotation(
        torch.from_numpy(np.cos(angles)).float(), torch.from_numpy(np.sin(angles)).float()
    )


def _mixed(repeats: int) -> dict[str, Any]:
    """Scattered queries over reused segments, against dense attention over the moved sequence."""
    rng = np.random.default_rng(0)
    positions = np.arange(_TOKENS)
    fresh = np.sort(rng.choice(_TOKENS, _QUERIES, replace=False))
    segment = positions * _SEGMENTS // _TOKENS
    shifts = rng.integers(-2000, 2000, _SEGMENTS)[segment]
    shifts[fresh] = 0
    # Each segment lies somewhere in the pool, with gaps where its tokens are fresh.
    start = rng.permutation(_SEGMENTS + 1) * 2 * (_TOKENS // _SEGMENTS + 1)
    slots = start[segment] + positions % (_TOKENS // _SEGMENTS)
    slots[fresh] = 4 * _TOKENS + np.arange(_QUERIES)
    table = KeyTable(slots, positions, shifts)
    generator = torch.Generator().manual_seed(0)
    keys, values = (
        torch.randn(5 * _TOKENS, _SHAPE.kv_heads, _SHAPE.head_dim, generator=generator)
        for _ in range(2)
    )
    query = torch.randn(_QUERIES, _SHAPE.heads, _SHAPE.head_dim, generator=generator)
    plan = plan_mixed(fresh, table, window=None, shape=_SHAPE)
    sets = [_rotation(fresh - shift) for shift in plan.shifts]
    cos, sin = (
        torch.stack([getattr(one, part) for one in sets]).repeat(1, 1, 2) for part in ("cos", "sin")
    )
    turn = _rotation(plan.turned_shifts)
    upright = _rotation(fresh)
    order, rotation = torch.from_numpy(table.slots), _rotation(table.shifts)
    mask = torch.from_numpy(positions[None] <= fresh[:, None])
    scale = _SHAPE.head_dim**-0.5

    def queries() -> Tensor:
        return apply_rotary(query, cos, sin)

    def ours() -> Tensor:
        return mixed_attention(plan, queries(), keys, values, scale, turn)[0]

    def dense() -> Tensor:
        k, v = rotated(keys[order], rotation), values[order]
        out = torch.nn.functional.scaled_dot_product_attention(
            rotated(query, upright).transpose(0, 1)[None],
            k.transpose(0, 1)[None],
            v.transpose(0, 1)[None],
            attn_mask=mask,
            scale=scale,
            enable_gqa=True,
        )
        return out[0].transpose(0, 1)

    error = float((ours() - dense()).abs().max())
    _check("mixed prefill", error, _LIMIT)
    seconds = in_turns((ours, dense), repeats)
    gathered = 2 * _TOKENS * _SHAPE.kv_heads * _SHAPE.head_dim
    return {
        "queries": _QUERIES,
        "keys": _TOKENS,
        "segments": _SEGMENTS,
        "speedup": round(seconds[1] / seconds[0], 2),
        "mixed_s": round(seconds[0], 6),
        "dense_s": round(seconds[1], 6),
        "largest_temporary": round(queries().numel() / gathered, 3),  # of the gathered KV
        "max_error": error,
    }


def _matching(repeats: int) -> dict[str, Any]:
    """Codes of tokens and the nearest donor token for each, against FAISS on the same codes."""
    generator = torch.Generator().manual_seed(0)
    donor = torch.randn(_TOKENS, _DIM, generator=generator)
    target = donor + 0.5 * torch.randn(_TOKENS, _DIM, generator=generator)
    planes = simhash_planes(_DIM, _BITS)
    codes, candidates = simhash(target, planes), simhash(donor, planes)
    centre = torch.arange(_TOKENS)

    def encode() -> Tensor:
        return simhash(target, planes)

    def ours() -> Tensor:
        return nearest_codes(codes, candidates, centre, _TOKENS)

    index = faiss.IndexBinaryFlat(_BITS)
    index.add(candidates.numpy().view(np.uint8))

    def search() -> np.ndarray:
        distances: np.ndarray = index.search(codes.numpy().view(np.uint8), 1)[0]
        return distances

    found = candidates[ours()[:, 0]]
    differing = np.bitwise_count((codes ^ found).numpy().view(np.uint64)).sum(axis=1)
    _check("token matching", float(np.abs(differing - search()[:, 0]).max()), 0.0)
    encode_s, ours_s, faiss_s = in_turns((encode, ours, search), repeats)
    return {
        "tokens": _TOKENS,
        "bits": _BITS,
        "speedup": round(faiss_s / ours_s, 2),
        "encode_s": round(encode_s, 6),
        "top1_s": round(ours_s, 6),
        "faiss_top1_s": round(faiss_s, 6),
    }


def _realign(repeats: int) -> dict[str, Any]:
    """Keys of all layers moved within the pool, against copying as many bytes."""
    rng = np.random.default_rng(0)
    slots = torch.from_numpy(rng.permutation(2 * _TOKENS))
    source, target = slots[:_TOKENS].sort().values, slots[_TOKENS:].sort().values
    pools = [torch.randn(2 * _TOKENS, _SHAPE.kv_heads, _SHAPE.head_dim) for _ in range(_LAYERS)]
    shifts = rng.integers(-2000, 2000, _TOKENS)
    rotation = _rotation(shifts)
    before = pools[0][source]
    realign_keys(pools[0], source, target, rotation)
    _check(
        "re-alignment",
        float((pools[0][target] - rotated(before, rotation)).abs().max()),
        1e-6,
    )
    blocks = [(pool[:_TOKENS].clone(), torch.empty_like(pool[:_TOKENS])) for pool in pools]

    def ours() -> None:
        for pool in pools:
            realign_keys(pool, source, target, rotation)

    def copy() -> None:
        for block, other in blocks:
            other.copy_(block)

    ours_s, copy_s = in_turns((ours, copy), repeats)
    return {
        "tokens": _TOKENS,
        "layers": _LAYERS,
        "copy_fraction": round(copy_s / ours_s, 3),
        "realign_s": round(ours_s, 6),
        "copy_s": round(copy_s, 6),
        "gigabytes_per_s": round(2 * _LAYERS * before.nbytes / ours_s / 1e9, 2),
    }


def _linear(repeats: int) -> list[dict[str, Any]]:
    """A decode step's products, as torch makes them and as they are made for few rows.

    Each layer has weights of its own, half a gigabyte in all, which no cache keeps from one step to
    the next.
    """
    generator = torch.Generator().manual_seed(0)
    weights = [
        torch.randn(shape, generator=generator) * shape[1] ** -0.5
        for shape in (*_LINEARS * _LAYERS, _HEAD)
    ]
    rows = []
    for n in _ROWS:
        inputs = {k: torch.randn(n, k, generator=generator) for _, k in _LINEARS}

        pairs = [(inputs[weight.shape[1]], weight) for weight in weights]

        def ours(pairs: list[tuple[Tensor, Tensor]] = pairs) -> None:
            for x, weight in pairs:
                few_rows_linear(x, weight)

        def by_torch(pairs: list[tuple[Tensor, Tensor]] = pairs) -> None:
            for x, weight in pairs:
                functional.linear(x, weight)

        error = max(
            float((few_rows_linear(x, weight) - functional.linear(x, weight)).abs().max())
            for x, weight in pairs
        )
        _check(f"products of {n} rows", error, _LIMIT)
        ours_s, torch_s = in_turns((ours, by_torch), repeats)
        rows.append(
            {
                "rows": n,
                "speedup": round(torch_s / ours_s, 2),
                "ours_s": round(ours_s, 6),
                "torch_s": round(torch_s, 6),
                "max_error": error,
            }
        )
    return rows


def _check(what: str, error: float, limit: float) -> None:
    if not error <= limit:
        raise WrongResult(f"{what} is off by {error:.2g}: at most {limit:.2g} is rounding")
