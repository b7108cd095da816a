"""Decode attention of several sequences that share parts of their KV."""

from __future__ import annotations

from torch import Tensor

from semshare_kernels.decode import cpu
from semshare_kernels.decode.plan import DecodePlan
from semshare_kernels.decode.tree import KeyTree
from semshare_kernels.key_table import Index
from semshare_kernels.shape import AttentionShape

__all__ = ["DecodePlan", "KeyTree", "decode_attention", "plan_decode"]


def plan_decode(
    q_pos: Index, tree: KeyTree, *, window: int | None, shape: AttentionShape
) -> DecodePlan:
    """Cut a decode step into work for a device: the same in every layer with this window.

    Args:
        q_pos: `[n_sequences]` positions of the queries. Each must see its own key, at least.
        tree: the nodes and who reads them.
        window: sliding window of the layers this plan is for, tokens; None for full attention.
        shape: of the model's attention.

    """
    if shape.device.type == "cpu":
        return cpu.plan_for_cpu(q_pos, tree, window, shape)
    from semshare_kernels.decode import gpu  # noqa: PLC0415 - needs Triton

    return gpu.plan_for_gpu(q_pos, tree, window, shape)


def decode_attention(
    plan: DecodePlan, queries: Tensor, keys: Tensor, values: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """Run a decode plan in one layer.

    Args:
        plan: from `plan_decode`.
        queries: `[n_rows, heads, d]`, rotated as the plan's rows say.
        keys, values: `[n_slots, kv_heads, d]` of the pool, read in place.
        scale: of the dot products.

    Returns:
        out `[n_sequences, heads, d]` in the queries' dtype, lse `[n_sequences, heads]` float32,
        natural log.

    """
    return plan.tiles.attend(queries, keys, values, scale)
