"""SimHash codes of token embeddings and nearest neighbours by Hamming distance.

A code's bit is the sign of the embedding's product with a random direction, so that the share of
differing bits estimates the angle between two embeddings (Charikar, STOC 2002).
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# [n, bits / 64] packed bits, so that one popcount takes eight bytes.
Codes = NDArray[np.uint64]


def simhash_planes(dim: int, bits: int, *, seed: int = 0) -> Tensor:
    """Random directions `[dim, bits]` float32; `bits` is a multiple of 64."""
    if bits % 64:
        raise ValueError(f"bits is {bits}: it must be a multiple of 64")
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(dim, bits, generator=generator)


def simhash(vectors: Tensor, planes: Tensor) -> Codes:
    """Codes `[n, bits / 64]` of `vectors` `[n, dim]` float32."""
    signs = (vectors @ planes > 0).numpy()
    return np.packbits(signs, axis=1, bitorder="little").view(np.uint64)


def hamming_nearest(
    codes: Codes, candidate_codes: Codes, candidates: NDArray[np.int64]
) -> NDArray[np.int64]:
    """For each code the nearest of its own candidates, as the candidate's column, `[n]`.

    Args:
        codes: `[n, words]`.
        candidate_codes: `[m, words]`.
        candidates: `[n, k]` indices into `candidate_codes`, the preferred first: ties go to the
            earlier column.

    """
    distance = np.bitwise_count(codes[:, None, :] ^ candidate_codes[candidates]).sum(axis=2)
    nearest: NDArray[np.int64] = distance.argmin(axis=1)
    return nearest
