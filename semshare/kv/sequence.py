"""One sequence's KV: a list of pool slots with positions, some of them another prompt's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from semshare.errors import PoolExhausted
from semshare.kv.pool import KVPool
from semshare.kv.retained import RetainedPrompt
from semshare.kv.segment import Segment, runs_of
from semshare.types import Pages, ReusePlan, Slots, TokenSource
from semshare_kernels import KeyTable, KeyTree

# A reused run at least this long is attended where it lies; a shorter one is copied next to the
# fresh tokens, because each shift costs a set of rotated queries in every layer.
MIN_VIEW_TOKENS = 128
MAX_VIEWS = 16
# Slots for an answer are reserved in portions: few answers use all the tokens they are allowed.
ROOM_TOKENS = 256
_NO_SLOTS = np.empty(0, np.int64)


@dataclass(frozen=True, slots=True)
class Layout:
    """Which reused tokens are read in place and which are copied. Positions ascend throughout."""

    views: tuple[Segment, ...]
    own: NDArray[np.int64]  # positions of the tokens that get slots of their own
    copied: NDArray[np.int64]  # of those, the ones filled from reused slots
    copied_slots: Slots  # where they are copied from
    copied_shift: NDArray[np.int64]

    @classmethod
    def of_views(cls, views: tuple[Segment, ...]) -> Layout:
        """Everything is read in place."""
        return cls(views, _NO_SLOTS, _NO_SLOTS, _NO_SLOTS, _NO_SLOTS)


def lay_out(plan: ReusePlan, *, n_slots: int | None = None) -> Layout:
    """Split a plan's reused tokens into views and copies. Pure.

    The prefix hit of an exact plan is always a view, so that the sequence's own slots start on a
    page boundary and can enter the prefix tree.

    Args:
        plan: what is reused.
        n_slots: of the pool; slots from there on hold compressed tokens, which can't be read in
            place. None where there are none.

    """
    position = np.arange(len(plan.ids), dtype=np.int64)
    reused = plan.source != TokenSource.FRESH
    shift = np.where(reused, position - plan.position, 0).astype(np.int64)
    if plan.deviation is not None:
        reused = reused.copy()
        reused[plan.deviation.candidates] = False  # their slots are overwritten
    # A run goes on while slots are consecutive and the shift stays the same.
    same_kind = reused[1:] == reused[:-1]
    breaks = np.flatnonzero((np.diff(plan.slots) != 1) | (np.diff(shift) != 0) | ~same_kind) + 1
    starts = np.concatenate(([0], breaks)) if len(position) else np.empty(0, np.int64)
    stops = np.append(starts[1:], len(position))
    runs = [(a, b) for a, b in zip(starts, stops, strict=True) if reused[a]]
    if n_slots is not None:
        runs = [(a, b) for a, b in runs if plan.slots[b - 1] < n_slots]
    if plan.is_exact:
        chosen = runs
    else:
        long = sorted((run for run in runs if run[1] - run[0] >= MIN_VIEW_TOKENS), key=_length)
        chosen = sorted(long[-MAX_VIEWS:])
    views = tuple(Segment(int(plan.slots[a]), position[a:b], int(shift[a])) for a, b in chosen)
    is_own = np.ones(len(position), dtype=np.bool_)
    for a, b in chosen:
        is_own[a:b] = False
    copied = np.flatnonzero(is_own & (plan.source != TokenSource.FRESH))
    return Layout(
        views=views,
        own=np.flatnonzero(is_own),
        copied=copied,
        copied_slots=plan.slots[copied],
        copied_shift=shift[copied],
    )


def _length(run: tuple[int, int]) -> int:
    return run[1] - run[0]


class KVSequence:
    """The KV of one prompt and its answer: a slot and a shift for each position.

    Holds a reference on every page it reads; `release` gives all of them back. Own slots are
    written by this sequence; the others are a donor's, or another sequence's. A prompt that was cut
    to what its layers retain has no slots: then slots begin after it, and layers differ.

    Args:
        pool: where all slots lie.
        layout: of the prompt, or of what comes after a retained one.
        shared_pages: pages of `layout`'s views and copies; a reference is taken on each.
        room: most tokens of the answer; a first portion of their slots is reserved.
        retained: what stands before all slots, if anything; references are taken on its pages.

    Raises:
        PoolExhausted: nothing was taken then.

    """

    def __init__(
        self,
        pool: KVPool,
        layout: Layout,
        shared_pages: Pages,
        *,
        room: int,
        retained: RetainedPrompt | None = None,
    ) -> None:
        self.pool = pool
        self.retained = retained
        self._first = 0 if retained is None else retained.length  # position with a slot
        self.length = self._first + len(layout.own) + sum(len(view) for view in layout.views)
        self._slots = np.empty(self.length, np.int64)
        self._shifts = np.zeros(self.length, np.int64)
        self._is_own = np.zeros(self.length, np.bool_)
        reserved = min(room, ROOM_TOKENS)
        self._room = room - reserved  # slots that may be wanted yet
        self._spare = _NO_SLOTS  # own slots of no token yet
        self._held: list[Pages] = []
        self._hold(shared_pages)
        if retained is not None:
            self._hold(retained.pages)
        try:
            self._allocate(len(layout.own) + reserved)
        except BaseException:
            self.release()
            raise
        self._slots[layout.own] = self._take(len(layout.own))
        self._is_own[layout.own] = True
        for view in layout.views:
            self._slots[view.positions] = view.slots
            self._shifts[view.positions] = view.shift
        self._prompt_runs: tuple[Segment, ...] | None = None  # of the first `_prompt_length` tokens
        self._prompt_length = self.length

    @classmethod
    def after(cls, pool: KVPool, retained: RetainedPrompt, *, room: int) -> KVSequence:
        """A sequence of what is retained of a prompt; slots for its answer come as it grows."""
        nothing = Layout.of_views(())
        sequence = cls(pool, nothing, np.empty(0, np.int64), room=0, retained=retained)
        sequence._room = room
        return sequence

    def fork(self, *, room: int) -> KVSequence:
        """Another sequence that goes on from this one's tokens, reading them where they lie.

        Raises:
            PoolExhausted: nothing was taken then.

        """
        views = Layout.of_views(self.segments)
        pages = self.pool.pages_of(self._slots[self._first : self.length])
        return KVSequence(self.pool, views, pages, room=room, retained=self.retained)

    def adopt(self, source: KVSequence, start: int, stop: int) -> None:
        """From now on read the tokens at [start, stop) where `source` has them, as it has them."""
        part = slice(start, stop)
        self._hold(self.pool.pages_of(source._slots[part]))
        self._slots[part] = source._slots[part]
        self._shifts[part] = source._shifts[part]
        self._is_own[part] = False
        self._prompt_runs = None

    def own_slots(self, positions: NDArray[np.int64]) -> Slots:
        """Slots of own tokens at `positions`, each of which must be own."""
        if not self._is_own[positions].all():
            raise AssertionError("only a sequence's own slots may be written")
        return self._slots[positions]

    def append(self, n: int) -> NDArray[np.int64]:
        """Add `n` tokens at the end and return their positions; they get own slots.

        Raises:
            PoolExhausted: the sequence outgrew its room and the pool has no more.

        """
        if n > len(self._spare):
            missing = n - len(self._spare)
            portion = max(missing, min(self._room, ROOM_TOKENS))
            try:
                self._room -= self._allocate(portion)
            except PoolExhausted:
                if portion == missing:
                    raise
                self._room -= self._allocate(missing)
        end = self.length + n
        if end > len(self._slots):
            more = max(end - len(self._slots), ROOM_TOKENS)
            self._slots = np.pad(self._slots, (0, more))
            self._shifts = np.pad(self._shifts, (0, more))
            self._is_own = np.pad(self._is_own, (0, more))
        self._slots[self.length : end] = self._take(n)
        self._shifts[self.length : end] = 0
        self._is_own[self.length : end] = True
        positions = np.arange(self.length, end, dtype=np.int64)
        self.length = end
        return positions

    def give_back_spare(self) -> int:
        """Free the pages that no token of this sequence lies on yet; returns how many."""
        size = self.pool.page_size
        begun = int(-self._spare[0] % size) if len(self._spare) else 0  # spare slots of a used page
        pages = self._spare[begun::size] // size
        self._room += len(self._spare) - begun
        self._spare = self._spare[:begun]
        self._held = [held[~np.isin(held, pages)] for held in self._held]
        self.pool.release(pages)
        return len(pages)

    def key_table(self, length: int | None = None, *, layer: int | None = None) -> KeyTable:
        """KV of the first `length` tokens, of all by default, in order of their positions.

        Args:
            length: at least the prompt's.
            layer: gives its cells instead of slots; needed where a prompt was cut to what is
                retained, for there the layers differ.

        """
        part = slice(self._first, self.length if length is None else length)
        table = KeyTable(self._slots[part], np.arange(part.start, part.stop), self._shifts[part])
        if layer is None:
            return table
        before = [] if self.retained is None else [self.retained.tables[layer]]
        cells = replace(table, slots=self.pool.cells_of(layer, table.slots))
        return KeyTable.joined([*before, cells])

    @property
    def own(self) -> tuple[Slots, NDArray[np.int64]]:
        """Slots and positions of the tokens that have slots of their own."""
        positions = np.flatnonzero(self._is_own[: self.length])
        return self._slots[positions], positions

    @property
    def segments(self) -> tuple[Segment, ...]:
        """All tokens that have slots, in runs that lie in a row and are read with one shift."""
        if self._prompt_runs is None:
            self._prompt_runs = self._runs(self._first, self._prompt_length)
        return (*self._prompt_runs, *self._runs(self._prompt_length, self.length))

    def segments_in(self, layer: int) -> tuple[Segment, ...]:
        """All tokens that the layer sees, in runs of cells."""
        first = layer * self.pool.n_slots
        with_slots = [replace(run, slot_start=first + run.slot_start) for run in self.segments]
        retained = () if self.retained is None else self.retained.runs[layer]
        return (*retained, *with_slots)

    def pages_in_order(self, n: int) -> Pages:
        """The pages of the first `n` tokens, as far as these fill page after page."""
        size = self.pool.page_size
        slots, within = self._slots[:n], np.arange(n) % size
        in_order = (slots - within == np.repeat(slots[::size], size)[:n]) & (slots % size == within)
        filled = int(np.argmin(np.append(in_order, False)))
        if filled < n:
            filled -= filled % size
        return slots[:filled:size] // size

    def release(self) -> None:
        """Give all pages back; safe to call twice."""
        self._spare = _NO_SLOTS
        while self._held:
            self.pool.release(self._held.pop())

    def _hold(self, pages: Pages) -> None:
        self.pool.share(pages)
        self._held.append(pages)

    def _allocate(self, n_slots: int) -> int:
        """Take pages for `n_slots` slots; returns how many slots came."""
        pages = self.pool.allocate(n_slots)
        self._held.append(pages)
        self._spare = np.concatenate((self._spare, self.pool.slots_of(pages)))
        return len(pages) * self.pool.page_size

    def _take(self, n: int) -> Slots:
        taken, self._spare = self._spare[:n], self._spare[n:]
        return taken

    def _runs(self, start: int, stop: int) -> tuple[Segment, ...]:
        return runs_of(self._slots[start:stop], np.arange(start, stop), self._shifts[start:stop])


def key_tree(sequences: Sequence[KVSequence], *, layer: int | None = None) -> KeyTree:
    """What some sequences of one pool read, as nodes that are each read by the same ones.

    In slots, the same for all layers; or in cells of one `layer`, which is needed where a prompt
    was cut to what is retained.

    Runs of slots are cut wherever another sequence's begin or end, so that two that overlap share
    what they have in common, at whatever positions, be it a donor's or one of the sequences' own.
    Runs with the same readers are one node, wherever they lie.
    """
    read = [
        sequence.segments if layer is None else sequence.segments_in(layer)
        for sequence in sequences
    ]
    bounds = np.unique(
        [(run.slot_start, run.slot_start + len(run)) for runs in read for run in runs]
    )
    readers: dict[int, list[tuple[int, int]]] = {}  # by a run's first slot: (sequence, shift)
    runs: dict[int, tuple[Slots, NDArray[np.int64]]] = {}  # its slots, and where they were stored
    for index, segments in enumerate(read):
        for segment in segments:
            first, last = segment.slot_start, segment.slot_start + len(segment)
            cuts = bounds[np.searchsorted(bounds, first) : np.searchsorted(bounds, last) + 1]
            for start, stop in pairwise(cuts.tolist()):
                part = slice(start - first, stop - first)
                runs[start] = segment.slots[part], segment.positions[part] - segment.shift
                readers.setdefault(start, []).append((index, segment.shift))
    nodes: dict[tuple[tuple[int, int], ...], list[int]] = {}
    for start, of_run in readers.items():
        nodes.setdefault(tuple(of_run), []).append(start)
    paths: list[list[int]] = [[] for _ in sequences]
    shifts: list[list[int]] = [[] for _ in sequences]
    parts = []
    for node, (of_node, starts) in enumerate(nodes.items()):
        slots, stored_at = (
            np.concatenate(part) for part in zip(*map(runs.get, starts), strict=True)
        )
        order = np.argsort(stored_at, kind="stable")
        parts.append((slots[order], stored_at[order]))
        for index, shift in of_node:
            paths[index].append(node)
            shifts[index].append(shift)
    return KeyTree(
        slots=np.concatenate([slots for slots, _ in parts]),
        stored_at=np.concatenate([stored_at for _, stored_at in parts]),
        node_start=np.cumsum([0, *(len(slots) for slots, _ in parts)]),
        paths=tuple(np.array(path, np.int64) for path in paths),
        shifts=tuple(np.array(shift, np.int64) for shift in shifts),
    )
