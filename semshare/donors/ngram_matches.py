"""All runs of identical ids between a target and the donors of one `NgramRun`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from semshare.donors.ngrams import Indices, NgramRun, Tokens
from semshare.types import Ids, Mask

_CANDIDATES = 8  # places looked at for one n-gram; boilerplate repeats without end
_MOST_PASSED = 4096  # places of removed donors that are passed over to find them
_COMPARED = 16  # ids compared at a time, twice as many each time: most runs end soon


@dataclass(frozen=True, slots=True)
class Match:
    """Target [start, end) has the same ids as a donor from `donor_start` on, and no more."""

    start: int
    end: int
    donor: int  # its number
    donor_start: int

    @property
    def length(self) -> int:
        """Tokens."""
        return self.end - self.start

    @property
    def rank(self) -> tuple[int, int, int]:
        """The later it ends the better, then the later the donor, then the later in it."""
        return self.end, self.donor, self.donor_start - self.start

    def cut(self, start: int) -> Match:
        """What is left of it from `start` on."""
        skipped = max(start - self.start, 0)
        return Match(self.start + skipped, self.end, self.donor, self.donor_start + skipped)


def matches(
    run: NgramRun, target: Ids, keys: NDArray[np.uint64], n: int, least: int
) -> list[Match]:
    """The longest runs through the target's n-grams, but for those that others contain.

    Of an n-gram that occurs more than eight times only the latest occurrences are looked at; the
    runs of the others are found by what else is in them.

    Args:
        run: the donors.
        target: `[m]`.
        keys: of its n-grams (`ngram_keys`), `[m − n + 1]`.
        n: tokens of an n-gram.
        least: tokens of a match, n or more.

    """
    at, places = _candidates(run, *run.find(keys))
    if not len(at):
        return []
    # N-grams of one run follow each other on a diagonal: the first of them stands for all.
    order = np.lexsort((at, places - at))
    at, places = at[order], places[order]
    first = np.ones(len(at), np.bool_)
    first[1:] = (np.diff(at) != 1) | (np.diff(places) != 1)
    at, places = at[first], places[first]
    donors = run.donors_at(places)
    ahead = _common(run.tokens, target, places, at, 1, run.starts[donors + 1] - places)
    long = ahead >= n  # otherwise equal hashes, different ids
    long[1:] &= (np.diff(places - at) != 0) | (at[1:] >= (at + ahead)[:-1])  # seen from before it
    at, places, donors, ahead = at[long], places[long], donors[long], ahead[long]
    behind = _common(run.tokens, target, places - 1, at - 1, -1, places - run.starts[donors])
    start, end, places = at - behind, at + ahead, places - behind
    kept = np.flatnonzero(end - start >= least)
    # Those that begin earlier and end later are better wherever one looks from.
    kept = kept[np.lexsort((-places[kept], -end[kept], start[kept]))]
    kept = kept[end[kept] >= np.maximum.accumulate(end[kept])]
    return list(
        map(
            Match,
            start[kept].tolist(),
            end[kept].tolist(),
            run.numbers[donors[kept]].tolist(),
            (places - run.starts[donors])[kept].tolist(),
        )
    )


def _candidates(run: NgramRun, low: Indices, high: Indices) -> tuple[Indices, Indices]:
    """Offset in the target, and place, of the latest living occurrences of each n-gram."""
    pending, window = np.flatnonzero(low < high), _CANDIDATES
    found = [(pending[:0], low[:0])]
    while len(pending):
        counts = np.minimum(high[pending] - low[pending], window)
        before = np.cumsum(counts) - counts
        of = np.repeat(np.arange(len(pending)), counts)
        back = np.arange(len(of)) - before[of]  # 0: the latest
        places = run.places_of(high[pending][of] - 1 - back)
        if not run.dead_tokens:
            return pending[of], places
        alive = run.alive[run.donors_at(places)]
        rank: Indices = np.cumsum(alive) - alive  # how many living ones are later
        rank -= rank[before[of]]
        living = np.bincount(of[alive], minlength=len(pending))
        done = (living >= _CANDIDATES) | (counts < window) | (window >= _MOST_PASSED)
        taken = alive & (rank < _CANDIDATES) & done[of]
        found.append((pending[of[taken]], places[taken]))
        pending, window = pending[~done], 8 * window
    at, places = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return at, places


def _common(
    tokens: Tokens,
    target: Ids,
    places: Indices,
    at: Indices,
    step: int,
    limits: Indices,
) -> Indices:
    """How many ids agree from `places` and `at` on, in the direction of `step`.

    Args:
        tokens: of the donors.
        target: `[m]`.
        places, at: first pair to compare, `[k]` each.
        step: 1 or −1.
        limits: `[k]` ids that a donor has there.

    """
    limits = np.minimum(limits, len(target) - at if step > 0 else at + 1)
    common = np.zeros(len(at), np.int64)
    open_: Indices = np.flatnonzero(limits > 0)
    size = _COMPARED
    while len(open_):
        offsets = common[open_, None] + np.arange(size)
        inside: Mask = offsets < limits[open_, None]
        offsets = np.where(inside, offsets, 0) * step
        same = inside & (tokens[places[open_, None] + offsets] == target[at[open_, None] + offsets])
        equal = np.where(same.all(axis=1), size, np.argmin(same, axis=1))
        common[open_] += equal
        open_ = open_[(equal == size) & (common[open_] < limits[open_])]
        size *= 2
    return common
