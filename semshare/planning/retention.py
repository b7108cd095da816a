"""Which of a prompt's tokens each layer keeps once the prompt is computed. Pure.

Deep layers attend to few tokens, and what they leave out is the most redundant: keeping fewer
tokens the deeper the layer costs less than keeping as many in each, exponential decay least of
all (SemShareKV, arXiv 2509.24832; PyramidKV, arXiv 2406.02069, finds the same shape). Within a
layer the tokens stay that the end of the prompt attended to (SnapKV, arXiv 2404.14469).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from semshare.errors import InvalidRequest
from semshare.types import Scores

# λ × (layers − 1): the last layer keeps a quarter of what the first one does. So half of all
# tokens is the first layer nearly whole (0.92), and no layer is emptied at the shares in use.
DECAY = math.log(4)


def layer_budgets(n_tokens: int, n_layers: int, share: float, *, at_least: int) -> tuple[int, ...]:
    """How many tokens each layer keeps.

    Layer l's share is r_l = min(1, r_0 · exp(−λ·l)) with a mean of `share`. In whole tokens that
    is Webster's apportionment: the k-th token of a layer costs (k − ½) · exp(λ·l), and the
    cheapest are kept. So the budgets add up exactly, shrink with depth, and none of them shrinks
    when `share` grows, which rounding the r_l would not give.

    Args:
        n_tokens: of the prompt.
        n_layers: of the model.
        share: of all (token, layer) pairs, above 0 and at most 1; 1 keeps everything.
        at_least: tokens that every layer keeps, whatever the share.

    Returns:
        `n_layers` budgets. They add up to share × n_tokens × n_layers, rounded, or to what
        `at_least` makes of it.

    Raises:
        InvalidRequest: `share` is out of its range.

    """
    if not 0.0 < share <= 1.0:
        raise InvalidRequest(f"share is {share!r}: it must be above 0, and 1 keeps everything")
    at_least = min(at_least, n_tokens)
    to_choose = round(share * n_tokens * n_layers) - at_least * n_layers
    if to_choose <= 0:
        return (at_least,) * n_layers
    growth = np.exp(DECAY / max(n_layers - 1, 1) * np.arange(n_layers))
    costs = growth[:, None] * (np.arange(at_least, n_tokens) + 0.5)
    cheapest = np.argpartition(costs, to_choose - 1, axis=None)[:to_choose]
    chosen = np.bincount(cheapest // (n_tokens - at_least), minlength=n_layers)
    return tuple((at_least + chosen).tolist())


def retained(
    scores: Scores, budgets: Sequence[int], *, sinks: int, recent: int
) -> tuple[NDArray[np.int64], ...]:
    """Which tokens each layer keeps: its first, its last, then those with the highest scores.

    Args:
        scores: `[layers, n]` attention that the last tokens of the prompt paid to each token.
        budgets: for each layer, at most n and no fewer than are always kept.
        sinks: first tokens of the prompt, always kept.
        recent: last tokens of the prompt, always kept.

    Returns:
        For each layer `[budget]` positions, ascending; of equal scores the earlier is kept.

    """
    n = scores.shape[1]
    ranked = scores.copy()
    ranked[:, :sinks] = np.inf
    ranked[:, max(n - recent, 0) :] = np.inf
    order = np.argsort(-ranked, axis=1, kind="stable")
    return tuple(np.sort(best[:budget]) for best, budget in zip(order, budgets, strict=True))
