"""H2O (arXiv 2306.14048): the tokens that all queries so far look at most, and the latest ones.

Attention is summed over the queries of the whole prompt, which fused kernels don't give: it is
computed a second time for that, and counted.
"""

from __future__ import annotations

import torch
from torch import Tensor

from semshare.evaluation.methods.compressor import Compressor
from semshare.evaluation.methods.head_cache import PromptLayer


def heavy_hitters(layer: PromptLayer, budget: int) -> Tensor:
    """Half the budget is the latest tokens', the rest theirs with the most attention."""
    n, recent = len(layer.keys), budget // 2
    received = layer.attention_received(0)[:, : n - recent]
    heavy = received.topk(budget - recent, dim=1).indices.sort(dim=1).values
    latest = torch.arange(n - recent, n, device=heavy.device).expand(len(heavy), -1)
    return torch.cat((heavy, latest), dim=1)


H2O = Compressor(
    "h2o",
    "40 % of the KV: most attended to by all queries, and the latest (arXiv 2306.14048)",
    heavy_hitters,
)
