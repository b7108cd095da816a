"""The merge of two attention results, as `reference.merge_states` promises it."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from properties import examples
from torch import Tensor

from semshare_kernels.reference import attend, merge_states

State = tuple[Tensor, Tensor]


def random_state(seed: int, spread: float, unseen: float) -> State:
    """out `[5, 3, 7]`, lse `[5, 3]`; a share of the rows saw no key."""
    generator = torch.Generator().manual_seed(seed)
    out = torch.randn(5, 3, 7, generator=generator)
    lse = spread * torch.randn(5, 3, generator=generator)
    nothing = torch.rand(5, 3, generator=generator) < unseen
    return out.masked_fill(nothing[..., None], 0.0), lse.masked_fill(nothing, -torch.inf)


states = st.builds(
    random_state,
    st.integers(0, 2**32 - 1),
    st.sampled_from([0.1, 3.0, 80.0]),
    st.sampled_from([0.0, 0.5, 1.0]),
)


def assert_same(left: State, right: State, limit: float = 2e-6) -> None:
    torch.testing.assert_close(left[0], right[0], atol=limit, rtol=0)
    torch.testing.assert_close(left[1], right[1], atol=limit, rtol=2e-6)


@examples(60)
@given(states, states, states)
def test_associative_and_commutative(a: State, b: State, c: State) -> None:
    assert_same(merge_states(*merge_states(*a, *b), *c), merge_states(*a, *merge_states(*b, *c)))
    assert_same(merge_states(*a, *b), merge_states(*b, *a))


@examples(30)
@given(states)
def test_nothing_seen_is_the_neutral_element(state: State) -> None:
    nothing = torch.zeros_like(state[0]), torch.full_like(state[1], -torch.inf)
    assert_same(merge_states(*state, *nothing), state, limit=0.0)
    assert_same(merge_states(*nothing, *state), state, limit=0.0)


def test_a_row_unseen_on_both_sides_is_zero_and_not_nan() -> None:
    nothing = torch.zeros(2, 3, 4), torch.full((2, 3), -torch.inf)
    out, lse = merge_states(*nothing, *nothing)
    assert torch.equal(out, torch.zeros(2, 3, 4))
    assert torch.equal(lse, torch.full((2, 3), -torch.inf))


@examples(30)
@given(
    st.integers(0, 2**32 - 1), st.integers(1, 19), st.sampled_from([torch.float32, torch.bfloat16])
)
def test_equals_attention_over_the_union(seed: int, cut: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(20, 2, 16, generator=generator).to(dtype) for _ in range(3))
    seen = torch.rand(20, 20, generator=generator) < 0.7
    whole = attend(q, k, v, seen, 0.25)
    left = attend(q, k[:cut], v[:cut], seen[:, :cut], 0.25)
    right = attend(q, k[cut:], v[cut:], seen[:, cut:], 0.25)
    assert_same(merge_states(*left, *right), whole)


def test_bfloat16_outputs_are_merged_in_float32() -> None:
    out, lse = random_state(1, 1.0, 0.0)
    other, other_lse = random_state(2, 1.0, 0.0)
    merged, _ = merge_states(out.bfloat16(), lse, other.bfloat16(), other_lse)
    assert merged.dtype == torch.float32
