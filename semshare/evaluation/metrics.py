"""Fidelity and task metrics, each small enough to check by hand.

Logits are `[n, vocab]` float32 tensors of the same n teacher-forced tokens; everything is computed
in float64, since KL between two nearly equal float32 distributions is lost in rounding.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from semshare.errors import InvalidRequest, ModelNotAvailable

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


def mean_log_likelihood(logits: Tensor, token_ids: Sequence[int]) -> float:
    """Mean natural-log probability a token of `token_ids` `[n]` under `logits` `[n, vocab]`."""
    if logits.shape[0] != len(token_ids) or not token_ids:
        raise InvalidRequest(
            f"{logits.shape[0]} rows of logits for {len(token_ids)} tokens: one row a token"
        )
    log_probs = torch.log_softmax(logits.double(), dim=-1)
    index = torch.tensor(list(token_ids), dtype=torch.long, device=logits.device)
    return float(log_probs.gather(1, index[:, None]).mean())


def performance_gap_recovered(method: float, full: float, no_context: float) -> float | None:
    """PGR = (method − no context) / (full − no context) of any score where more is better.

    1.0 is full prefill, 0.0 is no context at all. None where the context makes no difference, so
    that there is no gap to recover.
    """
    gap = full - no_context
    return None if abs(gap) < 1e-9 else (method - no_context) / gap


def rouge_l(reference: str, answer: str) -> float:
    """ROUGE-L F1, 0 to 1, with Porter stemming (Lin, 2004; the `rouge-score` package).

    Raises:
        ModelNotAvailable: `rouge-score` is not installed.

    """
    try:
        from rouge_score import rouge_scorer  # noqa: PLC0415 - imports NLTK, which takes a second
    except ModuleNotFoundError as error:
        raise ModelNotAvailable(
            'the package rouge-score is missing: pip install "semshare[eval]"'
        ) from error
    scorer = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=True)
    return float(scorer.score(reference, answer)["rougeL"].fmeasure)


def _require_same_shape(full: Tensor, other: Tensor) -> None:
    if full.shape != other.shape or full.ndim != 2 or full.shape[0] == 0:
        raise InvalidRequest(
            f"logits of shapes {tuple(full.shape)} and {tuple(other.shape)}: both must be "
            "[n, vocab] with the same n, at least 1"
        )
