"""torch's CPU flash attention, the one behind `scaled_dot_product_attention`, with its LSE."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def causal_attention(
    query: Tensor, key: Tensor, value: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """Attention of which query i sees keys 0 … i; arguments and results as `fused_attention`'s."""
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query.transpose(0, 1)[None],
        key.transpose(0, 1)[None],
        value.transpose(0, 1)[None],
        0.0,
        is_causal=True,
        scale=scale,
    )
    return out[0].transpose(0, 1), lse[0].transpose(0, 1)


def fused_attention(
    query: Tensor, key: Tensor, value: Tensor, scale: float, *, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Attention of some rows over some keys; heads that share a KV head are rows of one product.

    Args:
        query: `[n_q, heads, d]`.
        key, value: `[n, kv_heads, d]`.
        scale: of the dot products.
        mask: `[n_q, n]` additive; None if all is visible.

    Returns:
        out `[n_q, heads, d]` and lse `[n_q, heads]`, natural log.

    """
    (n_q, heads, d), kv_heads = query.shape, key.shape[1]
    group = heads // kv_heads
    grouped = query.view(n_q, kv_heads, group, d).transpose(0, 1)
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        grouped.reshape(1, kv_heads, n_q * group, d),
        key.transpose(0, 1)[None],
        value.transpose(0, 1)[None],
        0.0,
        False,
        attn_mask=None if mask is None else mask.repeat_interleave(group, dim=0)[None, None],
        scale=scale,
    )
    out = out.view(kv_heads, n_q, group, d).transpose(0, 1).reshape(n_q, heads, d)
    return out, lse.view(kv_heads, n_q, group).transpose(0, 1).reshape(n_q, heads)


def additive_mask(hidden: NDArray[np.bool_], dtype: torch.dtype) -> Tensor | None:
    """What is added to the scores so that nothing is seen where `hidden`; None if all is.

    The lowest finite number instead of −inf: a row that sees none of some keys then gets a weight
    of zero when results are merged, where −inf would make it NaN.
    """
    if not hidden.any():
        return None
    mask = torch.zeros(hidden.shape, dtype=dtype)
    return mask.masked_fill_(torch.from_numpy(hidden), torch.finfo(dtype).min)
