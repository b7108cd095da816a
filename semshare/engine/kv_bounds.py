"""How large a model's keys and values can be at all."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from semshare.engine.adapter import NO_ROPE, ModelAdapter

_ROUNDING = 1.05  # bfloat16 keeps 8 bits: a product of rounded factors may pass the bound a little


@dataclass(frozen=True, slots=True)
class Magnitudes:
    """The largest magnitude that a number of one layer's keys, or values, can have."""

    key: float
    value: float


@torch.inference_mode()
def largest_magnitudes(adapter: ModelAdapter, index: int) -> Magnitudes:
    """Bounds that hold for every prompt, from a layer's weights.

    What a projection sees is x̂ · g, where RMSNorm makes ‖x̂‖ ≤ √hidden. So the number that row w of
    the projection gives is at most √hidden · ‖w · g‖ + |bias| (Cauchy–Schwarz), or, where each head
    is normed again, √d times the norm's largest weight. RoPE turns pairs of numbers: each is at
    most √2 times the larger of the two, times the scaling that some variants apply.
    """
    layer = adapter.layers[index]
    (key_weight, key_bias), (value_weight, value_bias) = adapter.kv_projections(index)
    gain = _gain_of(layer.input_layernorm, key_weight)
    key_norm = getattr(layer.self_attn, "k_norm", None)
    if key_norm is None:
        key = _largest_output(key_weight, key_bias, gain)
    else:
        per_number = _gain_of(key_norm, key_weight.new_empty(1, adapter.head_dim))
        key = math.sqrt(adapter.head_dim) * float(per_number.abs().max())
    if adapter.rope_kinds[index] != NO_ROPE:
        at_zero = torch.zeros(1, dtype=torch.int64, device=adapter.device)
        scaling, _ = adapter.rope(at_zero)[adapter.rope_kinds[index]]  # the cosine of 0, scaled
        key *= math.sqrt(2.0) * float(scaling.max())
    value = _largest_output(value_weight, value_bias, gain)
    return Magnitudes(_ROUNDING * key, _ROUNDING * value)


def _gain_of(norm: torch.nn.Module, like: Tensor) -> Tensor:
    """`[width]` float32: the norm's weights as it applies them, for rows as wide as `like`'s.

    The mean square of ones is one, so they come out as what they are multiplied with.
    """
    ones = torch.ones(1, like.shape[1], dtype=like.dtype, device=like.device)
    return norm(ones)[0].float()  # type: ignore[no-any-return]


def _largest_output(weight: Tensor, bias: Tensor | None, gain: Tensor) -> float:
    reach = (weight.float() * gain).norm(dim=1) * math.sqrt(weight.shape[1])
    if bias is not None:
        reach = reach + bias.float().abs()
    return float(reach.max())
