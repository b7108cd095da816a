"""SimHash codes and their nearest neighbours on the GPU."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from semshare_kernels.device import current_device_of
from semshare_kernels.simhash.triton_kernel import encode, hamming_top_k
from semshare_kernels.tiles.launch import product_precision

ENCODE_TOKENS = 32
ENCODE_DIM = 64
MATCH_TOKENS = 16
MATCH_CANDIDATES = 32


def simhash(vectors: Tensor, planes: Tensor) -> Tensor:
    """See `semshare_kernels.simhash.simhash`."""
    (n, dim), bits = vectors.shape, planes.shape[1]
    codes = vectors.new_empty((n, bits // 32), dtype=torch.int32)
    if n:
        with current_device_of(vectors):
            encode[(triton.cdiv(n, ENCODE_TOKENS), bits // 32)](
                vectors.contiguous(),
                planes.contiguous(),
                codes,
                n,
                DIM=dim,
                BITS=bits,
                BLOCK_N=ENCODE_TOKENS,
                BLOCK_DIM=ENCODE_DIM,
                PRECISION=product_precision(torch.float32),
            )
    return codes.view(torch.int64)


def nearest_codes(codes: Tensor, candidates: Tensor, centre: Tensor, radius: int, k: int) -> Tensor:
    """See `semshare_kernels.simhash.nearest_codes`."""
    n, m = len(codes), len(candidates)
    nearest = centre.new_empty((n, k))
    if n:
        with current_device_of(codes):
            hamming_top_k[(triton.cdiv(n, MATCH_TOKENS),)](
                codes.contiguous().view(torch.int32),
                candidates.contiguous().view(torch.int32),
                centre,
                nearest,
                n,
                m,
                radius,
                WORDS=2 * codes.shape[1],
                K=k,
                BLOCK_N=MATCH_TOKENS,
                BLOCK_M=MATCH_CANDIDATES,
            )
    return nearest
