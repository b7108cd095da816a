"""SnapKV (arXiv 2404.14469) and PyramidKV (arXiv 2406.02069): what the last queries look at.

A token's score is the attention that the last queries of the prompt pay to it, smoothed by a
maximum over its neighbours; those queries' own tokens stay. SnapKV keeps as many in every layer,
PyramidKV fewer the deeper a layer lies.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import max_pool1d

from semshare.evaluation.methods.compressor import Compressor
from semshare.evaluation.methods.head_cache import PromptLayer

# Of SnapKV's LongBench runs (`ablation_c4096_w32_k7_maxpool`).
WINDOW = 32  # last queries
KERNEL = 7  # neighbours, the token among them

STEEPNESS = 20  # PyramidKV's β: the last layer keeps 1/β of the mean


def observed(layer: PromptLayer, budget: int) -> Tensor:
    """The window's tokens and those with the highest scores; `[kv_heads, budget]`, ascending."""
    n, window = len(layer.keys), min(WINDOW, budget)
    before = n - window
    received = layer.attention_received(before)[:, :before]
    recent = torch.arange(before, n, device=received.device).expand(len(received), -1)
    if budget == window:
        return recent
    smoothed = max_pool1d(received, KERNEL, stride=1, padding=KERNEL // 2)
    best = smoothed.topk(budget - window, dim=1).indices.sort(dim=1).values
    return torch.cat((best, recent), dim=1)


def pyramid(tokens: int, n_layers: int, ratio: float) -> tuple[int, ...]:
    """Budgets that fall in equal steps from the first layer to the last.

    Beside the window, which all keep: the last layer keeps the mean / β, the first so much that
    the mean is met, and where that is more than there is, it keeps all and the last the rest.
    """
    window = min(WINDOW, tokens)
    mean = max(ratio * tokens - window, 0.0)
    first = min((2 - 1 / STEEPNESS) * mean, tokens - window)
    falling = np.linspace(first, 2 * mean - first, n_layers)
    return tuple((window + np.rint(falling).astype(int)).tolist())


SNAPKV = Compressor(
    "snapkv", "40 % of the KV, by the last 32 queries' attention (arXiv 2404.14469)", observed
)
PYRAMIDKV = Compressor(
    "pyramidkv",
    "as snapkv, deeper layers keep less (arXiv 2406.02069)",
    observed,
    pyramid,
)
