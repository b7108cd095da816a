"""RoPE and the re-alignment of rotated keys, against rotations in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from properties import examples
from torch import Tensor

from semshare_kernels import apply_rotary, mixed_attention, plan_attention, realign_keys


def tables(positions: Tensor, r: int) -> tuple[Tensor, Tensor]:
    """cos and sin `[n, r]` float64 of RoPE with base 10000."""
    inv_freq = 10_000.0 ** -(torch.arange(0, r, 2, dtype=torch.float64) / r)
    angles = positions.double()[:, None] * inv_freq
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


def by_complex_numbers(x: Tensor, positions: Tensor, r: int) -> Tensor:
    """RoPE as a product of complex numbers, float64."""
    half = r // 2
    inv_freq = 10_000.0 ** -(torch.arange(0, r, 2, dtype=torch.float64) / r)
    turn = torch.polar(torch.ones(1, dtype=torch.float64), positions.double()[:, None] * inv_freq)
    pairs = torch.complex(x[..., :half].double(), x[..., half:r].double()) * turn[:, None]
    return torch.cat((pairs.real, pairs.imag, x[..., r:].double()), dim=-1)


@pytest.mark.parametrize("r", [16, 8, 2])
def test_apply_rotary_is_a_complex_product_and_passes_the_rest_through(r: int) -> None:
    x = torch.randn(9, 3, 16, generator=torch.Generator().manual_seed(0)).double()
    positions = torch.arange(9) * 7 - 11
    torch.testing.assert_close(
        apply_rotary(x, *tables(positions, r)), by_complex_numbers(x, positions, r)
    )
    assert torch.equal(apply_rotary(x, *tables(positions, r))[..., r:], x[..., r:])


@examples(50)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(0, 8192),
    st.integers(-8192, 8192),
    st.sampled_from([16, 12, 8]),
)
def test_realigned_keys_are_exact_to_float32(seed: int, start: int, shift: int, r: int) -> None:
    keys = torch.randn(6, 2, 16, generator=torch.Generator().manual_seed(seed)).double()
    positions = torch.arange(start, start + 6)
    shifts = torch.full((6,), shift)
    stored = apply_rotary(keys, *tables(positions, r)).float()
    moved = realign_keys(stored, *(table.float() for table in tables(shifts, r)))
    expected = by_complex_numbers(keys, positions + shift, r)
    assert moved.dtype == torch.float32
    assert float((moved - expected).abs().max()) <= 1e-6


def test_each_key_moves_by_its_own_shift() -> None:
    keys = torch.randn(4, 2, 16, generator=torch.Generator().manual_seed(3)).double()
    positions, shifts = torch.tensor([5, 9, 9, 400]), torch.tensor([0, 3, -9, -150])
    stored = apply_rotary(keys, *tables(positions, 16)).float()
    moved = realign_keys(stored, *(table.float() for table in tables(shifts, 16)))
    expected = by_complex_numbers(keys, positions + shifts, 16)
    assert float((moved - expected).abs().max()) <= 1e-6


def test_bfloat16_keys_are_rounded_once() -> None:
    keys = torch.randn(64, 2, 16, generator=torch.Generator().manual_seed(4)).bfloat16()
    rotation = tuple(table.float() for table in tables(torch.full((64,), 77), 16))
    moved = realign_keys(keys, *rotation)
    assert torch.equal(moved, apply_rotary(keys.float(), *rotation).bfloat16())


@pytest.mark.parametrize("shift", [-300, -1, 1, 250])
def test_rotating_queries_back_equals_moving_the_keys(shift: int) -> None:
    generator = torch.Generator().manual_seed(5)
    n_q, n_k = 7, 40
    keys, values = (torch.randn(n_k, 2, 16, generator=generator).double() for _ in range(2))
    query = torch.randn(n_q, 6, 16, generator=generator).double()
    stored_at = torch.arange(400, 400 + n_k)
    q_pos = torch.arange(400 + n_k + shift, 400 + n_k + shift + n_q)
    stored = apply_rotary(keys, *tables(stored_at, 16)).float()
    shifts = torch.full((n_k,), shift)
    moved = realign_keys(stored, *(table.float() for table in tables(shifts, 16)))
    plan = plan_attention(
        q_pos.numpy(),
        [(stored_at + shift).numpy()],
        window=None,
        dtype=torch.float32,
        device=torch.device("cpu"),
    )
    results = []
    for key, position in ((stored, q_pos - shift), (moved, q_pos)):
        rotated = apply_rotary(query, *tables(position, 16)).float()
        results.append(mixed_attention(plan, [rotated], [key], [values.float()], 0.25))
    torch.testing.assert_close(results[0][0], results[1][0], atol=3e-6, rtol=0)
    torch.testing.assert_close(results[0][1], results[1][1], atol=3e-6, rtol=0)
