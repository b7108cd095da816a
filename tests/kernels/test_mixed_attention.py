"""`mixed_attention` and `attention_mass` against the plain definitions, at the maximum error."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from properties import examples
from torch import Tensor

from semshare_kernels import attention_mass, mixed_attention, plan_attention, reference

# The package exports a function of the module's name.
module = sys.modules["semshare_kernels.mixed_attention"]

FLOAT32 = 2e-6  # a few roundings of numbers around 1
BFLOAT16 = 2e-2  # bfloat16 has 8 bits; outputs reach about 4


@dataclass(repr=False)
class Case:
    """Random segments in a pool whose other slots hold NaN."""

    q_pos: NDArray[np.int64]
    kv_pos: list[NDArray[np.int64]]
    queries: list[Tensor]
    keys: list[Tensor]
    values: list[Tensor]
    window: int | None

    @property
    def scale(self) -> float:
        return self.queries[0].shape[-1] ** -0.5

    def fused(self) -> tuple[Tensor, Tensor]:
        return mixed_attention(self.plan(), self.queries, self.keys, self.values, self.scale)

    def plan(self) -> module.AttentionPlan:
        return plan_attention(
            self.q_pos,
            self.kv_pos,
            window=self.window,
            dtype=self.queries[0].dtype,
            device=torch.device("cpu"),
        )

    def defined(self) -> tuple[Tensor, Tensor]:
        return reference.mixed_attention(
            [q.float() for q in self.queries],
            torch.from_numpy(self.q_pos),
            [k.float() for k in self.keys],
            [v.float() for v in self.values],
            [torch.from_numpy(p) for p in self.kv_pos],
            self.scale,
            self.window,
        )

    def probabilities(self) -> list[Tensor]:
        """For each segment `[n_q, heads, n_k]`, by the definition."""
        q_pos = torch.from_numpy(self.q_pos)
        _, lse = self.defined()
        found = []
        for query, key, positions in zip(self.queries, self.keys, self.kv_pos, strict=True):
            group = query.shape[1] // key.shape[1]
            k = key.float().repeat_interleave(group, dim=1)
            scores = torch.einsum("qhd,khd->qhk", query.float(), k) * self.scale
            seen = reference.visible(q_pos, torch.from_numpy(positions), self.window)
            scores = scores.masked_fill(~seen[:, None], -torch.inf)
            found.append(torch.exp(scores - lse[..., None]))
        return found


def make_case(
    seed: int,
    *,
    n: int,
    query_share: float,
    n_segments: int,
    n_shifts: int,
    kv_heads: int,
    group: int,
    head_dim: int,
    window: int | None,
    dtype: torch.dtype,
) -> Case:
    """Tokens dealt at random to segments; queries are some of the last segment's tokens."""
    rng = np.random.default_rng(seed)
    positions = np.sort(rng.choice(2 * n, size=n, replace=False)).astype(np.int64)
    label = rng.integers(n_segments, size=n)
    is_query = rng.random(n) < query_share
    is_query[rng.integers(n)] = True
    label[is_query] = n_segments - 1  # a query's own key is in the sequence's own slots
    kv_pos = [positions[label == s] for s in range(n_segments)]
    kv_pos = [own for own in kv_pos if len(own)]
    generator = torch.Generator().manual_seed(seed)

    def poisoned() -> tuple[Tensor, list[Tensor]]:
        gap = 3
        slots = sum(len(own) + gap for own in kv_pos) + gap
        pool = torch.full((slots, kv_heads, head_dim), torch.nan, dtype=dtype)
        views, at = [], gap
        for own in kv_pos:
            view = pool[at : at + len(own)]
            view.copy_(torch.randn(view.shape, generator=generator).to(dtype))
            views.append(view)
            at += len(own) + gap
        return pool, views

    q_pos = positions[is_query]
    by_shift = [
        torch.randn(len(q_pos), kv_heads * group, head_dim, generator=generator).to(dtype)
        for _ in range(n_shifts)
    ]
    shift_of = rng.integers(n_shifts, size=len(kv_pos))
    return Case(
        q_pos=q_pos,
        kv_pos=kv_pos,
        queries=[by_shift[s] for s in shift_of],
        keys=poisoned()[1],
        values=poisoned()[1],
        window=window,
    )


cases = st.builds(
    make_case,
    st.integers(0, 2**32 - 1),
    n=st.one_of(st.integers(1, 12), st.integers(13, 90)),
    query_share=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    n_segments=st.integers(1, 5),
    n_shifts=st.integers(1, 3),
    kv_heads=st.integers(1, 3),
    group=st.integers(1, 3),
    head_dim=st.sampled_from([16, 63, 64]),
    window=st.one_of(st.none(), st.integers(1, 120)),
    dtype=st.just(torch.float32),
)


def assert_close(
    case: Case, got: tuple[Tensor, Tensor], out_limit: float, lse_limit: float
) -> None:
    out, lse = got
    expected_out, expected_lse = case.defined()
    assert out.dtype == case.queries[0].dtype
    assert lse.dtype == torch.float32
    assert out.shape == expected_out.shape
    assert lse.shape == expected_lse.shape
    assert float((out.float() - expected_out).abs().max()) <= out_limit
    assert float((lse - expected_lse).abs().max()) <= lse_limit


@contextmanager
def cut_into(block_rows: int) -> Iterator[None]:
    """Small blocks, and unmasked ones however few keys they have, so that small cases have many."""
    with (
        mock.patch.object(module, "BLOCK_ROWS", block_rows),
        mock.patch.object(module, "MIN_UNMASKED_KEYS", max(block_rows // 4, 1)),
        mock.patch.object(module, "FEW_ROWS", 2),
    ):
        yield


@examples(120)
@given(cases, st.sampled_from([1, 3, 8, 128]))
def test_equals_the_definition_in_float32(case: Case, block_rows: int) -> None:
    with cut_into(block_rows):
        assert_close(case, case.fused(), FLOAT32, 2 * FLOAT32)


@examples(60)
@given(cases, st.sampled_from([1, 8, 128]))
def test_equals_the_definition_in_bfloat16(case: Case, block_rows: int) -> None:
    for part in (case.queries, case.keys, case.values):
        part[:] = [tensor.bfloat16() for tensor in part]
    with cut_into(block_rows):
        assert_close(case, case.fused(), BFLOAT16, 2e-4)


@examples(60)
@given(cases, st.sampled_from([1, 8, 128]))
def test_dense_path_equals_the_definition(case: Case, block_rows: int) -> None:
    with (
        cut_into(block_rows),
        mock.patch.object(module, "MAX_SCORES", 100 * block_rows),
        mock.patch.object(module, "_fused_cpu", module._dense),
    ):
        assert_close(case, case.fused(), FLOAT32, 2 * FLOAT32)


@examples(60)
@given(cases, st.sampled_from([1, 8, 128]))
def test_each_visible_pair_is_in_exactly_one_block(case: Case, block_rows: int) -> None:
    with cut_into(block_rows):
        plan = case.plan()
    for segment, positions in enumerate(case.kv_pos):
        count = np.zeros((len(case.q_pos), len(positions)), dtype=int)
        for block in plan.blocks:
            if block.segment != segment:
                continue
            shape = (block.query_stop - block.query_start, block.key_stop - block.key_start)
            shown = np.ones(shape, dtype=int)
            if block.causal:
                shown = np.tril(shown)
            elif block.mask is not None:
                shown = (block.mask == 0).numpy().astype(int)
                assert shown.min() == 0, "a mask that hides nothing"
            rows = slice(block.query_start, block.query_stop)
            count[rows, block.key_start : block.key_stop] += shown
        seen = reference.visible(
            torch.from_numpy(case.q_pos), torch.from_numpy(positions), case.window
        )
        np.testing.assert_array_equal(count, seen.numpy().astype(int))


@examples(80)
@given(cases, st.sampled_from([1, 8, 128]), st.data())
def test_attention_mass_is_the_sum_of_probabilities(
    case: Case, block_rows: int, data: st.DataObject
) -> None:
    n_q, heads, _ = case.queries[0].shape
    first_query = data.draw(st.integers(0, n_q - 1))
    with cut_into(block_rows):
        plan = case.plan()
        _, lse = case.fused()
        mass = attention_mass(
            plan, case.queries, case.keys, lse, case.scale, first_query=first_query
        )
    counted = (n_q - first_query) * heads
    assert sum(float(part.sum()) for part in mass) == pytest.approx(counted, rel=1e-5)
    for part, probability in zip(mass, case.probabilities(), strict=True):
        expected = probability[first_query:].sum(dim=(0, 1))
        assert part.shape == expected.shape
        assert float((part - expected).abs().max()) <= 1e-6 * counted + 1e-6


def square(n: int, **changes: object) -> Case:
    options = {
        "n": n,
        "query_share": 1.0,
        "n_segments": 1,
        "n_shifts": 1,
        "kv_heads": 2,
        "group": 3,
        "head_dim": 16,
        "window": None,
        "dtype": torch.float32,
    }
    return make_case(7, **(options | changes))


def test_a_full_prefill_is_one_causal_block_without_a_mask() -> None:
    case = square(300)
    (block,) = case.plan().blocks
    assert block.causal
    assert block.mask is None
    assert_close(case, case.fused(), FLOAT32, 2 * FLOAT32)


def test_a_decode_step_is_one_block_a_segment_without_a_mask() -> None:
    case = square(300, query_share=0.0, n_segments=3)
    case.q_pos = case.kv_pos[-1][-1:]
    case.queries = [query[:1] for query in case.queries]
    case.kv_pos = [positions[positions <= case.q_pos[0]] for positions in case.kv_pos]
    case.keys = [k[: len(p)] for k, p in zip(case.keys, case.kv_pos, strict=True)]
    case.values = [v[: len(p)] for v, p in zip(case.values, case.kv_pos, strict=True)]
    blocks = case.plan().blocks
    assert [block.segment for block in blocks] == [0, 1, 2]
    assert all(block.mask is None for block in blocks)
    assert_close(case, case.fused(), FLOAT32, 2 * FLOAT32)


def test_keys_that_nobody_may_see_are_not_read() -> None:
    case = square(200, n_segments=2, query_share=0.1, window=5)
    far = np.array([int(case.q_pos[-1]) + 10 + i for i in range(4)])
    for pool in (case.keys, case.values):
        pool.append(torch.full((4, 2, 16), torch.nan))
    case.kv_pos.append(far)
    case.queries.append(case.queries[0])
    assert all(block.segment != len(case.kv_pos) - 1 for block in case.plan().blocks)
    assert_close(case, case.fused(), FLOAT32, 2 * FLOAT32)


@pytest.mark.parametrize("window", [None, 40])
def test_many_blocks_of_the_real_size(window: int | None) -> None:
    case = square(700, n_segments=3, query_share=0.7, window=window)
    assert len(case.plan().blocks) > 3
    assert_close(case, case.fused(), FLOAT32, 2 * FLOAT32)


def test_large_scores_do_not_overflow() -> None:
    case = square(64, n_segments=2, query_share=0.5)
    case.queries = [60 * query for query in case.queries]
    out, lse = case.fused()
    expected_out, expected_lse = case.defined()
    torch.testing.assert_close(out, expected_out, atol=2e-4, rtol=0)
    torch.testing.assert_close(lse, expected_lse, atol=0, rtol=1e-5)
