"""How much attention each key got, for donors' histories."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from semshare_kernels.key_table import rows_at
from semshare_kernels.mixed.plan import MixedPlan, Segments
from semshare_kernels.rotary.rotation import Rotation, rotated

# Keys read at once: those that don't lie in a row are gathered.
PART_KEYS = 1024
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
    table = plan.by_shift.table
    mass = keys.new_zeros(len(table), dtype=torch.float32)
    n_q, heads, d = queries.shape[1:]
    kv_heads = keys.shape[1]
    for part, query_set in _parts(plan.by_shift):
        slots, positions = table.slots[part], table.positions[part]
        key = rows_at(keys, slots).float()
        if turn is not None and part.start >= plan.by_shift.first_turned:
            first = part.start - plan.by_shift.first_turned
            key = rotated(key, turn.part(slice(first, first + len(slots))))
        key = key.permute(1, 2, 0)[:, None]
        step = max(MAX_SCORES // (heads * len(slots)), 1)
        for start in range(first_query, n_q, step):
            rows = slice(start, min(start + step, n_q))
            query = queries[query_set, rows].float()
            grouped = query.view(-1, kv_heads, heads // kv_heads, d).permute(1, 2, 0, 3)
            scores = (grouped @ key).flatten(0, 1) * scale  # [heads, rows, n]
            hidden = _hidden(plan, plan.q_pos[rows], positions)
            if hidden is not None:
                scores.masked_fill_(hidden.to(scores.device), -torch.inf)
            weights = torch.exp(scores - lse[rows].transpose(0, 1)[..., None])
            mass[part] += weights.sum(dim=(0, 1))
    result = torch.empty_like(mass)
    result[torch.from_numpy(plan.by_shift.order).to(mass.device)] = mass
    return result


def _parts(keys: Segments) -> Iterator[tuple[slice, int]]:
    """A few keys of the table at a time, and which set of queries they meet."""
    for segment in keys.segments:
        for start in range(segment.start, segment.stop, PART_KEYS):
            yield slice(start, min(start + PART_KEYS, segment.stop)), segment.query


def _hidden(plan: MixedPlan, q_pos: np.ndarray, positions: np.ndarray) -> Tensor | None:
    """`[rows, n]` bool: which keys each query must not see; None if it sees all."""
    distance = q_pos[:, None] - positions[None, :]
    hidden = distance < 0
    if plan.window is not None:
        hidden |= distance >= plan.window
    return torch.from_numpy(hidden) if hidden.any() else None
