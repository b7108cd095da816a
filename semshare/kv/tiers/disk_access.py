"""The way to a folder that may go and come back: one writer at a time, errors of one tree."""

from __future__ import annotations

import errno
import logging
import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from semshare.errors import BlobForeign, StoreLocked, TierUnavailable
from semshare.kv.tiers.counting import TIER_COUNTS, Counts
from semshare.kv.tiers.disk_index import is_broken
from semshare.kv.tiers.disk_store import DiskStore

logger = logging.getLogger(__name__)

COUNTS = (
    *TIER_COUNTS,
    "orphans",  # files of no donor that were collected
    "rebuilt",  # indexes that could not be read and were begun anew
    "reopened",  # times the folder was back after it had gone
    "errors",  # calls that ended with `TierUnavailable`, and deletions put off
)

_WAYS_OUT = {
    errno.ENOSPC: "free space on the disk, or lower the tier's budget",
    errno.EDQUOT: "raise the disk quota, or lower the tier's budget",
    errno.EFBIG: "raise the limit on file sizes (ulimit -f)",
    errno.EROFS: "mount it writable; what is stored is found again after that",
    errno.EACCES: "let this user write there",
    errno.EPERM: "let this user write there",
    errno.ENOENT: "bring the folder back; the layout below it is made anew",
    errno.EMFILE: "allow more open files (ulimit -n)",
}
_OF_SQLITE = {
    sqlite3.SQLITE_FULL: errno.ENOSPC,
    sqlite3.SQLITE_READONLY: errno.EROFS,
    sqlite3.SQLITE_PERM: errno.EACCES,
}


class BegunAnew(TierUnavailable):
    """The index was broken and has been set aside; the next call finds an empty one."""


class DiskAccess:
    """Opens a store at once, and again whenever it was lost. Thread-safe.

    Args:
        opening: opens it.
        root: made if it is not there, but only now: later on, it has gone and may come back.
        folder: the store's, in `root`; for messages.
        timeout_s: longest wait for another writer, in seconds.

    Raises:
        StoreLocked, BlobForeign, TierUnavailable: it can't be opened now.

    """

    def __init__(
        self, opening: Callable[[], DiskStore], root: Path, folder: Path, timeout_s: float
    ) -> None:
        self._opening = opening
        self._where = str(folder)
        self._timeout_s = timeout_s
        self._writer = threading.Lock()
        self._counts = Counts(COUNTS)
        self._closed = False
        self.store: DiskStore | None = None
        with self._mapped():
            root.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.store = self._open()

    @property
    def counts(self) -> Mapping[str, int]:
        """What was counted, by the names in `COUNTS`."""
        return self._counts.read()

    def count(self, **more: int) -> None:
        """Add to counters."""
        for name, n in more.items():
            self._counts.add(name, n)

    def reading(self) -> DiskStore:
        """The store, opened again if it was lost."""
        if (store := self.store) is not None:
            return store
        with self.writing() as opened:
            return opened

    @contextmanager
    def writing(self) -> Iterator[DiskStore]:
        """The store, for nobody else. What breaks in the block is told as `TierUnavailable`.

        A store whose folder or index turns out to be lost is closed, and the next call opens it.
        """
        if not self._writer.acquire(timeout=self._timeout_s):
            raise self.failed(
                f"{self._where} has been busy writing for {self._timeout_s} s: try again later, or "
                "allow a longer wait"
            )
        try:
            with self._mapped():
                yield self._opened()
        finally:
            self._writer.release()

    def check_there(self) -> None:
        """Raise `TierUnavailable` where the folder has gone; the next call opens it again."""
        with self.writing():
            pass

    @contextmanager
    def writing_if_free(self) -> Iterator[DiskStore | None]:
        """The same without waiting or opening, and what breaks is counted only."""
        if not self._writer.acquire(blocking=False):
            yield None
            return
        try:
            with self._mapped():
                yield self.store
        except TierUnavailable as error:
            logger.warning("%s", error)
        finally:
            self._writer.release()

    def try_to_settle(self, store: DiskStore) -> None:
        """Delete what is to go, or leave it to the next write, which begins with it."""
        try:
            store.settle()
        except (OSError, sqlite3.Error) as error:
            self.count(errors=1)
            logger.warning("deleting from %s failed: %s", self._where, error)

    def failed(self, message: str) -> TierUnavailable:
        """Count an error, and give what is to be raised."""
        self.count(errors=1)
        return TierUnavailable(message)

    def unavailable(self, error: OSError | sqlite3.Error) -> TierUnavailable:
        """The same for what went wrong below."""
        if isinstance(error, OSError):
            number = error.errno
        else:
            number = _OF_SQLITE.get(getattr(error, "sqlite_errorcode", 0) & 0xFF)
        way_out = _WAYS_OUT.get(number or 0, "see to the disk")
        return self.failed(f"the disk tier at {self._where} can't do this now ({error}): {way_out}")

    def close(self) -> None:
        """Write what was used and close for good; errors are logged. Safe to call twice."""
        if not self._writer.acquire(timeout=self._timeout_s):
            logger.warning("%s is being written and stays open until the process ends", self._where)
            return
        try:
            self._closed = True
            if (store := self.store) is not None:
                self.store = None
                try:
                    store.write_uses()
                finally:
                    store.close()
        except (OSError, sqlite3.Error) as error:
            self.count(errors=1)
            logger.warning("closing %s: %s", self._where, error)
        finally:
            self._writer.release()

    @contextmanager
    def _mapped(self) -> Iterator[None]:
        try:
            yield
        except (OSError, sqlite3.Error) as error:
            if isinstance(error, sqlite3.Error) and is_broken(error) and self.store is not None:
                self._lose(DiskStore.abandon_index, error)
                self.count(rebuilt=1)
                raise BegunAnew(str(self.unavailable(error))) from error
            if self.store is not None and (
                isinstance(error, FileNotFoundError) or not self.store.is_there()
            ):
                self._lose(DiskStore.close, error)
            raise self.unavailable(error) from error

    def _opened(self) -> DiskStore:
        if self._closed:
            raise self.failed(f"the disk tier at {self._where} is closed: open another")
        if self.store is None:
            try:
                self.store = self._open()
            except (StoreLocked, BlobForeign) as error:
                raise self.failed(str(error)) from error
            self.count(reopened=1)
            logger.warning("%s is back, with %d donors", self._where, len(self.store.catalog))
        elif not self.store.is_there():
            raise FileNotFoundError(errno.ENOENT, "the folder or its index has gone", self._where)
        return self.store

    def _open(self) -> DiskStore:
        store = self._opening()
        self.count(
            evictions=len(store.evicted),
            quarantined=store.n_broken,
            orphans=store.n_orphans,
            rebuilt=int(store.rebuilt),
        )
        self.try_to_settle(store)  # what lies there can be read all the same
        return store

    def _lose(self, close: Callable[[DiskStore], None], error: Exception) -> None:
        store, self.store = self.store, None
        logger.warning("%s is lost (%s) and opened again with the next call", self._where, error)
        if store is not None:
            try:
                close(store)
            except (OSError, sqlite3.Error) as failure:
                logger.warning("closing %s: %s", self._where, failure)
