"""What is said of each donor on disk, in SQLite: a row appears in one step, or not at all.

The write-ahead log is synced at every commit, so a row that was committed survives a loss of power.
SQLite finds damage to its own structure only; each row therefore has a checksum over all that is
said of the donor, so that a flipped bit moves no donor to another namespace or other ids.

`arrays` is a table of its own because counting a use must not write a donor's ids again.
"""

from __future__ import annotations

import sqlite3
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from semshare.errors import BlobForeign
from semshare.kv.tiers.disk_files import FaultPoint, fsync_folder
from semshare.kv.tiers.tier import DonorRecord

SCHEMA_VERSION = 1
PAGE_BYTES = 4096
LOG_BYTES = 128 << 10  # of the write-ahead log, at which it is copied into the database
FREE_PAGES = 16  # in the database, at which they are given back to the file system
# Most that the files take beside what `record_bytes` counts: log, free pages, schema, and what one
# batch of changes adds to the log. Measured at most: a third of it.
INDEX_BYTES = 1 << 20

_SCHEMA = f"""
CREATE TABLE store (fingerprint TEXT NOT NULL);
CREATE TABLE donors (
    generation INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, namespace TEXT NOT NULL,
    embedder TEXT NOT NULL, coding TEXT NOT NULL, head_bytes INTEGER NOT NULL,
    group_bytes TEXT NOT NULL, pinned INTEGER NOT NULL, published INTEGER NOT NULL,
    created_at REAL NOT NULL, used_at REAL NOT NULL, expires_at REAL NOT NULL,
    record_bytes INTEGER NOT NULL, checksum INTEGER NOT NULL);
CREATE TABLE arrays (
    generation INTEGER PRIMARY KEY, ids BLOB NOT NULL, vector BLOB NOT NULL, history BLOB NOT NULL);
PRAGMA user_version = {SCHEMA_VERSION};
"""
_SAID = (
    "id, namespace, embedder, coding, head_bytes, group_bytes, pinned, published, created_at, "
    "expires_at, record_bytes"
)

# What may pass by itself: the disk is full, slow, read-only or gone. All else SQLite can say of
# the statements below means that the file is not what was written.
_PASSING = {
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_INTERRUPT,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_NOMEM,
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_READONLY,
}

_LEFT_OPEN: list[sqlite3.Connection] = []  # see `DiskIndex.close`


def is_broken(error: sqlite3.Error) -> bool:
    """Whether the index has to be begun anew, rather than tried again later."""
    return (getattr(error, "sqlite_errorcode", sqlite3.SQLITE_IOERR) & 0xFF) not in _PASSING


def record_bytes(record: DonorRecord) -> int:
    """Most bytes that a donor's rows take: in the database, and once more in the log.

    A history is counted whether there is one or not, so that recording one needs no room.
    """
    arrays = 4 * (2 * len(record.ids) + len(record.vector))
    names = len(record.id) + len(record.namespace) + len(record.embedder)
    return 2 * (arrays + 4 * names + 3 * PAGE_BYTES)


@dataclass(frozen=True, slots=True)
class IndexedDonor:
    """What the tier has to know of a donor to find its files and to count them."""

    id: str
    generation: int
    group_bytes: tuple[int, ...]
    record_bytes: int
    pinned: bool


class DiskIndex:
    """One SQLite file. Not thread-safe.

    Methods raise `sqlite3.Error`, and the constructor `BlobForeign` where the file is another
    model's.
    """

    def __init__(self, path: Path, fingerprint: str, *, timeout_s: float, at: FaultPoint) -> None:
        self._path = path
        self._log = path.with_name(path.name + "-wal")
        self._at = at
        self._db = sqlite3.connect(
            path, timeout=timeout_s, isolation_level=None, check_same_thread=False
        )
        try:
            self._db.text_factory = _text
            self._begin(fingerprint)
        except BaseException:
            self._db.close()
            raise
        self._file = path.stat()

    def _begin(self, fingerprint: str) -> None:
        # Nobody else works here, so the log's index can be in memory, where no full disk reaches.
        self._set("locking_mode = EXCLUSIVE")
        is_new = not self._number("SELECT count(*) FROM sqlite_schema")
        if is_new:  # to set these again would write, which a full disk does not allow
            self._set(f"page_size = {PAGE_BYTES}")
            self._set("auto_vacuum = INCREMENTAL")
        self._set("journal_mode = WAL")
        self._set("synchronous = FULL")
        self._set("wal_autocheckpoint = 0")  # `tidy` does it, where it knows what it may take
        if is_new:
            with self._transaction():
                for statement in _SCHEMA.split(";"):
                    self._db.execute(statement)
                self._db.execute("INSERT INTO store VALUES (?)", (fingerprint,))
            fsync_folder(self._path.parent)
        if (version := self._number("PRAGMA user_version")) != SCHEMA_VERSION:
            raise sqlite3.DatabaseError(f"schema version {version}, not {SCHEMA_VERSION}")
        (whose,) = self._db.execute("SELECT fingerprint FROM store").fetchone() or ("",)
        if whose != fingerprint:
            raise BlobForeign(
                f"{self._path} holds donors of the model {whose!r}, not {fingerprint!r}: give each "
                "model a folder of its own, or delete this one"
            )

    def is_there(self) -> bool:
        """Whether the file that was opened still lies where it lay."""
        try:
            found = self._path.stat()
        except OSError:
            return False
        return (found.st_dev, found.st_ino) == (self._file.st_dev, self._file.st_ino)

    def donors(self) -> list[IndexedDonor]:
        """All donors, the one unused for longest first."""
        found = self._db.execute(
            "SELECT id, generation, group_bytes, record_bytes, pinned FROM donors ORDER BY used_at"
        )
        donors = []
        for donor, generation, groups, n_bytes, pinned in found:
            sizes = _sizes(groups)
            if isinstance(n_bytes, int) and n_bytes > 0 and isinstance(donor, str):
                donors.append(IndexedDonor(donor, generation, sizes, n_bytes, bool(pinned)))
            else:
                donors.append(IndexedDonor(str(donor), generation, (), 1, False))
        return donors

    def records(self) -> Iterator[tuple[int, DonorRecord | None]]:
        """Every donor's generation and record, which is None where it is not what was written."""
        query = (
            f"SELECT generation, {_SAID}, used_at, checksum, ids, vector, history "  # noqa: S608 - constants
            "FROM donors LEFT JOIN arrays USING (generation)"
        )
        for generation, *said, used_at, checksum, ids, vector, history in self._db.execute(query):
            try:
                if _checksum(said, (ids, vector, history)) == checksum:
                    yield generation, _record(said, used_at, ids, vector, history)
                else:
                    yield generation, None
            except (TypeError, ValueError):  # a column of another type than was written
                yield generation, None

    def add(self, record: DonorRecord, generation: int, replaced: Sequence[int]) -> None:
        """Put a donor's rows in, and take others out, in one step."""
        said, arrays = _said(record), _arrays(record)
        with self._transaction():
            self._delete(replaced)
            self._db.execute(
                f"INSERT INTO donors (generation, {_SAID}, used_at, checksum) "  # noqa: S608 - constants
                f"VALUES ({', '.join('?' * (len(said) + 3))})",
                (generation, *said, record.used_at, _checksum(said, arrays)),
            )
            self._db.execute("INSERT INTO arrays VALUES (?, ?, ?, ?)", (generation, *arrays))

    def update(self, record: DonorRecord, generation: int) -> None:
        """Replace a donor's rows."""
        self.add(record, generation, (generation,))

    def used(self, used_at: Mapping[int, float]) -> None:
        """Keep when donors, named by their generations, were last used."""
        with self._transaction():
            self._db.executemany(
                "UPDATE donors SET used_at = ? WHERE generation = ?",
                [(when, generation) for generation, when in used_at.items()],
            )

    def drop(self, generations: Sequence[int]) -> None:
        """Take rows out."""
        if generations:
            with self._transaction():
                self._delete(generations)

    def tidy(self) -> None:
        """Bring log and free pages back under their limits. Cheap where they are."""
        while self._number("PRAGMA freelist_count") > FREE_PAGES:
            self._db.execute(f"PRAGMA incremental_vacuum({FREE_PAGES})").fetchall()
            self._checkpoint()
        if self._log.exists() and self._log.stat().st_size > LOG_BYTES:
            self._checkpoint()

    def close(self) -> None:
        """Copy the log into the database and let go of both."""
        with suppress(OSError):
            found = self._path.stat()
            if found.st_ino == self._file.st_ino and found.st_dev != self._file.st_dev:
                # Another disk is mounted here now. SQLite tells files by their inode's number alone
                # (`fileHasMoved`) and would delete the log of the other disk's index.
                _LEFT_OPEN.append(self._db)
                return
        self._db.close()

    def _checkpoint(self) -> None:
        self._at("checkpoint")
        self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def _delete(self, generations: Iterable[int]) -> None:
        for generation in generations:
            for table in ("donors", "arrays"):
                self._db.execute(f"DELETE FROM {table} WHERE generation = ?", (generation,))  # noqa: S608 - constants

    def _set(self, pragma: str) -> None:
        self._db.execute(f"PRAGMA {pragma}").fetchall()

    def _number(self, query: str) -> Any:
        return self._db.execute(query).fetchone()[0]

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._at("commit")
            self._db.execute("COMMIT")
        except BaseException:
            with suppress(sqlite3.Error):
                self._db.execute("ROLLBACK")
            raise
        self._at("committed")


def _said(record: DonorRecord) -> list[Any]:
    """The columns of `_SAID`."""
    return [
        record.id,
        record.namespace,
        record.embedder,
        record.coding,
        int(record.head_bytes),
        ",".join(map(str, map(int, record.group_bytes))),
        int(record.pinned),
        int(record.published),
        float(record.created_at),
        float(record.expires_at),
        record_bytes(record),
    ]


def _arrays(record: DonorRecord) -> tuple[bytes, bytes, bytes]:
    return (
        np.ascontiguousarray(record.ids, "<i4").tobytes(),
        np.ascontiguousarray(record.vector, "<f4").tobytes(),
        np.ascontiguousarray(record.history, "<f4").tobytes(),
    )


def _checksum(said: Sequence[Any], arrays: Sequence[bytes]) -> int:
    checksum = zlib.crc32(repr((*said, *map(len, arrays))).encode())
    for array in arrays:
        checksum = zlib.crc32(array, checksum)
    return checksum


def _record(
    said: Sequence[Any], used_at: float, ids: bytes, vector: bytes, history: bytes
) -> DonorRecord:
    donor, namespace, embedder, coding, head_bytes, groups, pinned, published = said[:8]
    return DonorRecord(
        id=donor,
        namespace=namespace,
        ids=np.frombuffer(ids, "<i4"),
        vector=np.frombuffer(vector, "<f4"),
        embedder=embedder,
        history=np.frombuffer(history, "<f4"),
        coding=coding,
        head_bytes=head_bytes,
        group_bytes=_sizes(groups),
        pinned=bool(pinned),
        published=bool(published),
        created_at=said[8],
        used_at=float(used_at),
        expires_at=said[9],
    )


def _sizes(groups: Any) -> tuple[int, ...]:
    """Of each group's blob; none where the column is damaged."""
    try:
        return tuple(map(int, groups.split(",")))
    except (AttributeError, ValueError):
        return ()


def _text(column: bytes) -> str:
    """A damaged text is read like any other; its row's checksum tells."""
    return column.decode("utf-8", "replace")
