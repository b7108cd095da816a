"""Recompute by KV deviation, as published: the rows whose reused KV is most wrong.

CacheBlend (arXiv 2405.16444) runs the first layer on every token, compares what it computes in
the next with what was reused, and recomputes the highest-deviating tokens from there on.
SemShareKV (arXiv 2509.24832) lets that set shrink with depth.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from semshare.types import DeviationSchedule, Positions


def shrinking_schedule(candidates: Positions, n_layers: int, budget: int) -> DeviationSchedule:
    """One full layer, then a linearly shrinking set of `budget` tokens on average.

    From 1.5 × the budget in the second layer down to 0.5 × in the last: deviations are larger in
    shallow layers and their positions correlate across layers (SemShareKV, section 4).
    """
    return schedule_of(candidates, np.linspace(1.5, 0.5, n_layers - 1) * budget)


def schedule_of(candidates: Positions, sizes: NDArray[np.float64]) -> DeviationSchedule:
    """One full layer, then so many tokens in each of the others.

    Args:
        candidates: rows that may be chosen.
        sizes: `[n_layers − 1]`, none larger than the one before; rounded up.

    """
    kept = np.minimum(np.ceil(sizes).astype(int), len(candidates))
    return DeviationSchedule(keep=(len(candidates), *kept.tolist()), candidates=candidates)


def keep_most_deviating(
    schedule: DeviationSchedule,
    layer: int,
    positions: NDArray[np.int64],
    key: Tensor,
    value: Tensor,
    reused_key: Tensor,
    reused_value: Tensor,
) -> Tensor | None:
    """Which of the current rows go on, as ascending indices; None for all of them.

    Rows that are not candidates always go on. The others are ranked by the squared L2 distance
    between computed and reused KV, summed over heads.

    Args:
        schedule: how many candidates `layer` keeps.
        layer: index of the layer that is about to attend.
        positions: `[n]` of the current rows.
        key, value, reused_key, reused_value: `[n, kv_heads, d]` of this layer.

    """
    is_candidate = torch.from_numpy(np.isin(positions, schedule.candidates)).to(key.device)
    quota = schedule.keep[layer]
    if int(is_candidate.sum()) <= quota:
        return None
    difference = (key.float() - reused_key.float()).square().sum(dim=(1, 2))
    difference += (value.float() - reused_value.float()).square().sum(dim=(1, 2))
    difference[~is_candidate] = -torch.inf
    chosen = ~is_candidate
    chosen[difference.topk(quota).indices] = True
    return chosen.nonzero()[:, 0]
