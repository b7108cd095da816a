"""SemShareKV (arXiv 2509.24832): every token reuses the nearest token of the most similar prompt.

From the abstract: tokens are matched by LSH over embeddings with RoPE applied to them. From
summaries of the rest: one donor a prompt; the first layer is computed in full; later layers
recompute the tokens whose KV deviates most, fewer the deeper they lie; deeper layers keep fewer
tokens, best by exponential decay. Numbers are those of a third party's reproduction and marked
so, for the paper's own could not be checked. Where sources leave something open, what is better for
the method is done:

- keys are moved to their new positions (sources differ; without that all phases are wrong);
- an exact prefix is reused as such;
- the queries that score what is kept are computed in every layer;
- what is kept is scored as this library does (`semshare.engine.retain`), from up to 128 rows.
"""

from __future__ import annotations

import numpy as np

from semshare import ReusePolicy
from semshare.engine.served import Planned
from semshare.engine.stopwatch import Stopwatch
from semshare.evaluation.methods.base import PolicyMethod, recomputed_by_deviation
from semshare.planning.align import AlignmentBuilder, FuzzyCandidate, align_nearest
from semshare.planning.planner import Draft, Found
from semshare.session import Session
from semshare.types import Alignment, Ids

# Unverified, from a third party's code: its "hot" and "cold" recompute shares. Taken for those of
# the second and the last layer, with exponential decay between, as in what is kept.
RECOMPUTE_SECOND_LAYER = 0.5
RECOMPUTE_LAST_LAYER = 0.1
KEEP = 0.6  # unverified, from the same: share of all (token, layer) pairs that answers see
# Ours: the decay with which the first layer just keeps everything, (1 − e⁻ᵈ) / d = `KEEP`.
KEEP_DECAY = 1.13
SCORE_WINDOW = 32  # unverified, from the same: last queries, which score what is kept

POLICY = ReusePolicy(
    mode="semantic",
    recompute=0.0,
    selection="none",
    min_similarity=0.0,
    min_span=1 << 20,  # no spans: every token is matched by its code
    sink_tokens=0,
    tail_tokens=SCORE_WINDOW,
    head_tokens=0,
    fact_guard=False,
    retention=KEEP,
    retention_decay=KEEP_DECAY,
)


def planned(
    session: Session, ids: Ids, policy: ReusePolicy, namespace: str, watch: Stopwatch
) -> Planned:
    """Find the donor → match every token → plan with its recompute schedule."""
    with watch.measure("find_donors"):
        found = session.planner.find_donors(ids, policy, namespace)
    with watch.measure("align"):
        alignment = _matched(session, ids, found)
    with watch.measure("plan"):
        nothing = np.zeros(len(ids), dtype=np.bool_)
        plan = session.planner.finish(Draft(ids, policy, found, alignment, unsafe=nothing))
        layers = session.model.n_layers - 1
        shares = np.geomspace(RECOMPUTE_SECOND_LAYER, RECOMPUTE_LAST_LAYER, layers)
        plan = recomputed_by_deviation(plan, shares)
    return Planned(plan, policy.mode, found.prefix_owners)


def _matched(session: Session, ids: Ids, found: Found) -> Alignment:
    builder = AlignmentBuilder(len(ids))
    builder.set_prefix(len(found.prefix_slots), found.prefix_donor)
    for name in found.similar[:1]:
        donor = found.donors[name]
        align_nearest(builder, ids, FuzzyCandidate(name, donor.ids, donor.codes), session.lsh)
    return builder.build()


SEMSHAREKV = PolicyMethod(
    "semsharekv",
    "every token from the most similar prompt by LSH, recompute and retention that shrink with "
    "depth (arXiv 2509.24832)",
    POLICY,
    planned,
)
