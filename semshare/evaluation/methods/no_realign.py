"""Control: what re-alignment is worth. Moved keys keep the rotation of where they were stored."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from semshare.evaluation.methods.base import PolicyMethod, changed
from semshare.evaluation.methods.reuse import IDENTICAL_TEXT
from semshare.planning.planner import Draft
from semshare.session import Session
from semshare.types import ReusePlan, TokenSource


def unmoved(session: Session, draft: Draft, plan: ReusePlan) -> ReusePlan:
    """The same slots, said to be stored for the positions they are read at: no shift, no rotation.

    Provenance so names the target's positions as the donor's.
    """
    del session, draft
    reused = plan.source != TokenSource.FRESH
    here = np.arange(len(plan.ids), dtype=np.int32)
    return replace(plan, position=np.where(reused, here, -1).astype(np.int32))


NO_REALIGN = PolicyMethod(
    "no_realign",
    "control: as align_only, but keys stay rotated for their old positions",
    IDENTICAL_TEXT,
    changed(unmoved),
)
