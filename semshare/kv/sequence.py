"""One sequence's KV: a list of pool slots with positions, some of them another prompt's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from semshare.kv.pool import KVPool, Pages
from semshare.types import ReusePlan, Slots, TokenSource
from semshare_kernels import KeyTable, KeyTree

# A reused run at least this long is attended where it lies; a shorter one is copied next to the
# fresh tokens, because each shift costs a set of rotated queries in every layer.
MIN_VIEW_TOKENS = 128
MAX_VIEWS = 16
# Slots for an answer are reserved in portions: few answers use all the tokens they are allowed.
ROOM_TOKENS = 256


@dataclass(frozen=True, slots=True)
class Segment:
    """Slots [slot_start, slot_start + n) whose tokens have these positions in the sequence.

    `shift` is position in the sequence − position the key was rotated for.
    """

    slot_start: int
    positions: NDArray[np.int64]  # [n] ascending
    shift: int

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def slots(self) -> Slots:
        """`[n]`."""
        return np.arange(self.slot_start, self.slot_start + len(self))


@dataclass(frozen=True, slots=True)
class Layout:
    """Which reused tokens are read in place and which are copied. Positions ascend throughout."""

    views: tuple[Segment, ...]
    own: NDArray[np.int64]  # positions of the tokens that get slots of their own
    copied: NDArray[np.int64]  # of those, the ones filled from reused slots
    copied_slots: Slots  # where they are copied from
    copied_shift: NDArray[np.int64]


def lay_out(plan: ReusePlan) -> Layout:
    """Split a plan's reused tokens into views and copies. Pure.

    The prefix hit of an exact plan is always a view, so that the sequence's own slots start on a
    page boundary and can enter the prefix tree.
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
    """The KV of one prompt and its answer while they are served.

    Holds a reference on every page it reads; `release` gives all of them back.

    Args:
        pool: where all slots lie.
        layout: of the prompt.
        shared_pages: pages of `layout`'s views and copies; a reference is taken on each.
        room: most tokens of the answer; a first portion of their slots is reserved.

    Raises:
        PoolExhausted: nothing was taken then.

    """

    def __init__(self, pool: KVPool, layout: Layout, shared_pages: Pages, *, room: int) -> None:
        self.pool = pool
        self.layout = layout
        pool.share(shared_pages)
        try:
            reserved = min(room, ROOM_TOKENS)
            pages = pool.allocate(len(layout.own) + reserved)
        except BaseException:
            pool.release(shared_pages)
            raise
        self._shared_pages = shared_pages
        self._own_pages = pages
        self._own_slots = pool.slots_of(pages)
        self._own_positions = layout.own
        self._room = room - reserved  # slots that may be wanted yet
        self._released = False

    @property
    def own_pages(self) -> Pages:
        """Pages with this sequence's own tokens, in order."""
        return self._own_pages

    @property
    def length(self) -> int:
        """Tokens in the sequence, own and shared."""
        return len(self._own_positions) + sum(len(view) for view in self.layout.views)

    def own_slots(self, positions: NDArray[np.int64]) -> Slots:
        """Slots of own tokens at `positions`, each of which must be own."""
        return self._own_slots[np.searchsorted(self._own_positions, positions)]

    def append(self, n: int) -> NDArray[np.int64]:
        """Add `n` tokens at the end and return their positions; they get own slots.

        Raises:
            PoolExhausted: the sequence outgrew its room and the pool has no more.

        """
        missing = len(self._own_positions) + n - len(self._own_slots)
        if missing > 0:
            pages = self.pool.allocate(max(missing, min(self._room, ROOM_TOKENS)))
            self._room -= len(pages) * self.pool.page_size
            self._own_pages = np.concatenate((self._own_pages, pages))
            self._own_slots = np.concatenate((self._own_slots, self.pool.slots_of(pages)))
        positions = np.arange(self.length, self.length + n, dtype=np.int64)
        self._own_positions = np.concatenate((self._own_positions, positions))
        return positions

    def key_table(self) -> KeyTable:
        """All KV of the sequence: views, then own tokens."""
        views, own = self.layout.views, self._own_positions
        return KeyTable(
            slots=np.concatenate([*(view.slots for view in views), self._own_slots[: len(own)]]),
            positions=np.concatenate([*(view.positions for view in views), own]),
            shifts=np.concatenate(
                [*(np.full(len(view), view.shift) for view in views), np.zeros(len(own), np.int64)]
            ),
        )

    @property
    def own(self) -> tuple[Slots, NDArray[np.int64]]:
        """Slots and positions of the tokens that have slots of their own."""
        return self._own_slots[: len(self._own_positions)], self._own_positions

    @property
    def segments(self) -> tuple[Segment, ...]:
        """Views and own tokens, in runs of slots that lie in a row."""
        slots, positions = self.own
        cuts = np.flatnonzero(np.diff(slots) != 1) + 1
        own = zip(np.split(slots, cuts), np.split(positions, cuts), strict=True)
        return (
            *self.layout.views,
            *(Segment(int(run[0]), at, 0) for run, at in own if len(run)),
        )

    def release(self) -> None:
        """Give all pages back; safe to call twice."""
        if not self._released:
            self._released = True
            self.pool.release(self._shared_pages)
            self.pool.release(self._own_pages)


def key_tree(sequences: Sequence[KVSequence]) -> KeyTree:
    """What some sequences of one pool read, as nodes that are each read by the same ones.

    Runs of slots are cut wherever another sequence's begin or end, so that two that overlap share
    what they have in common, at whatever positions, be it a donor's or one of the sequences' own.
    Runs with the same readers are one node, wherever they lie.
    """
    read = [sequence.segments for sequence in sequences]
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
