"""Finds runs of identical ids at any position, in any number of donors.

Every donor's n-grams are indexed by their hashes; a target's n-grams look up candidate places,
which are confirmed and extended by comparing ids.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from semshare.donors.ngram_matches import Match, matches
from semshare.donors.ngrams import MOST_TOKENS, NgramRun, merge, ngram_keys, sorted_run
from semshare.types import Ids

_SMALLEST = 8  # bits of the number of tokens in runs of the lowest level
_LEVEL = 3  # bits from one level to the next
_AT_ONCE = 1 << 17  # tokens of runs that are merged by whoever adds a donor; others in steps


@dataclass(frozen=True, slots=True)
class Span:
    """Target [start, start + length) has the same ids as the donor from `donor_start` on."""

    start: int
    length: int
    donor: str
    donor_start: int


class SpanIndex:
    """Identical text of one namespace's donors.

    The n-grams of a donor are sorted when it is added, into a run of its own, and runs are merged
    so that there is one at most for every level of size, each eight times the one below (a
    logarithmic method: Bentley and Saxe, J. Algorithms 1980; O'Neil et al., Acta Informatica 1996).
    Large runs are merged a few milliseconds at a time, one step with every donor that comes or
    goes, and are searched as they are until then. A donor that is removed is passed over from then
    on, and left out when its run is merged, or once a third of it is dead.

    Args:
        ngram: tokens hashed together; shorter runs are not found.

    """

    def __init__(self, ngram: int = 8) -> None:
        self._ngram = ngram
        self._names: dict[int, str] = {}
        self._numbers: dict[str, int] = {}  # in the order of adding
        self._next_number = 0
        self._runs: list[NgramRun] = []  # older donors before later ones
        self._merging: list[NgramRun] = []  # neighbours among them
        self._steps: Iterator[NgramRun | None] = iter(())  # of that merge

    def __len__(self) -> int:
        return len(self._names)

    @property
    def nbytes(self) -> int:
        """Bytes of the index and its copy of all ids, without names."""
        return sum(run.nbytes for run in self._runs)

    def add(self, donor: str, ids: Ids) -> None:
        """Index a donor's ids `[n]`. O(n log n), and up to ten milliseconds of merging.

        Raises:
            ValueError: the donor is there already.

        """
        self._append([donor], [ids])
        self._tidy()
        for _ in range(1 + 8 * len(ids) // _AT_ONCE):
            self._step()

    def add_many(self, donors: Iterable[tuple[str, Ids]]) -> None:
        """Index many donors, with all merging done. For a start, not for a request.

        Raises:
            ValueError: one of them is there already.

        """
        names: list[str] = []
        texts: list[Ids] = []
        for name, ids in donors:
            names.append(name)
            texts.append(ids)
        for first, after in pairwise(_cuts(texts)):
            self._append(names[first:after], texts[first:after])
            self._tidy()
            while self._merging:
                self._step()

    def remove(self, donor: str) -> None:
        """Forget a donor. O(log donors), and up to ten milliseconds of merging."""
        number = self._numbers.pop(donor)
        del self._names[number]
        run = next(run for run in reversed(self._runs) if run.numbers[0] <= number)
        run.forget(number)
        self._tidy()
        self._step()

    def find(self, ids: Ids, *, start: int, min_length: int) -> list[Span]:
        """Runs of `ids[start:]` found in donors, disjoint and in order.

        Greedy from the left: where several donors offer a run at the same place the longest one
        wins, the latest donor among equals. Of an n-gram that occurs at many places the latest are
        looked at.

        Args:
            ids: `[n]` of the target.
            start: where to begin.
            min_length: of a run, tokens; runs shorter than an n-gram are not found.

        """
        target, least = ids[start:], max(min_length, self._ngram)
        keys = ngram_keys(target, self._ngram)
        found: list[Match] = []
        for run in self._runs:
            found += matches(run, target, keys, self._ngram, least)
        return [
            Span(start + match.start, match.length, self._names[match.donor], match.donor_start)
            for match in _from_the_left(found, least)
        ]

    def _append(self, names: Sequence[str], texts: Sequence[Ids]) -> None:
        numbers = range(self._next_number, self._next_number + len(names))
        known = next((name for name in names if name in self._numbers), None)
        if known is not None or len(set(names)) < len(names):
            raise ValueError(f"donor {known or names} is indexed already: remove it first")
        self._next_number += len(names)
        self._numbers |= zip(names, numbers, strict=True)
        self._names |= zip(numbers, names, strict=True)
        self._runs.append(sorted_run(numbers, texts, self._ngram))

    def _tidy(self) -> None:
        """Merge what is small, and begin to merge what is large, until nothing is due."""
        while (due := self._due()) is not None:
            first, after = due
            runs = self._runs[first:after]
            if sum(len(run.tokens) for run in runs) <= _AT_ONCE:
                self._runs[first:after] = _result(merge(runs, self._ngram))
            elif not self._merging:
                self._merging, self._steps = runs, merge(runs, self._ngram)
            else:
                return

    def _due(self) -> tuple[int, int] | None:
        """Runs [first, after) to merge, the latest ones first; none that are being merged."""
        busy = {id(run) for run in self._merging}
        for at in range(len(self._runs) - 1, -1, -1):
            run = self._runs[at]
            if id(run) in busy:
                continue
            if 3 * run.dead_tokens > len(run.tokens) or not run.alive.any():
                return at, at + 1
            before = self._runs[at - 1] if at else None
            if before is None or id(before) in busy:
                continue
            tokens = len(before.tokens) + len(run.tokens)
            if _level(before) <= _level(run) and tokens <= MOST_TOKENS:
                return at - 1, at + 1
        return None

    def _step(self) -> None:
        merged = next(self._steps, None)
        if merged is None:
            return
        at = next(i for i, run in enumerate(self._runs) if run is self._merging[0])
        self._runs[at : at + len(self._merging)] = [merged] if merged.alive.any() else []
        self._merging, self._steps = [], iter(())
        self._tidy()


def _level(run: NgramRun) -> int:
    return max(len(run.tokens).bit_length() - _SMALLEST, 0) // _LEVEL


def _result(steps: Iterator[NgramRun | None]) -> list[NgramRun]:
    """The run that a merge ends with, if there is anything in it."""
    return [run for run in steps if run is not None and run.alive.any()]


def _cuts(texts: Sequence[Ids]) -> list[int]:
    """Where to cut some texts so that each part has at most `MOST_TOKENS` tokens."""
    cuts, tokens = [0], 0
    for at, text in enumerate(texts):
        if tokens + len(text) > MOST_TOKENS:
            cuts.append(at)
            tokens = 0
        tokens += len(text)
    return [*cuts, len(texts)] if texts else []


def _from_the_left(found: list[Match], least: int) -> Iterator[Match]:
    """Disjoint parts of at least `least` tokens, in order.

    Of the matches that reach to the end of what is covered the one that ends last continues it.
    """
    found.sort(key=lambda match: match.start)
    best: Match | None = None
    covered = at = 0
    while True:
        while at < len(found) and found[at].start <= covered:
            if best is None or found[at].rank > best.rank:
                best = found[at]
            at += 1
        if best is not None and best.end - covered >= least:
            yield best.cut(covered)
            covered = best.end
        elif at < len(found):
            covered = found[at].start
        else:
            return


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
