"""Control: what the mapping is worth. Reused tokens take any token of their donor."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from semshare import ReusePolicy
from semshare.evaluation.methods.base import PolicyMethod, changed
from semshare.planning.planner import Draft
from semshare.session import Session
from semshare.types import ReusePlan, TokenSource

# Sinks and the question stay exact or fresh, as in ours; nothing else is looked at twice.
POLICY = ReusePolicy(recompute=0.0, selection="none", head_tokens=0, fact_guard=False)


def shuffled(session: Session, draft: Draft, plan: ReusePlan) -> ReusePlan:
    """Each token that is not an exact prefix takes a random token of its donor, sinks excepted."""
    del session
    rng = np.random.default_rng(draft.policy.seed)
    position, slots = plan.position.copy(), plan.slots.copy()
    approximate = plan.source > TokenSource.PREFIX
    for index, name in enumerate(plan.donors):
        donor = draft.found.donors[name]
        mine = np.flatnonzero(approximate & (plan.donor == index))
        position[mine] = rng.integers(draft.policy.sink_tokens, len(donor.ids), len(mine))
        slots[mine] = donor.slots[position[mine]]
    source = np.where(approximate, np.uint8(TokenSource.FUZZY), plan.source)
    return replace(plan, source=source, position=position, slots=slots)


RANDOM_MAP = PolicyMethod(
    "random_map",
    "control: what ours would reuse, each token from a random place in its donor",
    POLICY,
    changed(shuffled),
)
