"""EPIC (arXiv 2410.15332): identical text, but for the first tokens of each run.

A run's first tokens were attention sinks where it was computed by itself; LegoLink computes k of
them anew, and nothing else that is reused.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from semshare.evaluation.methods.base import PolicyMethod, changed
from semshare.evaluation.methods.reuse import IDENTICAL_TEXT
from semshare.planning.planner import Draft
from semshare.planning.selection import offset_in_run
from semshare.session import Session
from semshare.types import FreshReason, ReusePlan, TokenSource

HEAD_TOKENS = 16  # k of LegoLink-16, the variant that the paper's scaling figure shows


def linked(session: Session, draft: Draft, plan: ReusePlan) -> ReusePlan:
    """The first tokens of each run are fresh; runs are at least that long (`min_span`)."""
    del session
    heads = (offset_in_run(draft.alignment) < HEAD_TOKENS) & (plan.source > TokenSource.PREFIX)
    return replace(
        plan,
        source=np.where(heads, np.uint8(TokenSource.FRESH), plan.source),
        donor=np.where(heads, np.int32(-1), plan.donor),
        position=np.where(heads, np.int32(-1), plan.position),
        slots=np.where(heads, -1, plan.slots),
        reasons=np.where(heads, np.uint8(FreshReason.HEAD), plan.reasons),
    )


EPIC = PolicyMethod(
    "epic",
    "identical text, the first 16 tokens of each run computed (arXiv 2410.15332)",
    IDENTICAL_TEXT,
    changed(linked),
)
