"""SimHash codes and nearest neighbours by Hamming distance."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from properties import examples

from semshare_kernels import nearest_codes, simhash, simhash_planes
from semshare_kernels.simhash import cpu, gpu, reference

both = pytest.mark.parametrize("encode", [simhash, gpu.simhash])


@both
def test_bits_are_the_signs_in_little_order(encode: Any) -> None:
    planes = torch.zeros(2, 64)
    planes[0, 0] = 1.0  # bit 0: sign of x
    planes[1, 1] = 1.0  # bit 1: sign of y
    planes[0, 63] = -1.0  # bit 63: sign of −x
    vectors = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [0.0, 0.0]])
    assert encode(vectors, planes).tolist() == [[0b11], [0b01], [0b10 - (1 << 63)], [0]]


@both
@pytest.mark.parametrize("n", [0, 1, 63, 80])
@pytest.mark.parametrize(("dim", "bits"), [(1, 64), (65, 128), (128, 256)])
def test_codes_equal_the_definition(encode: Any, n: int, dim: int, bits: int) -> None:
    generator = torch.Generator().manual_seed(n)
    # Whole numbers: their products have a sign that no order of summing changes.
    vectors = torch.randint(-3, 4, (n, dim), generator=generator).float()
    planes = torch.randint(-3, 4, (dim, bits), generator=generator).float()
    assert torch.equal(encode(vectors, planes), reference.simhash(vectors, planes))


def test_planes_are_the_same_in_every_process_and_refuse_odd_sizes() -> None:
    planes = simhash_planes(3, 128, seed=5)
    assert planes.shape == (3, 128)
    assert torch.equal(planes, simhash_planes(3, 128, seed=5))
    assert not torch.equal(planes, simhash_planes(3, 128, seed=6))
    with pytest.raises(ValueError, match="bits is 100: it must be a multiple of 64"):
        simhash_planes(3, 100)


def test_share_of_differing_bits_estimates_the_angle() -> None:
    planes = simhash_planes(32, 64 * 64, seed=0)
    vectors = torch.randn(2, 32, generator=torch.Generator().manual_seed(0))
    codes = simhash(vectors, planes).numpy().view(np.uint64)
    differing = int(np.bitwise_count(codes[0] ^ codes[1]).sum())
    cosine = float(torch.cosine_similarity(vectors[0], vectors[1], dim=0))
    # 4,096 independent bits: a standard deviation of at most 1/128 of a half turn.
    assert differing / (64 * 64) == pytest.approx(np.arccos(cosine) / np.pi, abs=4 / 128)


def gathered(*arguments: Any) -> torch.Tensor:
    codes, candidates, centre, radius, k = arguments
    found = cpu._nearest_gathered(codes.numpy(), candidates.numpy(), centre.numpy(), radius, k)
    return torch.from_numpy(found)


def of_all(*arguments: Any) -> torch.Tensor:
    codes, candidates, centre, radius, k = arguments
    return torch.from_numpy(cpu._nearest_of_all(codes, candidates, centre.numpy(), radius, k))


@pytest.mark.parametrize("nearest", [gathered, of_all, gpu.nearest_codes])
@examples(40)
@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(0, 40),
    m=st.integers(1, 150),
    words=st.integers(1, 3),
    radius=st.sampled_from([0, 3, 12, 200]),
    k=st.integers(1, 3),
)
def test_nearest_equals_the_definition(
    nearest: Any, seed: int, n: int, m: int, words: int, radius: int, k: int
) -> None:
    rng = np.random.default_rng(seed)
    # Few bits, so that ties are common; some in the sign bit.
    codes, candidates = (
        torch.from_numpy(rng.integers(0, 4, (size, words)) << rng.choice([0, 62]))
        for size in (n, m)
    )
    centre = torch.from_numpy(rng.integers(-2, m + 2, n))
    found = nearest(codes, candidates, centre, radius, k)
    assert torch.equal(found, reference.nearest_codes(codes, candidates, centre, radius, k))


@pytest.mark.parametrize("radius", [5, 1000])
def test_ties_go_to_the_nearest_and_then_to_the_earlier(radius: int) -> None:
    codes = torch.zeros(3, 2, dtype=torch.int64)
    candidates = torch.zeros(9, 2, dtype=torch.int64)
    candidates[4] = 1
    centre = torch.tensor([3, 4, 20])
    assert nearest_codes(codes, candidates, centre, radius, k=3).tolist() == [
        [3, 2, 1],
        [3, 5, 2],
        [-1, -1, -1] if radius == 5 else [8, 7, 6],
    ]
