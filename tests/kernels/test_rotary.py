"""RoPE and the re-alignment of rotated keys, against rotations in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from properties import examples
from torch import Tensor

from semshare_kernels import Rotation, apply_rotary, realign_keys
from semshare_kernels.rotary import cpu, gpu, reference, rotated


def angles_of(positions: Tensor, r: int) -> Tensor:
    """`[n, r / 2]` float64 of RoPE with base 10000."""
    inv_freq = 10_000.0 ** -(torch.arange(0, r, 2, dtype=torch.float64) / r)
    return positions.double()[:, None] * inv_freq


def tables(positions: Tensor, r: int) -> tuple[Tensor, Tensor]:
    """cos and sin `[n, r]` float64."""
    angles = angles_of(positions, r).repeat(1, 2)
    return angles.cos(), angles.sin()


def rotation(shifts: Tensor, r: int) -> Rotation:
    angles = angles_of(shifts, r)
    return Rotation(angles.cos().float(), angles.sin().float())


def by_complex_numbers(x: Tensor, positions: Tensor, r: int) -> Tensor:
    """RoPE as a product of complex numbers, float64."""
    half = r // 2
    turn = torch.polar(torch.ones(1, dtype=torch.float64), angles_of(positions, r))
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


@pytest.mark.parametrize("r", [16, 8])
def test_apply_rotary_makes_one_set_for_each_set_of_positions(r: int) -> None:
    x = torch.randn(9, 3, 16, generator=torch.Generator().manual_seed(1)).double()
    sets = [torch.arange(9) + start for start in (0, 40, -7)]
    cos, sin = (torch.stack(part) for part in zip(*(tables(one, r) for one in sets), strict=True))
    together = apply_rotary(x, cos, sin)
    for one, positions in zip(together, sets, strict=True):
        assert torch.equal(one, apply_rotary(x, *tables(positions, r)))


@examples(50)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(0, 8192),
    st.integers(-8192, 8192),
    st.sampled_from([16, 12, 8]),
)
def test_rotated_keys_are_exact_to_float32(seed: int, start: int, shift: int, r: int) -> None:
    keys = torch.randn(6, 2, 16, generator=torch.Generator().manual_seed(seed)).double()
    positions = torch.arange(start, start + 6)
    stored = by_complex_numbers(keys, positions, r).float()
    moved = rotated(stored, rotation(torch.full((6,), shift), r))
    expected = by_complex_numbers(keys, positions + shift, r)
    assert moved.dtype == torch.float32
    assert float((moved - expected).abs().max()) <= 1e-6


def test_bfloat16_keys_are_rounded_once() -> None:
    keys = torch.randn(64, 2, 16, generator=torch.Generator().manual_seed(4)).bfloat16()
    turn = rotation(torch.full((64,), 77), 16)
    assert torch.equal(rotated(keys, turn), rotated(keys.float(), turn).bfloat16())


def moved_pool(
    realign: Any, *, n: int, d: int, r: int | None, dtype: torch.dtype, seed: int
) -> Tensor:
    """A poisoned pool of which `n` random slots went to others, by shifts of their own."""
    generator = torch.Generator().manual_seed(seed)
    slots = torch.randperm(3 * n + 5, generator=generator)
    source, target = slots[:n], slots[n : 2 * n]
    pool = torch.full((len(slots), 3, d), torch.nan, dtype=dtype)
    pool[source] = torch.randn(n, 3, d, generator=generator).to(dtype)
    shifts = torch.randint(-500, 500, (n,), generator=generator)
    realign(pool, source, target, None if r is None else rotation(shifts, r))
    return pool


ROUNDING = {torch.float32: 1e-6, torch.float16: 4e-3, torch.bfloat16: 3e-2}


@pytest.mark.parametrize("n", [0, 1, 63, 65])
@pytest.mark.parametrize(("d", "r"), [(64, 64), (80, 80), (96, 48), (64, None)])
@pytest.mark.parametrize(
    ("realign", "dtype"),
    [(realign_keys, dtype) for dtype in ROUNDING]
    + [(gpu.realign_keys, dtype) for dtype in (torch.float32, torch.float16)],
)
def test_realigning_in_a_pool_equals_the_definition(
    realign: Any, dtype: torch.dtype, d: int, r: int | None, n: int
) -> None:
    options = {"n": n, "d": d, "r": r, "dtype": dtype, "seed": n + d}
    got = moved_pool(realign, **options)
    expected = moved_pool(reference.realign_keys, **options)
    assert torch.equal(got.isnan(), expected.isnan())
    difference = (got.float() - expected.float()).nan_to_num().abs()
    assert float(difference.max()) <= ROUNDING[dtype]


def test_keys_are_turned_a_cache_sized_part_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"n": 70, "d": 64, "r": 64, "dtype": torch.float32, "seed": 1}
    whole = moved_pool(realign_keys, **options)
    monkeypatch.setattr(cpu, "_PART_BYTES", 7 * 3 * 64 * 4)
    assert torch.equal(moved_pool(realign_keys, **options).nan_to_num(), whole.nan_to_num())
