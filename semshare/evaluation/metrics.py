"""Task metrics, each small enough to check by hand. Fidelity's are in `semshare.fidelity`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from semshare.errors import InvalidRequest, ModelNotAvailable


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
