"""What attention looks like in a model, as far as its kernels care."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class AttentionShape:
    """Heads, sizes and where it runs."""

    heads: int  # query heads, a multiple of kv_heads
    kv_heads: int
    head_dim: int
    dtype: torch.dtype  # of queries, keys and values
    device: torch.device

    @property
    def group(self) -> int:
        """Query heads that share a KV head."""
        return self.heads // self.kv_heads
