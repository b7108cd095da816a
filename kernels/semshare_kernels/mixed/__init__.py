"""Attention of scattered queries over reused and fresh keys of one sequence."""

from __future__ import annotations

from torch import Tensor

from semshare_kernels.key_table import Index, KeyTable
from semshare_kernels.mixed import cpu
from semshare_kernels.mixed.mass import attention_mass
from semshare_kernels.mixed.plan import MixedPlan
from semshare_kernels.rotary.rotation import Rotation
from semshare_kernels.shape import AttentionShape

__all__ = ["MixedPlan", "attention_mass", "mixed_attention", "plan_mixed"]


def plan_mixed(
    q_pos: Index, keys: KeyTable, *, window: int | None, shape: AttentionShape
) -> MixedPlan:
    """Cut attention into work for a device: the same in every layer with this window.

    Args:
        q_pos: `[n_q]` ascending positions of the queries. Each must see its own key, at least.
        keys: of the sequence.
        window: sliding window of the layers this plan is for, tokens; None for full attention.
        shape: of the model's attention.

    """
    if shape.device.type == "cpu":
        return cpu.plan_for_cpu(q_pos, keys, window, shape)
    from semshare_kernels.mixed import gpu  # noqa: PLC0415 - needs Triton

    return gpu.plan_for_gpu(q_pos, keys, window, shape)


def mixed_attention(
    plan: MixedPlan,
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    scale: float,
    turn: Rotation | None = None,
) -> tuple[Tensor, Tensor]:
    """Run a plan in one layer.

    Args:
        plan: from `plan_mixed`.
        queries: `[n_shifts, n_q, heads, d]`, for each of the plan's `shifts` all queries rotated
            for position − shift.
        keys, values: `[n_slots, kv_heads, d]` of the pool, read in place.
        scale: of the dot products.
        turn: by the plan's `turned_shifts`; None if all are 0, or the layer has no RoPE.

    Returns:
        out `[n_q, heads, d]` in the queries' dtype and lse `[n_q, heads]` float32, natural log.

    """
    return plan.tiles.attend(queries.flatten(0, 1), keys, values, scale, turn)
