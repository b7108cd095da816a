"""Random sequences in poisoned pools, for the tests of the attention ops."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from unittest import mock

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from semshare_kernels import AttentionShape, KeyTable, Rotation
from semshare_kernels.rotary import rotated

CPU = torch.device("cpu")
# Maximum errors: a few roundings of numbers around 1, and outputs that reach about 4.
LIMITS = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}


@contextmanager
def in_torch() -> Iterator[None]:
    """As on a machine without a compiler."""
    with mock.patch("semshare_kernels.native.library", return_value=None):
        yield


@contextmanager
def as_with_amx() -> Iterator[None]:
    """As where torch multiplies in AMX: it runs tiles of many rows, C those of few."""
    with mock.patch("semshare_kernels.tiles.cpu.multiplies_in_amx", return_value=True):
        yield


class Rope:
    """Rotary embedding of the first `r` dimensions; angles are rounded once, at the end."""

    def __init__(self, r: int, base: float = 10_000.0) -> None:
        self._inv_freq = base ** -(np.arange(0, r, 2) / r)

    def rotation(self, positions: NDArray[np.int64]) -> Rotation:
        angles = positions[:, None] * self._inv_freq
        return Rotation(
            torch.from_numpy(np.cos(angles)).float(), torch.from_numpy(np.sin(angles)).float()
        )

    def turned(self, x: Tensor, positions: NDArray[np.int64]) -> Tensor:
        return rotated(x, self.rotation(positions))


def poisoned_pool(
    rng: np.random.Generator, slots: NDArray[np.int64], shape: AttentionShape
) -> tuple[Tensor, Tensor]:
    """Keys and values at `slots`; all other slots, and some past the last one, hold NaN."""
    n_slots = int(slots.max(initial=0)) + 4
    pools = []
    for _ in range(2):
        pool = torch.full((n_slots, shape.kv_heads, shape.head_dim), torch.nan, dtype=shape.dtype)
        content = rng.standard_normal((len(slots), shape.kv_heads, shape.head_dim))
        pool[torch.from_numpy(slots)] = torch.from_numpy(content).to(shape.dtype)
        pools.append(pool)
    return pools[0], pools[1]


def largest_error(got: Tensor, expected: Tensor) -> float:
    """Of finite numbers, where the same ones are infinite."""
    finite = torch.isfinite(expected)
    assert torch.equal(got[~finite].float(), expected[~finite].float())
    assert bool(torch.isfinite(got[finite]).all())
    difference = (got.float() - expected.float())[finite].abs()
    return float(difference.max()) if difference.numel() else 0.0


@dataclass(repr=False)
class MixedCase:
    """Scattered queries over runs of keys with shifts of their own."""

    q_pos: NDArray[np.int64]
    keys_of: KeyTable
    query: Tensor  # [n_q, heads, d], not rotated
    keys: Tensor
    values: Tensor
    window: int | None
    shape: AttentionShape
    rope: Rope | None

    @property
    def scale(self) -> float:
        return float(self.shape.head_dim) ** -0.5

    def queries(self, shifts: NDArray[np.int64]) -> Tensor:
        """`[n_shifts, n_q, heads, d]` as a plan wants them."""
        if self.rope is None:
            return self.query.expand(len(shifts), *self.query.shape)
        turned = [self.rope.turned(self.query.float(), self.q_pos - shift) for shift in shifts]
        return torch.stack(turned).to(self.query.dtype)

    def turn(self, shifts: NDArray[np.int64]) -> Rotation | None:
        """The rotation of keys by `shifts`, as a plan wants it."""
        return None if self.rope is None or not shifts.any() else self.rope.rotation(shifts)


def mixed_case(
    seed: int,
    *,
    n: int,
    query_share: float = 0.3,
    runs: int = 4,
    scattered: bool = False,
    heads: tuple[int, int] = (2, 3),
    head_dim: int = 16,
    window: int | None = None,
    rope: bool = True,
    partial: bool = False,
    dtype: torch.dtype = torch.float32,
) -> MixedCase:
    """`n` tokens in runs that lie anywhere in the pool; some are queries, whose keys are fresh.

    Args:
        seed: of everything random.
        n: keys.
        query_share: of the tokens; at least one is a query.
        runs: cuts of the sequence.
        scattered: slots in no order at all, instead of runs of consecutive ones.
        heads: KV heads, and query heads a KV head.
        head_dim, window, dtype: of the attention.
        rope: whether keys and queries are rotated.
        partial: RoPE turns half of the dimensions only.

    """
    rng = np.random.default_rng(seed)
    positions = np.sort(rng.choice(2 * n, size=n, replace=False)).astype(np.int64)
    cuts = np.sort(rng.choice(n, size=min(runs, n) - 1, replace=False)) if min(runs, n) > 1 else []
    label = np.searchsorted(cuts, np.arange(n), side="right")
    shifts = rng.integers(-40, 40, size=runs)[label]
    is_query = rng.random(n) < query_share
    is_query[rng.integers(n)] = True
    shifts[is_query] = 0
    start = rng.permutation(runs + 1) * 2 * n + 3  # runs lie far apart, in any order
    own = np.where(is_query, runs, label)
    slots = start[own] + np.arange(n)
    if scattered:
        slots = rng.permutation(4 * n)[:n]
    order = np.argsort(own, kind="stable")
    table = KeyTable(slots, positions, shifts.astype(np.int64)).take(order)
    kv_heads, group = heads
    shape = AttentionShape(kv_heads * group, kv_heads, head_dim, dtype, CPU)
    keys, values = poisoned_pool(rng, slots, shape)
    q_pos = positions[is_query]
    query = torch.from_numpy(rng.standard_normal((len(q_pos), shape.heads, head_dim))).to(dtype)
    r = head_dim // 2 // 2 * 2 if partial else head_dim // 2 * 2
    return MixedCase(q_pos, table, query, keys, values, window, shape, Rope(r) if rope else None)
