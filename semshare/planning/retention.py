"""Which of a prompt's tokens each layer keeps once the prompt is computed. Pure.

Within a layer the tokens stay that the end of the prompt attended to (SnapKV, arXiv 2404.14469).
Layers may keep fewer tokens the deeper they lie (SemShareKV, arXiv 2509.24832, which finds an
exponential decay best; PyramidKV, arXiv 2406.02069).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from semshare.errors import InvalidRequest
from semshare.types import Scores

if TYPE_CHECKING:
    from semshare.config import ReusePolicy

# Measured (docs/decisions.md): the decay published for models of 7 billion parameters costs
# the bundled one fidelity at every rate that was tried.
DECAY = 0.0
LOOKING_ROWS = 128  # the last rows of a prompt that are computed: their attention counts
RECENT = 32  # last tokens that every layer keeps


@dataclass(frozen=True, slots=True)
class Retention:
    """How much of a prompt's KV stays once it is computed; the fields are those of a policy."""

    share: float  # of all (token, layer) pairs
    decay: float
    sinks: int  # first tokens that every layer keeps

    @classmethod
    def of(cls, policy: ReusePolicy) -> Retention | None:
        """What a policy wants to be kept of a prompt; None for all of it."""
        if policy.retention == 1.0:
            return None
        return cls(policy.retention, policy.retention_decay, sinks=policy.sink_tokens)

    def budgets(self, n_tokens: int, n_layers: int) -> tuple[int, ...]:
        """How many tokens each layer keeps of a prompt of `n_tokens`."""
        at_least = self.sinks + RECENT
        return layer_budgets(n_tokens, n_layers, self.share, at_least=at_least, decay=self.decay)


def layer_budgets(
    n_tokens: int, n_layers: int, share: float, *, at_least: int, decay: float = DECAY
) -> tuple[int, ...]:
    """How many tokens each layer keeps.

    Layer l's share is r_l = min(1, r_0 · exp(−λ·l)) with a mean of `share`. In whole tokens that
    is Webster's apportionment: the k-th token of a layer costs (k − ½) · exp(λ·l), and the
    cheapest are kept, of equal ones the shallower. So the budgets add up exactly, shrink with
    depth, and none of them shrinks when `share` grows, which rounding the r_l would not give.

    Args:
        n_tokens: of the prompt.
        n_layers: of the model.
        share: of all (token, layer) pairs, above 0 and at most 1; 1 keeps everything.
        at_least: tokens that every layer keeps, whatever the share.
        decay: λ × (n_layers − 1), so that the last layer's share is exp(−decay) of the first's
            where neither is clipped; 0 for as many tokens in each layer.

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
    growth = np.exp(decay / max(n_layers - 1, 1) * np.arange(n_layers))
    costs = (np.arange(at_least, n_tokens) + 0.5)[:, None] * growth
    cheapest = np.argsort(costs, axis=None, kind="stable")[:to_choose]
    chosen = np.bincount(cheapest % n_layers, minlength=n_layers)
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
