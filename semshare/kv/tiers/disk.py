"""Donors on disk: blobs in files, the index in SQLite, one process a folder.

A donor is found only once all of it is safe: its blobs are written, synced and renamed, their
folder is synced, and then one commit names them. Replaced and evicted donors go the other way
round, first the row and then the files. What a crash leaves is therefore a file that no row names,
which is collected when the folder is opened; see `docs/storage.md`.
"""

from __future__ import annotations

import logging
import string
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from semshare.config import MIN_DISK_BYTES, EvictionName
from semshare.errors import NotStored
from semshare.kv.tiers.disk_access import BegunAnew, DiskAccess
from semshare.kv.tiers.disk_catalog import file_names
from semshare.kv.tiers.disk_files import FaultPoint
from semshare.kv.tiers.disk_index import INDEX_BYTES, IndexedDonor
from semshare.kv.tiers.disk_rows import record_bytes
from semshare.kv.tiers.disk_store import DiskStore
from semshare.kv.tiers.tier import Buffer, ByteRange, DonorRecord, TierWatcher

logger = logging.getLogger(__name__)

QUARANTINE_SHARE = 1 / 32  # of the budget, for blobs that somebody may want to look at
USES_KEPT = 128  # in memory until they are written in one step; a crash forgets them
_NAME = set(string.ascii_letters + string.digits + "-_")


class DiskTier:
    """A `Tier` over the folder `root/fingerprint`, on a local file system.

    Args:
        root: where the folders of models lie; made if it is not there.
        fingerprint: of the model whose donors these are; letters, digits, `-` and `_`.
        budget_bytes: most that all files in the folder take, each rounded up to blocks of 4 KiB.
            Of it, `INDEX_BYTES` and `QUARANTINE_SHARE` are kept free of donors.
        policy: which donors go first for want of room.
        timeout_s: longest wait for another thread's write, in seconds.
        at: called before each step of a write, for tests that break it there.

    Raises:
        StoreLocked: another process has the folder open.
        BlobForeign: the folder was moved here from another model's place.
        TierUnavailable: the folder can't be made, read or written.
        ValueError: a budget too small for an index, or a fingerprint that names no folder.

    """

    name = "disk"

    def __init__(
        self,
        root: Path,
        fingerprint: str,
        budget_bytes: int,
        policy: EvictionName = "s3-fifo",
        *,
        timeout_s: float = 10.0,
        at: FaultPoint = lambda point: None,  # noqa: ARG005 - nothing is broken by default
    ) -> None:
        if budget_bytes < MIN_DISK_BYTES:
            raise ValueError(
                f"a disk budget of {budget_bytes} bytes leaves too little beside the index, for "
                f"which {INDEX_BYTES} are kept: allow at least {MIN_DISK_BYTES}"
            )
        if not fingerprint or not set(fingerprint) <= _NAME:
            raise ValueError(f"{fingerprint!r} names no folder: take letters, digits, - and _")
        aside = int(budget_bytes * QUARANTINE_SHARE)
        folder = root / fingerprint

        def opening() -> DiskStore:
            return DiskStore(
                folder,
                fingerprint,
                donor_bytes=budget_bytes - aside - INDEX_BYTES,
                quarantine_bytes=aside,
                policy=policy,
                timeout_s=timeout_s,
                at=at,
            )

        self.budget_bytes = budget_bytes
        self._watchers: list[TierWatcher] = []
        self._generation = 0
        self._access = DiskAccess(opening, root, folder, timeout_s)

    @property
    def used_bytes(self) -> int:
        """What donors, quarantine and files that are still to be deleted take now."""
        store = self._access.store
        return store.used_bytes if store else 0

    @property
    def counts(self) -> Mapping[str, int]:
        """What the tier has done and met since it was made, by the names in `disk_access`."""
        return self._access.counts

    def put(self, record: DonorRecord, blobs: Sequence[Buffer]) -> None:
        """See `Tier.put`. Raises `ValueError` where the blobs' sizes are not the record's."""
        sizes = tuple(memoryview(blob).nbytes for blob in blobs)
        if not sizes or sizes != tuple(record.group_bytes):
            raise ValueError(
                f"blobs of {sizes} bytes for donor {record.id}, whose record says "
                f"{record.group_bytes}: pass one blob for each group, in their order"
            )
        with self._telling() as evicted, self._access.writing() as store:
            self._generation = max(self._generation + 1, time.time_ns())  # never the same again
            n_bytes = record_bytes(record)
            donor = IndexedDonor(record.id, self._generation, sizes, n_bytes, record.pinned)
            with self._keeping(donor, store, evicted):
                old = store.catalog.find(record.id)
                store.files.write(file_names(donor), blobs)
                store.index.add(record, donor.generation, [old.generation] if old else [])
            self._access.count(puts=1, bytes_written=sum(sizes))

    def read(self, donor: str, group: int, ranges: Sequence[ByteRange]) -> list[Buffer]:
        """See `Tier.read`."""
        store = self._access.reading()
        if (stored := store.catalog.find(donor)) is None:
            raise NotStored(f"donor {donor} is not on disk: compute it")
        sizes = stored.group_bytes
        if not 0 <= group < len(sizes) or not all(
            0 <= part.start <= part.stop <= sizes[group] for part in ranges
        ):
            raise NotStored(
                f"donor {donor} has groups of {sizes} bytes on disk, and not {ranges} of group "
                f"{group}: look its record up again"
            )
        try:
            parts = store.files.read(file_names(stored)[group], ranges)
        except FileNotFoundError:
            self._miss(stored, store)
            raise NotStored(f"donor {donor} has left the disk: compute it") from None
        except OSError as error:
            raise self._access.unavailable(error) from error
        self._access.count(reads=1, bytes_read=sum(map(len, parts)))
        return parts

    def holds(self, donor: str) -> bool:
        """See `Tier.holds`."""
        store = self._access.store
        return store is not None and store.catalog.find(donor) is not None

    def used(self, donor: str) -> None:
        """See `Tier.used`. Written with others, or on closing; failing to write is no error."""
        store = self._access.store
        if store is not None and store.catalog.use(donor) >= USES_KEPT:
            with self._access.writing_if_free() as free:
                if free is not None:
                    free.write_uses()

    def update(self, record: DonorRecord) -> None:
        """See `Tier.update`. Safe once it returns; nothing happens if other blobs lie here."""
        with self._telling() as evicted, self._access.writing() as store:
            stored = store.catalog.find(record.id)
            if stored is None or stored.group_bytes != tuple(record.group_bytes):
                return
            donor = replace(stored, record_bytes=record_bytes(record), pinned=record.pinned)
            with self._keeping(donor, store, evicted):
                store.index.update(record, donor.generation)

    def remove(self, donor: str) -> None:
        """See `Tier.remove`. If it raises, the donor is gone until the tier is opened again."""
        with self._access.writing() as store:
            if store.catalog.forget(donor):
                store.settle()
                self._access.count(removes=1)

    def quarantine(self, donor: str, reason: str) -> None:
        """See `Tier.quarantine`. Its files are kept aside, as far as quarantine has room."""
        store = self._access.reading()
        if self._forget_broken(store.catalog.find(donor), store, reason):
            with self._access.writing() as store:
                store.settle()

    def records(self) -> list[DonorRecord]:
        """See `Tier.records`. A row that is not what was written is dropped with its donor."""
        try:
            return self._read_records()
        except BegunAnew:
            return self._read_records()

    def watch(self, watcher: TierWatcher) -> None:
        """See `Tier.watch`."""
        self._watchers.append(watcher)

    def close(self) -> None:
        """See `Tier.close`."""
        self._access.close()

    @contextmanager
    def _telling(self) -> Iterator[list[str]]:
        """Tell of the donors that the block appends, once it no longer holds the store."""
        evicted: list[str] = []
        try:
            yield evicted
        finally:
            for donor in evicted:
                for watcher in self._watchers:
                    watcher.vanished(donor)

    @contextmanager
    def _keeping(self, donor: IndexedDonor, store: DiskStore, evicted: list[str]) -> Iterator[None]:
        """Make room for a donor that the block writes; if that fails, none of it stays."""
        store.settle()
        victims = store.catalog.admit(donor)
        self._access.count(evictions=len(victims))
        evicted += victims
        try:
            store.settle()
            yield
        except BaseException:
            store.catalog.give_up(donor)
            self._access.try_to_settle(store)
            raise
        store.catalog.keep(donor)
        self._access.try_to_settle(store)

    def _read_records(self) -> list[DonorRecord]:
        records = []
        damaged = False
        with self._access.writing() as store:
            donors = store.catalog.by_generation()
            used_at = store.catalog.used_at()
            for generation, record in store.index.records():
                if (donor := donors.get(generation)) is None:
                    continue
                if record is None or (record.id, record.group_bytes) != (
                    donor.id,
                    donor.group_bytes,
                ):
                    damaged = True
                    self._forget_broken(donor, store, "its record is not what was written")
                elif generation in used_at:
                    records.append(replace(record, used_at=used_at[generation]))
                else:
                    records.append(record)
            if damaged:
                store.index.check()
            self._access.try_to_settle(store)
        return records

    def _miss(self, stored: IndexedDonor, store: DiskStore) -> None:
        """A blob is not there: its donor was replaced or dropped, or the folder went, or a file."""
        if store.catalog.find(stored.id) is not stored:
            return
        if store.is_there():
            self._forget_broken(stored, store, "a blob of it is not there")
        else:
            self._access.check_there()

    def _forget_broken(self, stored: IndexedDonor | None, store: DiskStore, reason: str) -> bool:
        if stored is None or not store.catalog.forget(stored.id, broken=stored):
            return False
        self._access.count(quarantined=1)
        logger.warning("donor %s on disk is broken and given out no longer: %s", stored.id, reason)
        return True
