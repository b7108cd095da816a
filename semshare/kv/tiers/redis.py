"""Donors in Redis or Valkey, one server or a cluster, shared by the processes of a fleet.

The server holds a ledger of each model's donors and their bytes, so that the budget holds over all
processes; what it evicts is what was used least lately by any of them. (S3-FIFO is for tiers that
one process has to itself: its queues would have to be in the server as well.)

A put, in order: room is reserved (what must go for it is deleted first), chunks are written, the
record is written, the donor is entered in the ledger, which is also when others are told. A donor
that is replaced gets a new generation, so its old and new chunks never mix. See docs/storage.md.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from semshare.errors import InvalidRequest, NotStored, TierUnavailable
from semshare.kv.tiers.breaker import Breaker
from semshare.kv.tiers.counting import TIER_COUNTS, Counts
from semshare.kv.tiers.redis_bounds import within
from semshare.kv.tiers.redis_events import EventReader
from semshare.kv.tiers.redis_keys import Keys, Location
from semshare.kv.tiers.redis_known import KnownDonors
from semshare.kv.tiers.redis_ledger import Ledger
from semshare.kv.tiers.redis_link import Servers
from semshare.kv.tiers.redis_settings import CHUNK_BYTES, RedisTimeouts
from semshare.kv.tiers.redis_values import DonorValues
from semshare.kv.tiers.redis_writer import DonorWriter
from semshare.kv.tiers.tier import Buffer, ByteRange, DonorRecord, TierWatcher

log = logging.getLogger(__name__)

_COUNTS = (*TIER_COUNTS, "lost", "orphans", "rebuilt", "errors", "events", "listings")


class RedisTier:
    """The tier that several processes share. Thread-safe.

    Args:
        url: `redis://user:password@host:port/database`, `rediss://` with TLS, `unix://path`, or a
            cluster's nodes as `redis+cluster://host:port,host:port`.
        fingerprint: of the model; donors of others are neither seen nor counted.
        budget_bytes: most that blobs and records of this model may take, over all processes, which
            should all say the same. Set the server's `maxmemory` a tenth above, without eviction.
        chunk_bytes: size of the values that blobs are cut into.
        events_kept: about how many the server keeps for processes that were away for a while.
        failures: in a row after which a node is not asked for a while.
        timeouts: bounds of everything that waits.
        clock: of those pauses.

    Raises:
        InvalidRequest: a URL or a size that can't be used.

    """

    def __init__(
        self,
        url: str,
        *,
        fingerprint: str,
        budget_bytes: int,
        chunk_bytes: int = CHUNK_BYTES,
        events_kept: int = 10_000,
        failures: int = 2,
        timeouts: RedisTimeouts | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if not fingerprint or budget_bytes < 1 or chunk_bytes < 1:
            raise InvalidRequest(
                f"fingerprint {fingerprint!r}, budget_bytes {budget_bytes} and chunk_bytes "
                f"{chunk_bytes}: the first must not be empty, the others at least 1"
            )
        self._budget = budget_bytes
        self._timeouts = timeouts = timeouts or RedisTimeouts()
        self._process = secrets.token_hex(8)
        self._keys = Keys(fingerprint)
        self._servers = Servers(
            url,
            connect_s=timeouts.connect,
            command_s=timeouts.command,
            make_breaker=lambda: Breaker(
                failures=failures,
                first_s=timeouts.pause,
                longest_s=timeouts.longest_pause,
                clock=clock,
            ),
        )
        self._counts = Counts(_COUNTS)
        self._ledger = Ledger(
            self._servers, self._keys, process=self._process, events_kept=events_kept
        )
        self._values = DonorValues(self._servers, self._keys)
        self._known = KnownDonors(self._ledger, self._values, self._counts, seconds=timeouts.read)
        self._writer = DonorWriter(
            self._ledger,
            self._values,
            self._known,
            self._counts,
            budget_bytes=budget_bytes,
            chunk_bytes=chunk_bytes,
            timeouts=timeouts,
            evicted=self._evicted,
        )
        self._lock = threading.Lock()
        self._reader: EventReader | None = None
        self._listed = False

    @property
    def name(self) -> str:
        """`redis`."""
        return "redis"

    @property
    def budget_bytes(self) -> int:
        """Most bytes of this model's blobs and records in the server."""
        return self._budget

    @property
    def used_bytes(self) -> int:
        """What all processes' donors take now, with what is being written and deleted."""
        with self._bounded(self._timeouts.command):
            return self._ledger.used_bytes()

    @property
    def counts(self) -> Mapping[str, int]:
        """What this process has done and met, besides what `Tier.counts` says.

        evictions: of those, donors that went to make room for one of this process's.
        lost:      donors dropped because values were missing: expired, or gone with a node.
        orphans:   values deleted that belonged to no donor of the ledger.
        rebuilt:   ledgers begun anew, the first one included.
        errors:    calls that ended with `TierUnavailable`, and failures while telling watchers.
        events:    changes of other processes that were read.
        listings:  times that all donors were asked for.
        """
        return self._counts.read()

    def put(self, record: DonorRecord, blobs: Sequence[Buffer]) -> None:
        """Keep a donor, or replace it, as `Tier.put`."""
        sizes = tuple(memoryview(blob).nbytes for blob in blobs)
        if sizes != record.group_bytes:
            raise InvalidRequest(
                f"blobs of {sizes} bytes for a record of {record.id} that says "
                f"{record.group_bytes}: make the record of these blobs"
            )
        with self._bounded(self._timeouts.write):
            self._writer.put(record, blobs)
        self._counts.add("puts")
        self._counts.add("bytes_written", record.n_bytes)

    def read(self, donor: str, group: int, ranges: Sequence[ByteRange]) -> list[Buffer]:
        """Parts of one blob, as `Tier.read`. None is ever short: such a donor is dropped."""
        with self._bounded(self._timeouts.read):
            where = self._known.find(donor)
            if where is None or not 0 <= group < len(where.group_bytes):
                raise _not_stored(donor, group)
            found = self._values.read(donor, where, group, ranges)
            if list(map(len, found)) != list(map(len, ranges)):
                self._lost(donor, where)
                raise _not_stored(donor, group)
        self._counts.add("reads")
        self._counts.add("bytes_read", sum(map(len, found)))
        return list(found)

    def holds(self, donor: str) -> bool:
        """Whether it is known here to lie in the server."""
        return self._known.where(donor) is not None

    def used(self, donor: str) -> None:
        """Count a use, for all processes."""
        with self._bounded(self._timeouts.command):
            self._ledger.used(donor)

    def update(self, record: DonorRecord) -> None:
        """Replace what is said of a donor, as `Tier.update`, and tell the others."""
        with self._bounded(self._timeouts.command):
            where = self._known.find(record.id)
            if where is None:
                return
            if not self._writer.update(record, where):
                self._lost(record.id, where)

    def remove(self, donor: str) -> None:
        """Drop a donor, for all processes."""
        with self._bounded(self._timeouts.command):
            if self._known.drop(donor, None, forgotten=True):
                self._counts.add("removes")

    def quarantine(self, donor: str, reason: str) -> None:
        """Drop a donor whose blob is broken, unless others have replaced it meanwhile."""
        with self._bounded(self._timeouts.command):
            where = self._known.find(donor)
            if where is not None and self._known.drop(donor, where):
                log.warning("%s in the server is dropped: %s", donor, reason)
                self._counts.add("quarantined")

    def records(self) -> Iterable[DonorRecord]:
        """Every donor whose node answers; watchers are told of the others later."""
        with self._bounded(self._timeouts.listing):
            self._counts.add("listings")
            entries = self._ledger.all_entries()
        with self._lock:
            self._listed = True
            reader = self._reader
        missing = dict(entries)
        for found in self._known.fetch(entries):
            entry = missing.pop(found.donor)
            if reader is not None and found.dropped:
                reader.gone(found.donor)
            if found.record is not None:
                if reader is None:
                    self._known.tell(found.donor, entry)
                yield found.record
        if reader is not None:
            reader.ask_again(missing)

    def watch(self, watcher: TierWatcher) -> None:
        """Tell of other processes' donors in a thread, and of what goes for room in the putter's.

        What came since `records` is told as well; all that is there where `records` was not asked
        and the server does not answer now.
        """
        with self._lock:
            if self._reader is not None:
                self._reader.add(watcher)
                return
            self._reader = EventReader(
                self._servers,
                self._keys,
                self._ledger,
                self._known,
                process=self._process,
                counts=self._counts,
                seconds=self._timeouts.command,
                list_s=self._timeouts.listing,
            )
            self._reader.add(watcher)
            self._reader.start(from_now_on=not self._listed)

    def close(self) -> None:
        """End the thread and close all connections. Nothing in the server changes."""
        with self._lock:
            reader = self._reader
        if reader is not None:
            reader.stop(0)
        self._servers.close()  # wakes who waits
        if reader is not None:
            reader.stop(self._timeouts.command + 1.0)
            self._servers.close()  # what was opened again meanwhile

    @contextmanager
    def _bounded(self, seconds: float) -> Iterator[None]:
        try:
            with within(seconds):
                yield
        except TierUnavailable:
            self._counts.add("errors")
            raise
        except TimeoutError as problem:
            self._counts.add("errors")
            raise TierUnavailable(
                f"the Redis tier was not done within {seconds} s: raise the tier's time-outs, or "
                "see why the server is slow"
            ) from problem

    def _evicted(self, donor: str) -> None:
        if (reader := self._reader) is not None:
            reader.gone(donor)

    def _lost(self, donor: str, where: Location) -> None:
        """Values are missing. The donor goes, unless it was replaced, which is then known."""
        self._known.forget(donor)
        if self._known.drop(donor, where):
            self._counts.add("lost")


def _not_stored(donor: str, group: int) -> NotStored:
    return NotStored(
        f"the Redis tier does not have layer group {group} of {donor}, or no longer: compute it"
    )
