"""Merging results over disjoint key sets: equal to attention over their union, in any grouping."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from attention_cases import LIMITS, largest_error
from hypothesis import given
from hypothesis import strategies as st
from properties import examples
from torch import Tensor

from semshare_kernels import merge_states
from semshare_kernels.merge import gpu, reference

Merge = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
both = pytest.mark.parametrize("merge", [merge_states, gpu.merge_states])


def parts_of(
    seed: int, counts: list[int], d: int, dtype: torch.dtype, empty: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Random partial results in random places, a share of which saw no key."""
    generator = torch.Generator().manual_seed(seed)
    n, heads = sum(counts), 3
    out = torch.randn(n, heads, d, generator=generator).to(dtype)
    lse = 4 * torch.randn(n, heads, generator=generator)
    unseen = torch.rand(n, heads, generator=generator) < empty
    lse[unseen] = -torch.inf
    out[unseen] = 0.0
    offsets = torch.tensor([0, *np.cumsum(counts)])
    return out, lse, offsets, torch.randperm(n, generator=generator)


@both
@examples(40)
@given(
    seed=st.integers(0, 2**32 - 1),
    counts=st.lists(st.integers(0, 5), min_size=1, max_size=6),
    d=st.sampled_from([1, 63, 64, 65, 80]),
    dtype=st.sampled_from([torch.float32, torch.float16]),
    empty=st.sampled_from([0.0, 0.4, 1.0]),
)
def test_equals_the_definition(
    merge: Merge, seed: int, counts: list[int], d: int, dtype: torch.dtype, empty: float
) -> None:
    parts = parts_of(seed, counts, d, dtype, empty)
    out, lse = merge(*parts)
    expected_out, expected_lse = reference.merge_states(*parts)
    assert out.dtype == lse.dtype == torch.float32
    assert largest_error(out, expected_out) <= LIMITS[torch.float32]
    assert largest_error(lse, expected_lse) <= LIMITS[torch.float32]


@both
def test_nothing_merged_with_nothing_is_zero_and_not_nan(merge: Merge) -> None:
    out, lse = merge(
        torch.zeros(2, 3, 8), torch.full((2, 3), -torch.inf), torch.tensor([0, 2]), torch.arange(2)
    )
    assert torch.equal(out, torch.zeros(1, 3, 8))
    assert torch.equal(lse, torch.full((1, 3), -torch.inf))


@both
def test_far_apart_states_neither_overflow_nor_vanish(merge: Merge) -> None:
    out = torch.tensor([1.0, 2.0]).view(2, 1, 1).expand(2, 1, 4).contiguous()
    for lses in ((500.0, -500.0), (-500.0, 500.0), (3000.0, 3000.0)):
        lse = torch.tensor(lses).view(2, 1)
        got, total = merge(out, lse, torch.tensor([0, 2]), torch.arange(2))
        weight = torch.softmax(lse[:, 0].double(), 0)
        assert got[0, 0, 0].item() == pytest.approx(float(weight @ out[:, 0, 0].double()))
        assert total.item() == pytest.approx(torch.logsumexp(lse.double(), 0).item())


@both
@examples(30)
@given(seed=st.integers(0, 2**32 - 1), cut=st.integers(1, 4))
def test_merging_is_associative(merge: Merge, seed: int, cut: int) -> None:
    out, lse, _, _ = parts_of(seed, [5], 64, torch.float32, 0.2)
    everything = torch.arange(5)
    whole = merge(out, lse, torch.tensor([0, 5]), everything)
    halves = merge(out, lse, torch.tensor([0, cut, 5]), everything)
    again = merge(*halves, torch.tensor([0, 2]), torch.arange(2))
    assert largest_error(again[0], whole[0]) <= LIMITS[torch.float32]
    assert largest_error(again[1], whole[1]) <= LIMITS[torch.float32]


@both
def test_nothing_past_a_rows_last_dimension_is_written(merge: Merge) -> None:
    """Rows of 80 in blocks of 128: the bug of Hydragen's own kernel, which a mean error hides."""
    out, lse, _, _ = parts_of(1, [4], 80, torch.float32, 0.0)
    rows = torch.arange(5)
    got, _ = merge(out, lse, rows, torch.arange(4))
    assert torch.equal(got, out)
