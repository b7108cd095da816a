"""Donors in this process's memory, beside the pool: gone with the process, read without a copy."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from semshare.config import EvictionName
from semshare.errors import NotStored
from semshare.kv.tiers.budget import Budget
from semshare.kv.tiers.counting import TIER_COUNTS, Counts
from semshare.kv.tiers.tier import Buffer, ByteRange, DonorRecord, TierWatcher

# Python's objects beside arrays, strings and blobs themselves, as tracemalloc saw them.
_OBJECTS_BYTES = 1500  # of a donor
_VIEW_BYTES = 320  # of a blob


@dataclass(frozen=True, slots=True)
class _Held:
    record: DonorRecord
    blobs: tuple[memoryview, ...]


class HostTier:
    """A `Tier` over memory. Thread-safe.

    Blobs are kept as they are given, not copied: whoever puts them must not change them. What
    `read` gives are views of them, which stay valid, and keep their memory, after the donor went.
    """

    name = "host"

    def __init__(self, budget_bytes: int, policy: EvictionName = "s3-fifo") -> None:
        self._budget = Budget(self.name, budget_bytes, policy)
        self._held: dict[str, _Held] = {}
        self._watchers: list[TierWatcher] = []
        self._counts = Counts(TIER_COUNTS)
        self._lock = threading.Lock()

    @property
    def counts(self) -> Mapping[str, int]:
        """See `Tier`."""
        return self._counts.read()

    @property
    def budget_bytes(self) -> int:
        """See `Tier`."""
        return self._budget.budget_bytes

    @property
    def used_bytes(self) -> int:
        """See `Tier`."""
        return self._budget.used_bytes

    def put(self, record: DonorRecord, blobs: Sequence[Buffer]) -> None:
        """See `Tier`."""
        held = _Held(record, tuple(memoryview(blob).toreadonly() for blob in blobs))
        with self._lock:
            victims = self._hold(held)
        self._counts.add("puts")
        self._counts.add("bytes_written", record.n_bytes)
        self._tell(victims)

    def read(self, donor: str, group: int, ranges: Sequence[ByteRange]) -> list[Buffer]:
        """See `Tier`."""
        with self._lock:
            held = self._held.get(donor)
        if held is None or not 0 <= group < len(held.blobs):
            raise NotStored(
                f"tier {self.name} has no layer group {group} of donor {donor}: it was evicted, "
                "removed or never put here; compute it anew"
            )
        parts = [held.blobs[group][part.start : part.stop] for part in ranges]
        self._counts.add("reads")
        self._counts.add("bytes_read", sum(part.nbytes for part in parts))
        return list(parts)

    def holds(self, donor: str) -> bool:
        """See `Tier`."""
        with self._lock:
            return donor in self._held

    def used(self, donor: str) -> None:
        """See `Tier`."""
        with self._lock:
            self._budget.used(donor)

    def update(self, record: DonorRecord) -> None:
        """See `Tier`. A longer vector may evict others.

        Raises:
            TierFull: it has a longer vector, which doesn't fit. Nothing has changed.

        """
        with self._lock:
            held = self._held.get(record.id)
            victims = [] if held is None else self._hold(_Held(record, held.blobs))
        self._tell(victims)

    def remove(self, donor: str) -> None:
        """See `Tier`."""
        with self._lock:
            held = self._held.pop(donor, None)
            self._budget.remove(donor)
        self._counts.add("removes", int(held is not None))

    def quarantine(self, donor: str, reason: str) -> None:  # noqa: ARG002 - nobody looks here for it
        """See `Tier`. Memory has nothing to be looked into later: it is dropped."""
        if self.holds(donor):
            self._counts.add("quarantined")
        self.remove(donor)

    def records(self) -> Iterable[DonorRecord]:
        """See `Tier`. Donors whose time is over are among them."""
        with self._lock:
            return [held.record for held in self._held.values()]

    def watch(self, watcher: TierWatcher) -> None:
        """See `Tier`."""
        self._watchers.append(watcher)

    def close(self) -> None:
        """Drop everything."""
        with self._lock:
            for donor in tuple(self._held):
                self._budget.remove(donor)
            self._held.clear()

    def _hold(self, held: _Held) -> list[str]:
        """Make room and keep it; the caller has the lock, and tells of the victims without it."""
        record = held.record
        victims = self._budget.admit(record.id, _n_bytes(held), pinned=record.pinned)
        for victim in victims:
            del self._held[victim]
        self._held[record.id] = held
        return victims

    def _tell(self, victims: Sequence[str]) -> None:
        self._counts.add("evictions", len(victims))
        for victim in victims:
            for watcher in self._watchers:
                watcher.vanished(victim)


def _n_bytes(held: _Held) -> int:
    """What a donor takes, with room for its history even before there is one."""
    record = held.record
    arrays = record.ids.nbytes + record.vector.nbytes + 4 * len(record.ids)
    strings = len(record.id) + len(record.namespace) + len(record.embedder)
    blobs = sum(blob.nbytes + _VIEW_BYTES for blob in held.blobs)
    return arrays + strings + _OBJECTS_BYTES + blobs
