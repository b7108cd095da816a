"""Codes of tokens in their order."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from semshare.donors.token_lsh import CODE_BITS, TokenLSH


@pytest.fixture(scope="module")
def lsh() -> TokenLSH:
    weight = torch.randn(200, 96, generator=torch.Generator().manual_seed(0))
    weight[101] = weight[100] + 0.3 * weight[102]  # 100 and 101 mean nearly the same
    return TokenLSH(weight)


def distance(lsh: TokenLSH, left: tuple[int, float], right: tuple[int, float]) -> int:
    codes = [
        lsh.encode(np.array([token], dtype=np.int32), np.array([position])).numpy().view(np.uint64)
        for token, position in (left, right)
    ]
    return int(np.bitwise_count(codes[0] ^ codes[1]).sum())


def test_codes_have_their_shape_and_repeat(lsh: TokenLSH) -> None:
    ids = np.array([5, 6, 5], dtype=np.int32)
    codes = lsh.encode(ids, np.array([0, 1, 0]))
    assert codes.shape == (3, CODE_BITS // 64)
    assert codes.dtype == torch.int64
    assert torch.equal(codes[0], codes[2])
    assert lsh.encode(ids[:0], np.empty(0)).shape == (0, CODE_BITS // 64)


def test_similar_tokens_are_nearer_than_others(lsh: TokenLSH) -> None:
    near = distance(lsh, (100, 7), (101, 7))
    assert near < CODE_BITS // 5
    assert all(distance(lsh, (100, 7), (other, 7)) > 2 * near for other in range(50, 90))


def test_order_counts_and_only_the_difference_of_positions(lsh: TokenLSH) -> None:
    here, near, far = (distance(lsh, (100, 50), (100, 50 + gap)) for gap in (0, 1, 40))
    assert here == 0 < near < far
    # Rotations add up: up to the estimate's noise the place itself does not matter.
    moved = distance(lsh, (100, 1050), (100, 1051))
    assert moved == pytest.approx(near, abs=16)
