"""How far the logits of mixed KV are from a full prefill's.

Logits are `[n, vocab]` float32 tensors of the same n teacher-forced tokens; KL is computed in
float64, since that between two nearly equal float32 distributions is lost in rounding.
"""

from __future__ import annotations

import torch
from torch import Tensor

from semshare.errors import InvalidRequest

_ROWS = 64  # rows in float64 at a time: 64 × 50k × 8 bytes = 25 MB


def kl(full_logits: Tensor, other_logits: Tensor) -> float:
    """Mean KL(full ‖ other) in nats a token, over `[n, vocab]` logits.

    Raises:
        InvalidRequest: the shapes differ, or there is no token.

    """
    return float(kl_per_token(full_logits, other_logits).mean())


def kl_per_token(full_logits: Tensor, other_logits: Tensor) -> Tensor:
    """KL(full ‖ other) of each token, `[n]` float64, in nats; never negative."""
    _require_same_shape(full_logits, other_logits)
    parts = []
    for start in range(0, len(full_logits), _ROWS):
        rows = slice(start, start + _ROWS)
        full_log = torch.log_softmax(full_logits[rows].double(), dim=-1)
        other_log = torch.log_softmax(other_logits[rows].double(), dim=-1)
        # A token that full gives probability 0 (a masked logit, −inf) adds nothing: 0 · log 0 = 0.
        terms = torch.where(full_log.isneginf(), 0.0, full_log.exp() * (full_log - other_log))
        parts.append(terms.sum(dim=-1))
    return torch.cat(parts).clamp_min(0.0)  # rounding can leave −1e-17


def top1_agreement(full_logits: Tensor, other_logits: Tensor) -> float:
    """Share of tokens, 0 to 1, whose most likely next token is the same."""
    _require_same_shape(full_logits, other_logits)
    same = full_logits.argmax(dim=-1) == other_logits.argmax(dim=-1)
    return float(same.double().mean())


def max_logit_difference(full_logits: Tensor, other_logits: Tensor) -> float:
    """Largest absolute difference of any two logits."""
    _require_same_shape(full_logits, other_logits)
    return float((full_logits - other_logits).abs().max())


def _require_same_shape(full: Tensor, other: Tensor) -> None:
    if full.shape != other.shape or full.ndim != 2 or full.shape[0] == 0:
        raise InvalidRequest(
            f"logits of shapes {tuple(full.shape)} and {tuple(other.shape)}: both must be "
            "[n, vocab] with the same n, at least 1"
        )
