"""CacheBlend (arXiv 2405.16444): identical text, then the rows whose KV deviates most.

As in the paper: the first layer is computed for every token, the second compares the
KV it computes with the reused one, and each layer filters the rows that are left, somewhat more
than the ratio at first and less at the end. Its published code picks once, by the values of the
second layer.
"""

from __future__ import annotations

import numpy as np

from semshare.evaluation.methods.base import PolicyMethod, changed, recomputed_by_deviation
from semshare.evaluation.methods.reuse import IDENTICAL_TEXT
from semshare.planning.planner import Draft
from semshare.session import Session
from semshare.types import ReusePlan

RATIO = 0.16  # of the reused tokens, on average over the layers: its code's default
# Ours: the second layer's share of that. The paper filters gradually; no number could be checked.
FIRST = 1.2


def blended(session: Session, draft: Draft, plan: ReusePlan) -> ReusePlan:
    """All reused tokens may be recomputed, fewer in each layer; an exact prefix need not be."""
    del draft
    ratios = RATIO * np.linspace(FIRST, 2 - FIRST, session.model.n_layers - 1)
    return recomputed_by_deviation(plan, ratios)


CACHEBLEND = PolicyMethod(
    "cacheblend",
    "identical text, a full first layer, then 16 % by KV deviation (arXiv 2405.16444)",
    IDENTICAL_TEXT,
    changed(blended),
)
