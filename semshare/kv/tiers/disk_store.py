"""A model's folder while it is open: its lock, its index and its blobs, and how they agree.

root/<fingerprint>/lock            who works here (`store_lock`)
                   index.sqlite3   what is said of each donor (`disk_index`)
                   blobs/          a file for each layer group of each donor (`disk_files`)
                   quarantine/     what was found broken, a few files of it
"""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from semshare.config import EvictionName
from semshare.kv.tiers.disk_catalog import DiskCatalog, Leftover, file_names
from semshare.kv.tiers.disk_files import BlobFolder, FaultPoint, on_disk
from semshare.kv.tiers.disk_index import DiskIndex, IndexedDonor, is_broken
from semshare.kv.tiers.store_lock import StoreLock

logger = logging.getLogger(__name__)

BATCH = 32  # donors let go of in one step; what that adds to the log is part of `INDEX_BYTES`


class DiskStore:
    """Opens a folder and finds out which of its donors are whole. One writer at a time.

    Attributes:
        catalog: what lies here, as far as it is whole.
        evicted: donors for which the budget has become too small since the folder was last open.
        n_broken: how many donors were not whole.
        n_orphans: how many files belonged to nobody.
        rebuilt: whether the index could not be read and was begun anew.

    Raises:
        StoreLocked: another process has it.
        BlobForeign: it is another model's.
        OSError, sqlite3.Error: it can't be read or written.

    """

    def __init__(
        self,
        folder: Path,
        fingerprint: str,
        donor_bytes: int,
        quarantine_bytes: int,
        policy: EvictionName,
        timeout_s: float,
        at: FaultPoint,
    ) -> None:
        self._path = folder / "index.sqlite3"
        folder.mkdir(mode=0o700, exist_ok=True)  # prompts lie in it
        self._lock = StoreLock(folder / "lock")
        try:
            self.files = BlobFolder(folder, quarantine_bytes, at)
            self._open_index(fingerprint, timeout_s, at, lambda: DiskCatalog(donor_bytes, policy))
        except BaseException:
            self._lock.release()
            raise

    def is_there(self) -> bool:
        """Whether the folder is still the one that was opened."""
        return self.index.is_there()

    @property
    def used_bytes(self) -> int:
        """What donors, quarantine and files that are still to be deleted take."""
        return self.catalog.used_bytes + self.files.quarantined_bytes

    def settle(self) -> None:
        """Delete what is to go, rows before files: a row never lacks its files.

        Nothing may be written before, for what is to go still takes its bytes. Where this raises,
        the rest is tried again the next time.
        """
        self.index.tidy()
        while batch := self.catalog.leftovers(BATCH):
            self.index.drop([one.generation for one in batch if one.generation is not None])
            for one in batch:
                if one.aside:
                    self.files.set_aside(one.names)
                else:
                    self.files.remove(one.names)
            self.index.tidy()
            self.catalog.deleted(batch)

    def write_uses(self) -> None:
        """Write down when donors were used."""
        if uses := self.catalog.take_used_at():
            self.index.tidy()
            self.index.used(uses)

    def abandon_index(self) -> None:
        """Set the index aside, so that opening the folder anew begins another. Closes all."""
        with suppress(sqlite3.Error):
            self.index.close()
        try:
            self._set_index_aside()
        finally:
            self._lock.release()

    def close(self) -> None:
        """Let go of files and lock."""
        try:
            self.index.close()
        finally:
            self._lock.release()

    def _open_index(
        self,
        fingerprint: str,
        timeout_s: float,
        at: FaultPoint,
        empty: Callable[[], DiskCatalog],
    ) -> None:
        def begin() -> None:
            self.catalog = empty()
            self.index = DiskIndex(self._path, fingerprint, timeout_s=timeout_s, at=at)
            try:
                self._compare(self.index.donors())
                if self.n_broken:
                    self.index.check()
            except BaseException:
                self.index.close()
                raise

        self.rebuilt = False
        try:
            begin()
        except (sqlite3.Error, UnicodeError) as error:  # the latter of damaged names of columns
            if isinstance(error, sqlite3.Error) and not is_broken(error):
                raise
            logger.warning(
                "the index %s can't be read (%s); it is begun anew, and the donors it named are "
                "computed again when they are asked for",
                self._path,
                error,
            )
            self.rebuilt = True
            self._set_index_aside()
            begin()

    def _compare(self, indexed: Sequence[IndexedDonor]) -> None:
        """Tell whole donors from others by names and sizes of files; no blob is opened."""
        found = self.files.sizes()
        whole, leftovers = [], []
        for donor in indexed:
            names = file_names(donor)
            if names and tuple(map(found.get, names)) == donor.group_bytes:
                whole.append(donor)
            else:
                there = tuple(name for name in names if name in found)
                n_bytes = sum(on_disk(found[name]) for name in there)
                leftovers.append(Leftover(donor.generation, there, n_bytes, aside=True))
            for name in names:
                found.pop(name, None)
        self.n_broken = len(leftovers)
        self.n_orphans = len(found)
        leftovers += [Leftover(None, (name,), on_disk(size)) for name, size in found.items()]
        self.evicted = self.catalog.load(whole, leftovers)

    def _set_index_aside(self) -> None:
        for suffix in ("-wal", "-shm", "-journal"):
            self._path.with_name(self._path.name + suffix).unlink(missing_ok=True)
        self.files.set_file_aside(self._path, f"index.{time.time_ns():016x}.sqlite3")
