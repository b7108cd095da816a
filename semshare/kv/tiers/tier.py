"""What every tier below the pool does, and what passes between a tier and those above it.

A tier keeps whole donors: a `DonorRecord`, which is all that finding a donor takes, and its KV as
one blob for each group of layers (`semshare.kv.tiers.blob`). It moves bytes and looks into none of
them; whether a blob is whole is found out by whoever decodes it, who then says `quarantine`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from semshare.config import DonorFormat
from semshare.types import Ids, Scores

Buffer = bytes | bytearray | memoryview


@dataclass(frozen=True, slots=True)
class StoredForm:
    """How a donor's KV is stored; `DonorRecord` says what each field is."""

    coding: DonorFormat
    head_bytes: int
    group_bytes: tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class DonorRecord:
    """A donor without its KV. Times are seconds since the epoch.

    id:          names namespace and token ids, the same in every process (`donor_id`).
    ids:         `[n]` int32.
    vector:      `[dim]` float32, its prompt's, as `embedder` made it.
    history:     `[n]` float32, attention of past answers; empty if none was recorded.
    coding:      whether the KV is stored as computed, or in int8, which is never exact.
    head_bytes:  length of each blob's head, the same for all of them: what a reader asks for first.
    group_bytes: size of each layer group's blob, head included.
    expires_at:  infinite if it stays.
    """

    id: str
    namespace: str
    ids: Ids
    vector: NDArray[np.float32]
    embedder: str
    history: Scores
    coding: DonorFormat
    head_bytes: int
    group_bytes: tuple[int, ...]
    pinned: bool
    published: bool
    created_at: float
    used_at: float
    expires_at: float

    @property
    def n_bytes(self) -> int:
        """Of all its blobs."""
        return sum(self.group_bytes)

    @property
    def form(self) -> StoredForm:
        """How its KV is stored."""
        return StoredForm(self.coding, self.head_bytes, self.group_bytes)


@dataclass(frozen=True, slots=True)
class ByteRange:
    """Bytes [start, stop) of a blob."""

    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


class TierWatcher(Protocol):
    """Is told which donors a tier loses by itself, and what other processes do to a shared one.

    Called from any thread, with none of the tier's locks held. What this process puts, updates,
    removes and quarantines is not told.
    """

    def appeared(self, record: DonorRecord) -> None:
        """Another process has put a donor, or changed what is said of it."""

    def vanished(self, donor: str) -> None:
        """A donor is there no longer: it went for want of room, or another process dropped it."""

    def forgotten(self, donor: str) -> None:
        """Another process removed a donor on purpose (`Tier.remove`): it should be nowhere."""


class Tier(Protocol):
    """Keeps donors under a byte budget. Thread-safe.

    Whatever a method has to wait for is bounded by the tier's own time-outs. Every method but
    `close` raises `TierUnavailable` where what lies behind the tier does not answer, is full for
    reasons of its own, or is broken; a later call may succeed.
    """

    @property
    def name(self) -> str:
        """`host`, `disk` or `redis`, for counters and messages."""

    @property
    def budget_bytes(self) -> int:
        """Most bytes that blobs and records may take, at any moment."""

    @property
    def used_bytes(self) -> int:
        """What they take now."""

    @property
    def counts(self) -> Mapping[str, int]:
        """What it has done and met since it was made, by the same names in every tier.

        puts, reads, removes: calls that did something.
        bytes_written, bytes_read: of blobs.
        evictions:   donors that went for want of room.
        quarantined: donors that went because something of them was not what was written.
        errors:      calls that ended with `TierUnavailable`; there if the tier can fail.
        """

    def put(self, record: DonorRecord, blobs: Sequence[Buffer]) -> None:
        """Keep a donor, or replace it. It is found only once all of it is safe.

        Room is made by the tier's policy before anything is written; pinned donors stay.

        Raises:
            TierFull: more than fits beside what is pinned. Nothing was evicted or written.

        """

    def read(self, donor: str, group: int, ranges: Sequence[ByteRange]) -> list[Buffer]:
        """Parts of one blob, in the order of `ranges`, each of which lies within the blob.

        A part may be shorter than its range where the blob has lost bytes.

        Raises:
            NotStored: the tier has no such donor, or not this blob of it.

        """

    def holds(self, donor: str) -> bool:
        """Whether a donor is here as far as this process knows, without asking a server."""

    def used(self, donor: str) -> None:
        """Count a use, for the policy; nothing happens where it is not there."""

    def update(self, record: DonorRecord) -> None:
        """Replace what is said of a donor, not its blobs; nothing happens where it is not there."""

    def remove(self, donor: str) -> None:
        """Drop a donor; nothing happens where it is not there."""

    def quarantine(self, donor: str, reason: str) -> None:
        """Never give this donor out again: a blob of it is broken. It may be put anew."""

    def records(self) -> Iterable[DonorRecord]:
        """Every donor that is whole as far as can be told without reading blobs."""

    def watch(self, watcher: TierWatcher) -> None:
        """Tell `watcher` from now on; of a shared tier also what has changed since `records`."""

    def close(self) -> None:
        """Let go of files, locks and connections. Safe to call twice."""
