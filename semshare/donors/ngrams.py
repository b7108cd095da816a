"""Where the n-grams of many donors occur: one sorted array, made at once or of two others.

An n-gram is an entry of 64 bits: 32 of its hash above 32 that say where it lies in the text of all
donors of the run. So sorting plain numbers sorts by hash, later donors after earlier ones. Hashes
are polynomial modulo 2⁶⁴ with a fixed base, so they are the same in every process; a hit is a
hypothesis until ids are compared.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from semshare.types import Ids, Mask

Indices = NDArray[np.int64]
Tokens = NDArray[np.int32] | NDArray[np.uint16]  # ids, in 16 bits where they suffice

MOST_TOKENS = (1 << 32) - 1  # whose places a run tells apart; the last place stays free

_BASE = np.uint64(0x9E3779B97F4A7C15)  # 2⁶⁴ / golden ratio, odd: mixes low ids into high bits
_MIX = np.uint64(0xBF58476D1CE4E5B9)  # of SplitMix64 (Steele et al., OOPSLA 2014)
_HALF = np.uint64(32)
_PLACE = np.uint64(MOST_TOKENS)
_BLOCK = 1 << 15  # hashes made at a time, which stay in the cache
_SLICE = 1 << 16  # entries merged in one step: 1 ms, or 6 where donors are left out
_DONORS = 1024  # whose tokens are copied in one step
_BUCKET_BITS = 3  # of the directory: 8 to 16 entries a bucket


def ngram_hashes(ids: Tokens, n: int) -> NDArray[np.uint64]:
    """Hash of each n-gram, `[len(ids) − n + 1]`, or empty if there is none."""
    count = max(len(ids) - n + 1, 0)
    hashes = np.zeros(count, dtype=np.uint64)
    for start in range(0, count, _BLOCK):
        block = hashes[start : start + _BLOCK]
        values = ids[start : start + len(block) + n - 1].astype(np.uint64) + np.uint64(1)
        for offset in range(n):
            block *= _BASE
            block += values[offset : offset + len(block)]
    return hashes


def ngram_keys(ids: Tokens, n: int) -> NDArray[np.uint64]:
    """32 bits of each n-gram's hash, in the upper half, `[len(ids) − n + 1]`."""
    keys = ngram_hashes(ids, n)
    # The last id of an n-gram is in the low bits of its hash alone.
    keys ^= keys >> _HALF
    keys *= _MIX
    keys &= ~_PLACE
    return keys


@dataclass(slots=True, eq=False)
class NgramRun:
    """Donors whose n-grams are sorted together.

    Places count the tokens of all of its donors, one after the other. Nothing changes but `alive`.
    """

    numbers: Indices  # [donors] ascending
    starts: Indices  # [donors + 1] place of each donor's first token, and the end
    tokens: Tokens  # [starts[-1]]
    entries: NDArray[np.uint64]  # [n-grams] sorted
    directory: NDArray[np.uint32]  # [2ᵏ + 1] first entry of each prefix of k bits
    alive: Mask  # [donors]
    dead_tokens: int = 0

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
        arrays = (self.numbers, self.starts, self.tokens, self.entries, self.directory, self.alive)
        return sum(array.nbytes for array in arrays)

    def forget(self, number: int) -> None:
        """Let a donor be found no more. O(log donors)."""
        at = int(np.searchsorted(self.numbers, number))
        self.alive[at] = False
        self.dead_tokens += int(self.starts[at + 1] - self.starts[at])

    def donors_at(self, places: Indices) -> Indices:
        """Which of the run's donors has each of some places."""
        return np.searchsorted(self.starts, places, side="right") - 1

    def places_of(self, entries: Indices) -> Indices:
        """Where the n-grams of some entries lie."""
        return (self.entries[entries] & _PLACE).astype(np.int64)

    def find(self, keys: NDArray[np.uint64]) -> tuple[Indices, Indices]:
        """First entry of each key, and the one after the last; the same where there is none."""
        low, end = self._first(keys)
        found = np.flatnonzero(low < end)
        found = found[self.entries[low[found]] & ~_PLACE == keys[found]]
        high = low.copy()
        high[found] = self._first(keys[found] | _PLACE)[0]  # a place that no token has
        return low, high

    def _first(self, bounds: NDArray[np.uint64]) -> tuple[Indices, Indices]:
        """First entry of a bound's bucket that is not below it, and the end of the bucket."""
        bits = (len(self.directory) - 1).bit_length() - 1
        buckets = bounds >> np.uint64(64 - bits) if bits else np.zeros_like(bounds)
        low = self.directory[buckets].astype(np.int64)
        end = self.directory[buckets + np.uint64(1)].astype(np.int64)
        high, last = end, len(self.entries) - 1
        for _ in range(int((high - low).max(initial=0)).bit_length()):
            middle = (low + high) >> 1
            below = (self.entries[np.minimum(middle, last)] < bounds) & (low < high)
            low, high = np.where(below, middle + 1, low), np.where(below, high, middle)
        return low, end


def sorted_run(numbers: Sequence[int], texts: Sequence[Ids], n: int) -> NgramRun:
    """The n-grams of some donors, at least one, by numbers that ascend."""
    lengths = np.array([len(text) for text in texts], np.int64)
    starts = np.concatenate(([0], np.cumsum(lengths)))
    tokens = _narrow(np.concatenate(texts))
    entries = np.empty(int(np.maximum(lengths - n + 1, 0).sum()), np.uint64)
    filled = 0
    for place in range(0, len(tokens) - n + 1, _BLOCK):  # little memory is touched at a time
        part = ngram_keys(tokens[place : place + _BLOCK + n - 1], n)
        part |= np.arange(place, place + len(part), dtype=np.uint64)
        inside = np.ones(len(part), np.bool_)  # of one donor, not from the end of one on
        low, high = np.searchsorted(starts, (place, place + len(part) + n))
        for edge in range(1, n):
            crossing = starts[low:high] - edge - place
            inside[crossing[(crossing >= 0) & (crossing < len(part))]] = False
        part = part[inside]
        entries[filled : filled + len(part)] = part
        filled += len(part)
    entries.sort()
    bits = _directory_bits(len(entries))
    firsts = entries.searchsorted(_prefixes(0, 1 << bits, bits))
    directory = np.append(firsts, len(entries)).astype(np.uint32)
    alive = np.ones(len(numbers), np.bool_)
    return NgramRun(np.array(numbers, np.int64), starts, tokens, entries, directory, alive)


def merge(runs: Sequence[NgramRun], n: int) -> Iterator[NgramRun | None]:
    """The donors of some runs that are alive, in one run; the last step yields it.

    A step yields None and takes a few milliseconds. Whoever dies meanwhile is dead in the result.
    """
    kept = [run.alive.copy() for run in runs]
    lengths = np.concatenate([np.diff(run.starts)[k] for run, k in zip(runs, kept, strict=True)])
    starts = np.concatenate(([0], np.cumsum(lengths)))
    tokens = np.empty(starts[-1], np.result_type(*(run.tokens for run in runs)))
    filled = 0
    for run, keep in zip(runs, kept, strict=True):
        for first in range(0, len(keep), _DONORS):
            group = run.starts[first : first + _DONORS + 1]
            part = run.tokens[group[0] : group[-1]]
            part = part[np.repeat(keep[first : first + _DONORS], np.diff(group))]
            tokens[filled : filled + len(part)] = part
            filled += len(part)
            if len(keep) > _DONORS:
                yield None
    moves = _moves(runs, kept, starts)
    entries = np.empty(int(np.maximum(lengths - n + 1, 0).sum()), np.uint64)
    bits = _directory_bits(len(entries))
    directory = np.empty((1 << bits) + 1, np.uint32)
    slice_bits = min((sum(len(run.entries) for run in runs) // _SLICE).bit_length(), bits)
    buckets = 1 << (bits - slice_bits)  # of a slice
    filled = 0
    for number in range(1 << slice_bits):
        part = np.concatenate(
            [
                _moved(run, keep, move, number, slice_bits)
                for run, keep, move in zip(runs, kept, moves, strict=True)
            ]
        )
        part.sort(kind="stable")  # which merges runs that are sorted
        entries[filled : filled + len(part)] = part
        bounds = _prefixes(number * buckets, (number + 1) * buckets, bits)
        directory[number * buckets : (number + 1) * buckets] = filled + part.searchsorted(bounds)
        filled += len(part)
        yield None
    directory[-1] = filled
    alive = np.concatenate([run.alive[k] for run, k in zip(runs, kept, strict=True)])
    numbers = np.concatenate([run.numbers[k] for run, k in zip(runs, kept, strict=True)])
    dead_tokens = int(lengths[~alive].sum())
    yield NgramRun(numbers, starts, tokens, entries, directory, alive, dead_tokens)


def _moves(runs: Sequence[NgramRun], kept: Sequence[Mask], starts: Indices) -> list[Indices]:
    """By how much the places of each run's donors change; 0 for those that are left out."""
    moves, donors = [], 0
    for run, keep in zip(runs, kept, strict=True):
        move = np.zeros(len(keep), np.int64)
        count = int(keep.sum())
        move[keep] = starts[donors : donors + count] - run.starts[:-1][keep]
        moves.append(move)
        donors += count
    return moves


def _moved(run: NgramRun, kept: Mask, moves: Indices, number: int, bits: int) -> NDArray[np.uint64]:
    """A run's entries whose first `bits` bits are `number`, at their places in the result."""
    low = int(run.entries.searchsorted(_prefixes(number, number + 1, bits)[0]))
    high = len(run.entries)
    if number + 1 < 1 << bits:
        high = int(run.entries.searchsorted(_prefixes(number + 1, number + 2, bits)[0]))
    entries = run.entries[low:high]
    if kept.all():  # and then all move by the same distance, if they move
        return entries + np.uint64(moves[0])
    donors = run.donors_at((entries & _PLACE).astype(np.int64))
    keep = kept[donors]
    # Places fall where donors before them are left out, which modulo 2⁶⁴ is an addition, too.
    return entries[keep] + moves[donors[keep]].view(np.uint64)


def _prefixes(first: int, after: int, bits: int) -> NDArray[np.uint64]:
    """The least entries with the prefixes first … after − 1 of `bits` bits."""
    prefixes = np.arange(first, after, dtype=np.uint64)
    return prefixes << np.uint64(64 - bits) if bits else prefixes


def _directory_bits(count: int) -> int:
    return max(count.bit_length() - 1 - _BUCKET_BITS, 0)


def _narrow(tokens: Ids) -> Tokens:
    return tokens.astype(np.uint16) if tokens.max(initial=0) < 1 << 16 else tokens
