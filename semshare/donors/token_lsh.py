"""Codes of tokens in their order: SimHash over token embeddings with RoPE applied to them.

Two tokens of similar meaning at nearby places get nearby codes (SemShareKV, arXiv 2509.24832,
section 3). The rotation makes order count: the similarity of a pair decays with the distance
between its positions.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from semshare.types import Ids
from semshare_kernels import Rotation, simhash, simhash_planes
from semshare_kernels.rotary import rotated

CODE_BITS = 256
_ROPE_BASE = 10_000.0
_ROWS = 8192  # of the vocabulary in float32 at a time
_SKETCH_DIM = 128  # embeddings are projected to this many dimensions once, when the engine starts


class TokenLSH:
    """Codes tokens of one model's vocabulary.

    Args:
        embedding_weight: `[vocab, hidden]`.

    """

    def __init__(self, embedding_weight: Tensor) -> None:
        table = embedding_weight.detach()
        mean = table.mean(dim=0, dtype=torch.float32).cpu()
        # A random projection keeps angles (Johnson–Lindenstrauss) at a fifth of the work.
        generator = torch.Generator().manual_seed(0)
        sketch = torch.randn(table.shape[1], _SKETCH_DIM, generator=generator)
        sketched = [
            torch.nn.functional.normalize(part.float().cpu() - mean, dim=-1) @ sketch
            for part in torch.split(table, _ROWS)
        ]
        self._table = torch.cat(sketched)  # [vocab, sketch]
        self._planes = simhash_planes(_SKETCH_DIM, CODE_BITS, seed=1)
        exponents = torch.arange(0, _SKETCH_DIM, 2, dtype=torch.float32) / _SKETCH_DIM
        self._inv_freq = _ROPE_BASE**-exponents

    def encode(self, ids: Ids, positions: NDArray[np.number]) -> Tensor:
        """Codes `[n, CODE_BITS / 64]` int64 of tokens standing at `positions` `[n]`, in tokens."""
        angles = torch.from_numpy(positions.astype(np.float32))[:, None] * self._inv_freq
        vectors = self._table[torch.from_numpy(ids.astype(np.int64))]
        turned = rotated(vectors[:, None], Rotation(angles.cos(), angles.sin()))[:, 0]
        return simhash(turned, self._planes)
