"""Small pools for the tests of what lives in them."""

from __future__ import annotations

import torch

from semshare.kv.pool import KVPool

PAGE_BYTES = 2 * 2 * 1 * 4 * 4  # K and V, two layers, one head of 4 float32, a slot


def small_pool(pages: int, page_size: int = 4) -> KVPool:
    """`pages` pages of a model with two layers and one KV head of four numbers."""
    return KVPool(
        n_layers=2,
        n_kv_heads=1,
        head_dim=4,
        dtype=torch.float32,
        device=torch.device("cpu"),
        budget_bytes=pages * page_size * PAGE_BYTES,
        page_size=page_size,
    )
