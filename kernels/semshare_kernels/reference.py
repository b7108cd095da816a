"""Plain-torch definitions of the attention ops. Slow, dense, and what the tests believe."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def merge_states(
    out: Tensor, lse: Tensor, other_out: Tensor, other_lse: Tensor
) -> tuple[Tensor, Tensor]:
    """Attention over the union of two disjoint key sets, from each set's result.

    Args:
        out, other_out: `[n_q, heads, d]`.
        lse, other_lse: `[n_q, heads]` float32, natural log of the sum of exponentials; −inf for
            a row that saw no key.

    Returns:
        out float32 and lse of the union (Hydragen, arXiv 2402.05099, eq. 5). A row that saw no
        key in either set is zero with lse −inf.

    """
    total = torch.logaddexp(lse, other_lse)
    seen = torch.where(total == -torch.inf, 0.0, total)
    weight = torch.exp(lse - seen)[..., None]
    other_weight = torch.exp(other_lse - seen)[..., None]
    return out.float() * weight + other_out.float() * other_weight, total


def visible(q_pos: Tensor, kv_pos: Tensor, window: int | None) -> Tensor:
    """`[n_q, n_k]` bool: which keys each query may see, by position."""
    distance = q_pos[:, None] - kv_pos[None, :]
    mask = distance >= 0
    return mask if window is None else mask & (distance < window)


def attend(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """Masked attention of one query set over one key set, float32 inside.

    Args:
        query: `[n_q, heads, d]`.
        key, value: `[n_k, kv_heads, d]`; heads is a multiple of kv_heads (GQA).
        mask: `[n_q, n_k]` bool, true where the query sees the key.
        scale: of the dot products.

    Returns:
        out `[n_q, heads, d]` float32 and lse `[n_q, heads]` float32; a row that sees nothing is
        zero with lse −inf.

    """
    group = query.shape[1] // key.shape[1]
    k = key.float().repeat_interleave(group, dim=1)
    # A key that nobody sees may hold anything; 0 × NaN would still be NaN.
    v = torch.nan_to_num(value.float()).repeat_interleave(group, dim=1)
    scores = torch.einsum("qhd,khd->qhk", query.float(), k) * scale
    scores = scores.masked_fill(~mask[:, None, :], -torch.inf)
    lse = torch.logsumexp(scores, dim=-1)
    weights = torch.exp(scores - torch.where(lse == -torch.inf, 0.0, lse)[..., None])
    return torch.einsum("qhk,khd->qhd", weights, v), lse


def mixed_attention(
    queries: Sequence[Tensor],
    q_pos: Tensor,
    keys: Sequence[Tensor],
    values: Sequence[Tensor],
    kv_pos: Sequence[Tensor],
    scale: float,
    window: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Attention over segments of keys that each want their own rotation of the queries.

    Args:
        queries: for each segment, the queries rotated to where that segment's keys were stored,
            `[n_q, heads, d]`.
        q_pos: `[n_q]` positions of the queries in the sequence.
        keys, values: for each segment `[n_k, kv_heads, d]`.
        kv_pos: for each segment `[n_k]` positions in the sequence.
        scale: of the dot products.
        window: a query at p sees keys at p − window + 1 … p; None sees all up to p.

    Returns:
        out `[n_q, heads, d]` in the queries' dtype, lse `[n_q, heads]` float32.

    """
    out = torch.zeros_like(queries[0], dtype=torch.float32)
    lse = torch.full(out.shape[:2], -torch.inf, device=out.device)
    for query, key, value, positions in zip(queries, keys, values, kv_pos, strict=True):
        part = attend(query, key, value, visible(q_pos, positions, window), scale)
        out, lse = merge_states(out, lse, *part)
    return out.to(queries[0].dtype), lse
