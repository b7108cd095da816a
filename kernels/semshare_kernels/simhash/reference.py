"""SimHash and its nearest neighbours by their definitions."""

from __future__ import annotations

import torch
from torch import Tensor


def simhash(vectors: Tensor, planes: Tensor) -> Tensor:
    """See `semshare_kernels.simhash.simhash`."""
    words = [0] * len(vectors) * (planes.shape[1] // 64)
    positive = (vectors.double() @ planes.double() > 0).flatten().tolist()
    for index, bit in enumerate(positive):
        words[index // 64] |= bit << (index % 64)
    signed = [word - (1 << 64) if word >> 63 else word for word in words]
    return torch.tensor(signed, dtype=torch.int64).view(len(vectors), planes.shape[1] // 64)


def nearest_codes(codes: Tensor, candidates: Tensor, centre: Tensor, radius: int, k: int) -> Tensor:
    """See `semshare_kernels.simhash.nearest_codes`."""
    found = torch.full((len(codes), k), -1, dtype=torch.int64)
    for row, (code, at) in enumerate(zip(codes.tolist(), centre.tolist(), strict=True)):
        ranks = sorted(
            (
                sum(_differing(a, b) for a, b in zip(code, other, strict=True)),
                abs(index - at),
                index,
            )
            for index, other in enumerate(candidates.tolist())
            if abs(index - at) <= radius
        )
        best = [index for _, _, index in ranks[:k]]
        found[row, : len(best)] = torch.tensor(best, dtype=torch.int64)
    return found


def _differing(a: int, b: int) -> int:
    return ((a ^ b) & (1 << 64) - 1).bit_count()
