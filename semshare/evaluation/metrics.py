"""Task metrics, each small enough to check by hand. Fidelity's are in `semshare.fidelity`."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from rapidfuzz.distance import Indel
from torch import Tensor

from semshare.errors import InvalidRequest, ModelNotAvailable

_ROUGES = ("rouge1", "rouge2", "rougeL")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


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


@dataclass(frozen=True, slots=True)
class Rouge:
    """F1 of common unigrams, bigrams and the longest common subsequence, each from 0 to 1."""

    rouge1: float
    rouge2: float
    rouge_l: float


def rouge_scores(reference: str, answer: str) -> Rouge:
    """ROUGE-1, -2 and -L with Porter stemming (Lin, 2004; the `rouge-score` package).

    Raises:
        ModelNotAvailable: `rouge-score` is not installed.

    """
    scores = _rouge_scorer().score(reference, answer)
    return Rouge(*(float(scores[name].fmeasure) for name in _ROUGES))


def rouge_l(reference: str, answer: str) -> float:
    """`rouge_scores(reference, answer).rouge_l`."""
    return rouge_scores(reference, answer).rouge_l


def token_f1(reference: str, answer: str) -> float:
    """F1 of the words that both have, 0 to 1, normalised as in SQuAD (Rajpurkar et al., 2016).

    That is lower case without punctuation and articles; LongBench's `qa_f1_score`.
    """
    expected, said = _squad_words(reference), _squad_words(answer)
    common = (Counter(expected) & Counter(said)).total()
    return 2 * common / (len(expected) + len(said)) if common else 0.0


def edit_similarity(reference: str, answer: str) -> float:
    """Likeness of the answer's first line of code to the right one, 0 to 1.

    1 − d / (len + len) characters, where d counts insertions and deletions; LongBench's
    `code_sim_score`, which passes over fences and comments.
    """
    lines = answer.lstrip("\n").split("\n")
    code = (line for line in lines if not any(mark in line for mark in ("`", "#", "//")))
    return Indel.normalized_similarity(reference, next(code, ""))


def choice_accuracy(reference: str, answer: str) -> float:
    """1.0 if the first of the letters A to D that stands by itself is the right one, else 0.0."""
    letter = re.search(r"\b[A-D]\b", answer)
    return float(letter is not None and letter[0] == reference)


# A set's metric, by the name it has in `Dataset`: (reference, answer) → 0 to 1.
TASK_METRICS: dict[str, Callable[[str, str], float]] = {
    "rouge_l": rouge_l,
    "token_f1": token_f1,
    "accuracy": choice_accuracy,
    "edit_similarity": edit_similarity,
}


def task_score(metric: str, references: Sequence[str], answer: str) -> float:
    """The answer's score against the reference it is nearest to, as LongBench scores answers.

    Raises:
        InvalidRequest: a metric that compares no texts, or no reference.

    """
    if metric not in TASK_METRICS:
        known = ", ".join(TASK_METRICS)
        raise InvalidRequest(f"{metric!r} compares no answers with references: choose {known}")
    if not references:
        raise InvalidRequest("an answer needs at least one reference to be scored against")
    return max(TASK_METRICS[metric](reference, answer) for reference in references)


def _squad_words(text: str) -> list[str]:
    bare = text.lower().translate(_NO_PUNCTUATION)
    return [word for word in bare.split() if word not in ("a", "an", "the")]


@cache
def _rouge_scorer() -> Any:
    try:
        from rouge_score import rouge_scorer  # noqa: PLC0415 - imports NLTK, which takes a second
    except ModuleNotFoundError as error:
        raise ModelNotAvailable(
            'the package rouge-score is missing: pip install "semshare[eval]"'
        ) from error
    return rouge_scorer.RougeScorer(list(_ROUGES), use_stemmer=True)
