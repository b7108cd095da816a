"""SimHash codes of token embeddings and nearest neighbours by Hamming distance.

A code's bit is the sign of the embedding's product with a random direction, so that the share of
differing bits estimates the angle between two embeddings (Charikar, STOC 2002).
"""

from __future__ import annotations

import torch
from torch import Tensor

from semshare_kernels.simhash import cpu

__all__ = ["nearest_codes", "simhash", "simhash_planes"]


def simhash_planes(dim: int, bits: int, *, seed: int = 0) -> Tensor:
    """Random directions `[dim, bits]` float32; `bits` is a multiple of 64."""
    if bits % 64:
        raise ValueError(f"bits is {bits}: it must be a multiple of 64")
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(dim, bits, generator=generator)


def simhash(vectors: Tensor, planes: Tensor) -> Tensor:
    """Codes `[n, bits / 64]` int64 of `vectors` `[n, dim]` float32, bit 0 the lowest."""
    if vectors.is_cuda:
        from semshare_kernels.simhash import gpu  # noqa: PLC0415 - needs Triton

        return gpu.simhash(vectors, planes)
    return cpu.simhash(vectors, planes)


def nearest_codes(
    codes: Tensor, candidates: Tensor, centre: Tensor, radius: int, *, k: int = 1
) -> Tensor:
    """For each code the `k` candidates with the fewest differing bits, within a window.

    Args:
        codes: `[n, words]` int64.
        candidates: `[m, words]` int64.
        centre: `[n]` int64, where among the candidates each code is expected.
        radius: candidates further than this from the centre are not looked at.
        k: how many.

    Returns:
        `[n, k]` int64 indices of candidates, the nearest first; ties go to the one nearest to the
        centre, then to the earlier one. −1 where the window holds fewer.

    """
    if codes.is_cuda:
        from semshare_kernels.simhash import gpu  # noqa: PLC0415 - needs Triton

        return gpu.nearest_codes(codes, candidates, centre, radius, k)
    return cpu.nearest_codes(codes, candidates, centre, radius, k)
