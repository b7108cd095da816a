"""All indexes that one prompt is looked up in, and whether what they find is right."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from semshare.config import EngineConfig, ReusePolicy
from semshare.donors.embedders import Vector
from semshare.donors.prompt_index import PromptIndex, SimilarDonor
from semshare.donors.span_index import Span, SpanIndex
from semshare.donors.stored_prefixes import StoredPrefixes
from semshare.errors import BenchmarkRefused
from semshare.evaluation.bounds import Record
from semshare.evaluation.lookup_texts import Target
from semshare.types import Ids, Mask

PARTS = ("prefixes", "spans", "prompts")

LEAST_RECALL = 0.98
_SAME = 1e-6  # of similarities: which of two equal donors is found does not matter
_CHECKED = 100  # targets whose longest common beginning is looked for in all donors


@dataclass(frozen=True, slots=True)
class Donors:
    """What is in memory before anything is indexed."""

    names: list[str]
    ids: list[Ids]
    vectors: NDArray[np.float32]  # [donors, dim]

    def first(self, count: int) -> Donors:
        """The first `count` of them."""
        return Donors(self.names[:count], self.ids[:count], self.vectors[:count])


class Indexes:
    """All that is looked up for one prompt, as the planner does for donors that are stored."""

    def __init__(self, dim: int) -> None:
        self.config, self.policy = EngineConfig(), ReusePolicy()
        self.prefixes = StoredPrefixes(self.config.page_size)
        self.spans = SpanIndex()
        self.prompts = PromptIndex(dim)

    def add_many(self, donors: Donors) -> None:
        """As after a restart."""
        self.prefixes.add_many(zip(donors.names, donors.ids, strict=True))
        self.spans.add_many(zip(donors.names, donors.ids, strict=True))
        self.prompts.add_many(zip(donors.names, donors.vectors, strict=True))

    def add(self, donor: str, ids: Ids, vector: Vector) -> None:
        """As when a donor is remembered."""
        self.prefixes.add(donor, ids)
        self.spans.add(donor, ids)
        self.prompts.add(donor, vector)

    def prefix(self, ids: Ids) -> tuple[str, int] | None:
        """The longest common beginning."""
        return self.prefixes.match(ids, len(ids) - 1)

    def identical(self, ids: Ids, start: int) -> list[Span]:
        """Identical text from `start` on."""
        return self.spans.find(ids, start=start, min_length=self.policy.min_span)

    def similar(self, vector: Vector) -> list[SimilarDonor]:
        """The most similar donors, whatever their similarity."""
        return self.prompts.nearest(vector, self.config.max_donors_tried)


def checked(
    indexes: Indexes, donors: Donors, targets: Sequence[Target], queries: Sequence[Vector]
) -> Record:
    """Recall and shares of targets with hits, once all that was found is what is there.

    Raises:
        BenchmarkRefused: a span whose text is not the donor's, a common beginning that is not the
            longest, or less than 98 % of the most similar donors or of the planted tokens found.

    """
    by_name = dict(zip(donors.names, donors.ids, strict=True))
    page = indexes.config.page_size
    by_page: dict[bytes, list[Ids]] = defaultdict(list)
    for ids in donors.ids:
        by_page[ids[:page].tobytes()].append(ids)
    best = np.array([float((donors.vectors @ query).max()) for query in queries])
    recalled = planted = planted_found = 0
    hits = dict.fromkeys(("any", *PARTS), 0)
    for number, (target, query) in enumerate(zip(targets, queries, strict=True)):
        prefix, spans = indexes.prefix(target.ids), indexes.identical(target.ids, 0)
        similar = indexes.similar(query)
        if number < _CHECKED:
            others = by_page[target.ids[:page].tobytes()]
            longest = max(
                (_common(target.ids[:-1], ids) // page * page for ids in others), default=0
            )
            if longest != (prefix[1] if prefix else 0):
                raise _wrong(f"a common beginning of {longest} tokens: found {prefix}")
        covered = _covered(target, spans, by_name)
        for start, end in target.planted:
            planted += end - start
            planted_found += int(covered[start:end].sum())
        recalled += similar[0].similarity >= best[number] - _SAME
        near = similar[0].similarity >= indexes.policy.min_similarity
        for part, hit in zip(
            ("any", *PARTS), (prefix or spans or near, prefix, spans, near), strict=True
        ):
            hits[part] += bool(hit)
    recalls = {
        "recall_at_1": recalled / len(targets),
        "span_recall": planted_found / max(planted, 1),
    }
    for name, recall in recalls.items():
        if not recall >= LEAST_RECALL:
            raise _wrong(
                f"{name} is {recall:.3f} among {len(donors.names)} donors: at least {LEAST_RECALL}"
            )
    return {
        **{name: round(recall, 4) for name, recall in recalls.items()},
        "hit_rate": round(hits["any"] / len(targets), 4),
        **{f"{part}_hit_rate": round(hits[part] / len(targets), 4) for part in PARTS},
    }


def _covered(target: Target, spans: Sequence[Span], donors: dict[str, Ids]) -> Mask:
    """Tokens of the target that spans cover, once their text is seen to be the same."""
    covered = np.zeros(len(target.ids), np.bool_)
    for span in spans:
        own = donors[span.donor][span.donor_start : span.donor_start + span.length]
        if not np.array_equal(own, target.ids[span.start : span.start + span.length]):
            raise _wrong(f"{span} is not the same text in both")
        covered[span.start : span.start + span.length] = True
    return covered


def _common(left: Ids, right: Ids) -> int:
    n = min(len(left), len(right))
    differing = np.flatnonzero(left[:n] != right[:n])
    return int(differing[0]) if len(differing) else n


def _wrong(what: str) -> BenchmarkRefused:
    return BenchmarkRefused(f"lookup: {what}. No speed is reported.")
