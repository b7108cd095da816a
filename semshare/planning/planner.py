"""Gathers what each planning stage needs from the donors, and calls the pure functions."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from operator import itemgetter

import numpy as np

from semshare.config import EngineConfig, ReusePolicy
from semshare.donors.library import DonorLibrary
from semshare.donors.namespace import Donor, Namespace
from semshare.donors.prompt_index import SimilarDonor
from semshare.donors.span_index import Span, longest_first
from semshare.donors.token_lsh import TokenLSH
from semshare.engine.prompts import TokenTexts
from semshare.kv.pool import KVPool
from semshare.planning.align import AlignmentBuilder, FuzzyCandidate, align_fuzzy
from semshare.planning.guard import mark_facts, unsafe_reuse
from semshare.planning.plan import DonorTokens, make_plan, resident
from semshare.types import Alignment, Ids, Mask, ReusePlan, Scores, Slots, TokenSource

# Where no more than this × `recompute` of the prompt is unmatched after spans, it is computed: a
# fuzzy donor would save less than it risks.
OUTRIGHT = 0.3


@dataclass(frozen=True, slots=True)
class Found:
    """What the indexes know about a target. Every donor named here is in `donors`."""

    prefix_slots: Slots  # of the longest exact prefix
    prefix_donor: str | None
    prefix_owners: tuple[str, ...]  # all donors whose ids the prefix goes through
    spans: tuple[Span, ...]
    similar: tuple[str, ...]  # donors for fuzzy matching, the most similar first
    donors: dict[str, Donor]


_NOTHING = Found(np.empty(0, np.int64), None, (), (), (), {})


@dataclass(frozen=True, slots=True)
class Draft:
    """A plan but for the selection."""

    ids: Ids
    policy: ReusePolicy
    found: Found
    alignment: Alignment
    unsafe: Mask  # [n] tokens the guard wants computed


class Planner:
    """The stages before the model runs."""

    def __init__(
        self,
        library: DonorLibrary,
        pool: KVPool,
        lsh: TokenLSH,
        texts: TokenTexts,
        config: EngineConfig,
        n_layers: int,
    ) -> None:
        self._library = library
        self._pool = pool
        self._lsh = lsh
        self._texts = texts
        self._config = config
        self._n_layers = n_layers

    def find_donors(self, ids: Ids, policy: ReusePolicy, namespace: str) -> Found:
        """Prefix tree, span index, prompt index; of the namespace and of what is published.

        The namespace's own donors stand before published ones that are as good.
        """
        spaces = self._library.readable(namespace)
        if not spaces:
            return _NOTHING
        # The last token is always computed: its logits are the first of the answer.
        limit = len(ids) - 1
        prefix = max(
            (space.prefixes.match(ids, limit=limit) for space in spaces), key=lambda m: m.tokens
        )
        donors = ChainMap(*(space.donors for space in spaces))
        owner = prefix.node.owner or ""
        owners = {node.owner for node in prefix.node.path() if node.owner in donors}
        prefix_slots = self._pool.slots_of(prefix.pages)
        below = (space.stored_prefixes.match(ids, limit) for space in spaces)
        stored = max((found for found in below if found), key=itemgetter(1), default=None)
        if stored is not None and stored[1] > prefix.tokens:
            owner, tokens = stored
            owners.add(owner)
            rest = donors[owner].slots[prefix.tokens : tokens]
            prefix_slots = np.concatenate((prefix_slots, rest))
        spans: list[Span] = []
        if policy.mode in ("span", "semantic"):
            spans = self._spans(spaces, ids, len(prefix_slots), policy)
        similar: list[str] = []
        if policy.mode == "semantic" and self._worth_fuzzy(
            len(ids), len(prefix_slots), spans, policy
        ):
            nearest = self._nearest(spaces, ids)
            similar = [d.donor for d in nearest if d.similarity >= policy.min_similarity]
        names = {*similar, *(span.donor for span in spans)}
        if owner in donors:
            names.add(owner)
        return Found(
            prefix_slots=prefix_slots,
            prefix_donor=owner if owner in names else None,
            prefix_owners=tuple(sorted(name for name in owners if name)),
            spans=tuple(spans),
            similar=tuple(similar),
            donors={name: donors[name] for name in sorted(names)},
        )

    @staticmethod
    def _spans(
        spaces: Sequence[Namespace], ids: Ids, start: int, policy: ReusePolicy
    ) -> list[Span]:
        """Identical text from `start` on."""
        found = [
            space.spans.find(ids, start=start, min_length=policy.min_span)
            for space in spaces
            if space.donors
        ]
        if len(found) == 1:
            return found[0]
        return longest_first(list(chain(*found)), min_length=policy.min_span)

    def _nearest(self, spaces: Sequence[Namespace], ids: Ids) -> list[SimilarDonor]:
        """The donors to compare token by token, the most similar first."""
        most, vector = self._config.max_donors_tried, self._library.vectors.of(ids)
        found: dict[str, SimilarDonor] = {}
        for space in spaces:
            for donor in space.prompts.nearest(vector, most):
                found.setdefault(donor.donor, donor)  # whoever published it finds it twice
        return sorted(found.values(), key=lambda donor: -donor.similarity)[:most]

    def _worth_fuzzy(
        self, n: int, prefix_tokens: int, spans: list[Span], policy: ReusePolicy
    ) -> bool:
        """Whether enough is unmatched for fuzzy matching to save anything."""
        last = n - policy.tail_tokens  # the question is computed whatever matches
        covered = prefix_tokens + sum(
            max(min(span.start + span.length, last) - span.start, 0) for span in spans
        )
        return last - covered > OUTRIGHT * policy.recompute * n

    def align(self, ids: Ids, found: Found) -> Alignment:
        """Map target tokens to donor tokens."""
        builder = AlignmentBuilder(len(ids))
        builder.set_prefix(len(found.prefix_slots), found.prefix_donor)
        builder.set_spans(found.spans)
        if found.similar:
            donors = [found.donors[name] for name in found.similar]
            candidates = [FuzzyCandidate(d.id, d.ids, d.codes) for d in donors]
            align_fuzzy(builder, ids, candidates, self._lsh)
        return builder.build()

    def guard(self, ids: Ids, alignment: Alignment, found: Found, policy: ReusePolicy) -> Mask:
        """Tokens that carry facts and are not certain to say the same in the donor."""
        approximate = alignment.source > TokenSource.PREFIX
        if not policy.fact_guard or not approximate.any():
            return np.zeros(len(ids), dtype=np.bool_)
        donors = [found.donors[name] for name in alignment.donors]
        marks = mark_facts(ids, self._texts)
        return unsafe_reuse(alignment, marks, [donor.marks for donor in donors])

    def question_plan(self, draft: Draft) -> ReusePlan | None:
        """A cheap first look by the question, for the selection that wants its attention.

        Only edges and what has no donor are computed. None where there is nothing to choose.
        """
        policy = draft.policy
        if policy.selection != "query_attention" or not policy.recompute:
            return None
        plan = self.finish(
            replace(draft, policy=replace(policy, selection="none", fact_guard=False))
        )
        lowest = TokenSource.FUZZY if policy.only_unmatched else TokenSource.SPAN
        return plan if np.any(plan.source >= lowest) else None

    def finish(
        self, draft: Draft, *, query_attention: Scores | None = None, with_stored: bool = False
    ) -> ReusePlan:
        """The plan, with the tokens the selection policy adds to the fresh ones.

        Args:
            draft: of the prompt.
            query_attention: `[n]`, for the selection policy of that name.
            with_stored: reuse what lies below the pool, too. Such a plan says what to load.

        """
        policy = draft.policy
        if policy.selection == "query_attention" and query_attention is None:
            policy = replace(policy, selection="none")
        donors = [draft.found.donors[name] for name in draft.alignment.donors]
        plan = make_plan(
            draft.ids,
            draft.alignment,
            draft.unsafe,
            draft.found.prefix_slots,
            [DonorTokens(donor.slots, donor.history) for donor in donors],
            policy,
            n_layers=self._n_layers,
            query_attention=query_attention,
        )
        return plan if with_stored else resident(plan)
