"""Which reused tokens to compute after all: policies that score tokens, by name.

Each takes the same view of a plan in the making and returns a score a token; the highest within
the budget are computed fresh, in every layer. `deviation` is not here: it can only be judged while
the layers run (`planning/deviation.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from semshare.types import Alignment, Mask, Positions, Scores, TokenSource

HEADED_RUN = 32  # tokens a run has at least, for its head to be computed
HEAD_SHARE = 16  # of a run, one in so many tokens


@dataclass(frozen=True, slots=True)
class SelectionInputs:
    """What policies may look at."""

    alignment: Alignment
    donor_history: Scores  # [n] attention that past answers paid to each token's donor token
    query_attention: Scores | None  # [n] attention of this prompt's question, if it was asked
    seed: int


Policy = Callable[[SelectionInputs], Scores]


def _none(inputs: SelectionInputs) -> Scores:
    return np.zeros(len(inputs.alignment.source), dtype=np.float32)


def _random(inputs: SelectionInputs) -> Scores:
    generator = np.random.default_rng(inputs.seed)
    return 1.0 - generator.random(len(inputs.alignment.source), dtype=np.float32)


def _tail(inputs: SelectionInputs) -> Scores:
    return np.arange(1, len(inputs.alignment.source) + 1, dtype=np.float32)


def _first_k(inputs: SelectionInputs) -> Scores:
    """EPIC (arXiv 2410.15332): the first tokens of each reused run, all runs alike."""
    return 1.0 / (1.0 + offset_in_run(inputs.alignment).astype(np.float32))


def _query_attention(inputs: SelectionInputs) -> Scores:
    if inputs.query_attention is None:
        raise AssertionError("the query_attention policy was not given the question's attention")
    return inputs.query_attention


def _donor_history(inputs: SelectionInputs) -> Scores:
    """Past answers' attention to the donor token, or `tail` where no donor has any. Only the order
    counts: taking the maximum or mean over neighbours, or weighting by recency, measured no better.
    """
    return inputs.donor_history if inputs.donor_history.any() else _tail(inputs)


POLICIES: dict[str, Policy] = {
    "none": _none,
    "random": _random,
    "tail": _tail,
    "first_k": _first_k,
    "query_attention": _query_attention,
    "donor_history": _donor_history,
}


def select(selection: str, inputs: SelectionInputs, eligible: Mask, budget: int) -> Positions:
    """At most `budget` eligible positions with the highest positive scores, ascending."""
    scores = POLICIES[selection](inputs)
    positions = np.flatnonzero(eligible & (scores > 0))
    order = np.argsort(-scores[positions], kind="stable")[:budget]
    return np.sort(positions[order]).astype(np.int32)


def run_heads(alignment: Alignment, most: int) -> Mask:
    """`[n]` the first tokens of long runs of identical ids: a sixteenth, and at most `most`.

    EPIC (arXiv 2410.15332) computes a fixed number; a share keeps short runs worth reusing.
    """
    starts = _run_starts(alignment)
    lengths = np.diff(np.append(np.flatnonzero(starts), len(starts)))
    heads = np.where(lengths >= HEADED_RUN, np.minimum(lengths // HEAD_SHARE, most), 0)
    in_head = offset_in_run(alignment) < np.repeat(heads, lengths)
    mask: Mask = in_head & (alignment.source == TokenSource.SPAN)
    return mask


def _run_starts(alignment: Alignment) -> Mask:
    """`[n]` whether each token begins a run; a run continues in its donor."""
    starts = np.ones(len(alignment.source), dtype=np.bool_)
    starts[1:] = (np.diff(alignment.position) != 1) | (np.diff(alignment.donor) != 0)
    return starts


def offset_in_run(alignment: Alignment) -> NDArray[np.int64]:
    """`[n]` how many tokens into its run each token is."""
    index = np.arange(len(alignment.source))
    return index - np.maximum.accumulate(np.where(_run_starts(alignment), index, 0))


def history_of(alignment: Alignment, histories: list[Scores]) -> Scores:
    """`[n]` past attention to each token's donor token; 0 where there is no donor.

    Args:
        alignment: which donor token stands for each token.
        histories: for each of its donors `[donor tokens]`, or empty if none was recorded.

    """
    mapped = np.zeros(len(alignment.source), dtype=np.float32)
    for index, history in enumerate(histories):
        mine = np.flatnonzero((alignment.donor == index) & (alignment.source > TokenSource.PREFIX))
        if len(history):
            mapped[mine] = history[alignment.position[mine]]
    return mapped
