"""How much attention each key got, for donors' histories."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from semshare_kernels.mixed.cpu import segment_keys
from semshare_kernels.mixed.plan import MixedPlan
from semshare_kernels.rotary.rotation import Rotation

# Scores held at once: 256 MB of float32.
MAX_SCORES = 1 << 26


def attention_mass(
    plan: MixedPlan,
    queries: Tensor,
    keys: Tensor,
    lse: Tensor,
    scale: float,
    turn: Rotation | None = None,
    *,
    first_query: int = 0,
) -> Tensor:
    """How much attention each key got: probabilities summed over heads and queries.

    Args:
        plan, queries, keys, scale, turn: as `mixed_attention` was run with.
        lse: `[n_q, heads]`, which it returned.
        first_query: queries before this one are not counted.

    Returns:
        `[n_keys]` float32, in the order of the table that the plan was made from; their sum is
        counted queries × heads.

    """
    mass = keys.new_zeros(len(plan.keys), dtype=torch.float32)
    n_q, heads, d = queries.shape[1:]
    kv_heads = keys.shape[1]
    for segment in plan.segments:
        key = segment_keys(plan, segment, keys, turn).float().permute(1, 2, 0)[:, None]
        positions = plan.keys.positions[segment.start : segment.stop]
        step = max(MAX_SCORES // (heads * len(segment)), 1)
        for start in range(first_query, n_q, step):
            rows = slice(start, min(start + step, n_q))
            query = queries[segment.query, rows].float()
            grouped = query.view(-1, kv_heads, heads // kv_heads, d).permute(1, 2, 0, 3)
            scores = (grouped @ key).flatten(0, 1) * scale  # [heads, rows, n]
            hidden = _hidden(plan, plan.q_pos[rows], positions)
            if hidden is not None:
                scores.masked_fill_(hidden.to(scores.device), -torch.inf)
            weights = torch.exp(scores - lse[rows].transpose(0, 1)[..., None])
            mass[segment.start : segment.stop] += weights.sum(dim=(0, 1))
    result = torch.empty_like(mass)
    result[torch.from_numpy(plan.order).to(mass.device)] = mass
    return result


def _hidden(plan: MixedPlan, q_pos: np.ndarray, positions: np.ndarray) -> Tensor | None:
    """`[rows, n]` bool: which keys each query must not see; None if it sees all."""
    distance = q_pos[:, None] - positions[None, :]
    hidden = distance < 0
    if plan.window is not None:
        hidden |= distance >= plan.window
    return torch.from_numpy(hidden) if hidden.any() else None
