"""SimHash codes and their nearest neighbours on the CPU."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from semshare_kernels import native

# Up to so many candidates a row, each row's own are gathered; wider windows are compared as
# products of all codes with all.
MAX_GATHERED = 128
# Distances held at once: they stay in the second-level cache.
_PART = 1 << 19
_NOT_ALLOWED = np.iinfo(np.int32).max
# A rank is distance × 2^18 + how far away; both fit into 31 bits.
_AWAY_BITS = 18
MAX_CANDIDATES = 1 << _AWAY_BITS
MAX_BITS = 1 << (31 - _AWAY_BITS)


def simhash(vectors: Tensor, planes: Tensor) -> Tensor:
    """See `semshare_kernels.simhash.simhash`."""
    signs = (vectors @ planes > 0).numpy()
    packed = np.packbits(signs, axis=1, bitorder="little")
    return torch.from_numpy(packed.view(np.int64))


def nearest_codes(codes: Tensor, candidates: Tensor, centre: Tensor, radius: int, k: int) -> Tensor:
    """See `semshare_kernels.simhash.nearest_codes`."""
    found = native.nearest_codes(codes, candidates, centre, radius, k)
    if found is not None:
        return found
    if 2 * radius + 1 <= MAX_GATHERED:
        return torch.from_numpy(
            _nearest_gathered(codes.numpy(), candidates.numpy(), centre.numpy(), radius, k)
        )
    return torch.from_numpy(_nearest_of_all(codes, candidates, centre.numpy(), radius, k))


def _nearest_gathered(
    codes: NDArray[np.int64],
    candidates: NDArray[np.int64],
    centre: NDArray[np.int64],
    radius: int,
    k: int,
) -> NDArray[np.int64]:
    """Each row against the candidates of its own window, the preferred ones first."""
    offsets = np.array(sorted(range(-radius, radius + 1), key=abs))
    window = centre[:, None] + offsets
    outside = (window < 0) | (window >= len(candidates))
    inside = np.where(outside, 0, window)
    if len(candidates) == 0:
        return np.full((len(codes), k), -1, dtype=np.int64)
    # Unsigned: of a negative number NumPy counts the bits of its absolute value.
    different = (codes[:, None, :] ^ candidates[inside]).view(np.uint64)
    differing = np.bitwise_count(different).sum(axis=2, dtype=np.int32)
    differing[outside] = _NOT_ALLOWED
    if k == 1:
        column = differing.argmin(axis=1)[:, None]
    else:
        column = differing.argsort(axis=1, kind="stable")[:, :k]
    return _padded(window, outside, column, k)


def _nearest_of_all(
    codes: Tensor, candidates: Tensor, centre: NDArray[np.int64], radius: int, k: int
) -> NDArray[np.int64]:
    """All codes against all candidates: of codes of ±1, the product counts agreeing bits."""
    n, m = len(codes), len(candidates)
    if m == 0:
        return np.full((n, k), -1, dtype=np.int64)
    signs, other_signs = _signs(codes), _signs(candidates).T
    bits = signs.shape[1]
    place = np.arange(m, dtype=np.int32)
    found = np.empty((n, k), dtype=np.int64)
    step = max(_PART // m, 1)
    for start in range(0, n, step):
        rows = slice(start, min(start + step, n))
        rank = torch._int_mm(signs[rows], other_signs).numpy()
        np.subtract(bits, rank, out=rank)
        rank <<= _AWAY_BITS - 1  # the product is bits − 2 × distance
        away = np.abs(place - centre[rows, None].astype(np.int32))
        rank += away
        outside = away > radius
        if outside.any():
            rank[outside] = _NOT_ALLOWED
        if k == 1:
            column = rank.argmin(axis=1)[:, None]
        else:
            column = rank.argsort(axis=1, kind="stable")[:, :k]
        found[rows] = _padded(np.broadcast_to(place, rank.shape), outside, column, k)
    return found


def _padded(
    window: NDArray[np.integer], outside: NDArray[np.bool_], column: NDArray[np.int64], k: int
) -> NDArray[np.int64]:
    """The candidates in the chosen columns; −1 where no more are allowed."""
    found = np.full((len(column), k), -1, dtype=np.int64)
    chosen = np.take_along_axis(window, column, axis=1)
    allowed = ~np.take_along_axis(outside, column, axis=1)
    found[:, : column.shape[1]] = np.where(allowed, chosen, -1)
    return found


def _signs(codes: Tensor) -> Tensor:
    """Bits as ±1, `[n, bits]`."""
    bits = np.unpackbits(codes.numpy().view(np.uint8), axis=1, bitorder="little")
    return torch.from_numpy(bits.astype(np.int8) * 2 - 1)
