"""Finds runs of identical ids at any position, in any number of donors.

Every donor's n-grams are hashed; a target's n-grams look up candidate places, each of which is
confirmed and extended by comparing ids. Hashes are polynomial modulo 2⁶⁴ with a fixed base, so
they are the same in every process.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from semshare.types import Ids

_BASE = np.uint64(0x9E3779B97F4A7C15)  # 2⁶⁴ / golden ratio, odd: mixes low ids into high bits
_CANDIDATES = 8  # places looked at for one n-gram; boilerplate repeats without end


@dataclass(frozen=True, slots=True)
class Span:
    """Target [start, start + length) has the same ids as the donor from `donor_start` on."""

    start: int
    length: int
    donor: str
    donor_start: int


def ngram_hashes(ids: Ids, n: int) -> NDArray[np.uint64]:
    """Hash of each n-gram, `[len(ids) − n + 1]`, or empty if there is none."""
    count = len(ids) - n + 1
    if count <= 0:
        return np.empty(0, dtype=np.uint64)
    values = ids.astype(np.uint64) + np.uint64(1)
    hashes = np.zeros(count, dtype=np.uint64)
    for offset in range(n):
        hashes = hashes * _BASE + values[offset : offset + count]
    return hashes


class SpanIndex:
    """Identical text of one namespace's donors.

    Args:
        ngram: tokens hashed together; shorter runs are not found.

    """

    def __init__(self, ngram: int = 8) -> None:
        self._ngram = ngram
        self._ids: dict[str, Ids] = {}
        self._names: list[str] = []
        # Parallel arrays sorted by hash: where each n-gram occurs.
        self._hashes = np.empty(0, dtype=np.uint64)
        self._donor = np.empty(0, dtype=np.int32)
        self._position = np.empty(0, dtype=np.int32)

    def add(self, donor: str, ids: Ids) -> None:
        """Index a donor's ids. O(all indexed tokens), a copy of the sorted arrays."""
        hashes = ngram_hashes(ids, self._ngram)
        order = np.argsort(hashes, kind="stable")
        at = np.searchsorted(self._hashes, hashes[order], side="right")  # the latest donor last
        number = len(self._names)
        self._names.append(donor)
        self._ids[donor] = ids
        self._hashes = np.insert(self._hashes, at, hashes[order])
        self._donor = np.insert(self._donor, at, np.int32(number))
        self._position = np.insert(self._position, at, order.astype(np.int32))

    def remove(self, donor: str) -> None:
        """Forget a donor. O(all indexed tokens)."""
        number = self._names.index(donor)
        keep = self._donor != number
        self._hashes, self._donor, self._position = (
            self._hashes[keep],
            self._donor[keep] - (self._donor[keep] > number),
            self._position[keep],
        )
        del self._names[number], self._ids[donor]

    def find(self, ids: Ids, *, start: int, min_length: int) -> list[Span]:
        """Runs of `ids[start:]` found in donors, disjoint and in order.

        Greedy from the left: where several donors offer a run at the same place the longest one
        wins, the latest donor among equals.
        """
        hashes = ngram_hashes(ids[start:], self._ngram)
        low = np.searchsorted(self._hashes, hashes, side="left")
        high = np.searchsorted(self._hashes, hashes, side="right")
        spans: list[Span] = []
        covered = start
        for offset in np.flatnonzero(high > low):
            at = start + int(offset)
            if at < covered:
                continue
            best = self._longest(ids, at, covered, int(low[offset]), int(high[offset]))
            if best is not None and best.length >= min_length:
                spans.append(best)
                covered = best.start + best.length
        return spans

    def _longest(self, ids: Ids, at: int, floor: int, low: int, high: int) -> Span | None:
        """The longest run through `at`, reaching back no further than `floor`."""
        best: Span | None = None
        for entry in range(high - 1, max(low, high - _CANDIDATES) - 1, -1):
            name = self._names[self._donor[entry]]
            donor_ids, position = self._ids[name], int(self._position[entry])
            ahead = _common_prefix(ids[at:], donor_ids[position:])
            if ahead < self._ngram:
                continue  # equal hashes, different ids
            behind = _common_prefix(ids[floor:at][::-1], donor_ids[:position][::-1])
            if best is None or ahead + behind > best.length:
                best = Span(at - behind, ahead + behind, name, position - behind)
        return best


def longest_first(spans: Sequence[Span], *, min_length: int) -> list[Span]:
    """Disjoint parts of spans that overlap, in order.

    The longest keeps all of its target tokens, the earlier listed among equals; the others keep the
    runs of at least `min_length` that are left to them.
    """
    taken = np.zeros(max((span.start + span.length for span in spans), default=0), np.bool_)
    kept: list[Span] = []
    for span in sorted(spans, key=lambda span: -span.length):
        free = ~taken[span.start : span.start + span.length]
        edges = np.flatnonzero(np.diff(free, prepend=False, append=False)).tolist()
        for begin, end in zip(edges[::2], edges[1::2], strict=True):
            if end - begin >= min_length:
                at = span.start + begin
                kept.append(Span(at, end - begin, span.donor, span.donor_start + begin))
                taken[at : at + end - begin] = True
    return sorted(kept, key=lambda span: span.start)


def _common_prefix(left: Ids, right: Ids) -> int:
    """Compared in ever larger parts: most runs end soon, however much text is left."""
    n = min(len(left), len(right))
    start, size = 0, 32
    while start < n:
        stop = min(start + size, n)
        differing = np.flatnonzero(left[start:stop] != right[start:stop])
        if len(differing):
            return start + int(differing[0])
        start, size = stop, 2 * size
    return n
