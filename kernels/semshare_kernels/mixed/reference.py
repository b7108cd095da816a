"""`mixed_attention` by its definition. Slow, dense, and what the tests believe."""

from __future__ import annotations

import torch
from torch import Tensor

from semshare_kernels.key_table import Index, KeyTable
from semshare_kernels.rotary.rotation import Rotation, rotated


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
    q_pos: Index,
    table: KeyTable,
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    scale: float,
    window: int | None,
    rotation: Rotation | None,
) -> tuple[Tensor, Tensor]:
    """Dense attention over the gathered sequence, every key turned into its place.

    Args:
        q_pos: `[n_q]` positions of the queries in the sequence.
        table: of all keys of the sequence.
        query: `[n_q, heads, d]`, rotated for `q_pos`.
        keys, values: `[n_slots, kv_heads, d]` of the pool.
        scale: of the dot products.
        window: a query at p sees keys at p − window + 1 … p; None sees all up to p.
        rotation: of all keys, by the shifts of the table; None without RoPE.

    Returns:
        out `[n_q, heads, d]` float32, lse `[n_q, heads]` float32.

    """
    slots = torch.from_numpy(table.slots)
    key = keys[slots].float()
    if rotation is not None:
        key = rotated(key, rotation)
    seen = visible(torch.from_numpy(q_pos), torch.from_numpy(table.positions), window)
    return attend(query, key, values[slots], seen, scale)
