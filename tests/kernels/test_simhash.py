"""SimHash codes and nearest neighbours by Hamming distance."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from properties import examples

from semshare_kernels import hamming_nearest, simhash, simhash_planes


def test_bits_are_the_signs_in_little_order() -> None:
    planes = torch.zeros(2, 64)
    planes[0, 0] = 1.0  # bit 0: sign of x
    planes[1, 1] = 1.0  # bit 1: sign of y
    planes[0, 63] = -1.0  # bit 63: sign of −x
    vectors = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [0.0, 0.0]])
    expected = [[0b11], [0b01], [0b10 | 1 << 63], [0]]
    np.testing.assert_array_equal(simhash(vectors, planes), np.array(expected, dtype=np.uint64))


def test_planes_are_the_same_in_every_process_and_refuse_odd_sizes() -> None:
    planes = simhash_planes(3, 128, seed=5)
    assert planes.shape == (3, 128)
    assert torch.equal(planes, simhash_planes(3, 128, seed=5))
    assert not torch.equal(planes, simhash_planes(3, 128, seed=6))
    with pytest.raises(ValueError, match="bits is 100: it must be a multiple of 64"):
        simhash_planes(3, 100)


def test_share_of_differing_bits_estimates_the_angle() -> None:
    planes = simhash_planes(32, 64 * 64, seed=0)
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(2, 32, generator=generator)
    codes = simhash(vectors, planes)
    differing = int(np.bitwise_count(codes[0] ^ codes[1]).sum())
    cosine = float(torch.cosine_similarity(vectors[0], vectors[1], dim=0))
    # 4,096 independent bits: a standard deviation of at most 1/128 of a half turn.
    assert differing / (64 * 64) == pytest.approx(np.arccos(cosine) / np.pi, abs=4 / 128)


def test_nearest_by_hand_and_ties_go_to_the_earlier_column() -> None:
    codes = np.array([[0b1111, 0], [0, 0]], dtype=np.uint64)
    others = np.array([[0b1110, 0], [0b1111, 0b1], [0b1111, 0], [0b1, 0]], dtype=np.uint64)
    column = hamming_nearest(codes, others, np.array([[0, 1, 3], [1, 3, 3]]))
    np.testing.assert_array_equal(column, [0, 1])
    column = hamming_nearest(codes, others, np.array([[1, 0, 2], [0, 1, 2]]))
    np.testing.assert_array_equal(column, [2, 0])


@examples(50)
@given(st.integers(0, 2**32 - 1), st.integers(0, 6), st.integers(1, 9), st.integers(1, 3))
def test_nearest_equals_brute_force(seed: int, n: int, k: int, words: int) -> None:
    rng = np.random.default_rng(seed)
    # Few bits, so that ties are common.
    codes = rng.integers(0, 4, (n, words), dtype=np.uint64)
    others = rng.integers(0, 4, (8, words), dtype=np.uint64)
    candidates = rng.integers(0, 8, (n, k))
    column = hamming_nearest(codes, others, candidates)
    assert column.shape == (n,)
    for row in range(n):
        distances = [
            sum(int(a ^ b).bit_count() for a, b in zip(codes[row], others[c], strict=True))
            for c in candidates[row]
        ]
        assert column[row] == distances.index(min(distances))
