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

from semshare.errors import BlobForeign
from semshare.kv.tiers.disk_files import FaultPoint, fsync_folder
from semshare.kv.tiers.disk_rows import (
    PAGE_BYTES,
    SAID,
    arrays_of,
    checksum_of,
    record_from,
    said_of,
    sizes_from,
)
from semshare.kv.tiers.tier import DonorRecord

SCHEMA_VERSION = 1
_FORMATS = b"\2\2"  # in SQLite's header, of a database with a write-ahead log
LOG_BYTES = 128 << 10  # of the write-ahead log, at which it is copied into the database
FREE_PAGES = 16  # in the database, at which they are given back to the file system
# Most that the files take beside what `record_bytes` counts: log, free pages, schema, and what one
# batch of changes adds to the log. Measured: 0.55 of it, where donors of 20 to 100,000 tokens come
# and go.
INDEX_BYTES = 1 << 20

_TABLES = (
    "CREATE TABLE store (fingerprint TEXT NOT NULL, checksum INTEGER NOT NULL)",
    "CREATE TABLE donors (generation INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, "
    "namespace TEXT NOT NULL, embedder TEXT NOT NULL, coding TEXT NOT NULL, "
    "head_bytes INTEGER NOT NULL, group_bytes TEXT NOT NULL, pinned INTEGER NOT NULL, "
    "published INTEGER NOT NULL, created_at REAL NOT NULL, used_at REAL NOT NULL, "
    "expires_at REAL NOT NULL, record_bytes INTEGER NOT NULL, checksum INTEGER NOT NULL)",
    "CREATE TABLE arrays (generation INTEGER PRIMARY KEY, ids BLOB NOT NULL, "
    "vector BLOB NOT NULL, history BLOB NOT NULL)",
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


class _NotOurs(sqlite3.DatabaseError):
    """A database, but none that this version of semshare has written as it is now."""

    sqlite_errorcode = sqlite3.SQLITE_SCHEMA


def is_broken(error: sqlite3.Error) -> bool:
    """Whether the index has to be begun anew, rather than tried again later."""
    return (getattr(error, "sqlite_errorcode", sqlite3.SQLITE_IOERR) & 0xFF) not in _PASSING


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
        elif self._formats() != _FORMATS:
            raise _NotOurs("the file says that it is not for this version of SQLite to write")
        self._set("journal_mode = WAL")
        self._set("synchronous = FULL")
        self._set("wal_autocheckpoint = 0")  # `tidy` does it, where it knows what it may take
        if is_new:
            with self._transaction():
                for table in _TABLES:
                    self._db.execute(table)
                self._set(f"user_version = {SCHEMA_VERSION}")
                whose = (fingerprint, zlib.crc32(fingerprint.encode()))
                self._db.execute("INSERT INTO store VALUES (?, ?)", whose)
            fsync_folder(self._path.parent)
        if (version := self._number("PRAGMA user_version")) != SCHEMA_VERSION:
            raise _NotOurs(f"schema version {version}, not {SCHEMA_VERSION}")
        tables = self._db.execute("SELECT sql FROM sqlite_schema WHERE sql NOT NULL").fetchall()
        if tables != [(table,) for table in _TABLES]:
            raise _NotOurs("its tables are not those that were made")  # types would change silently
        found = self._db.execute("SELECT fingerprint, checksum FROM store").fetchone()
        if found == (fingerprint, zlib.crc32(fingerprint.encode())):
            return
        if found is None or zlib.crc32(str(found[0]).encode()) != found[1]:
            raise _NotOurs("the model's fingerprint is damaged")
        raise BlobForeign(
            f"{self._path} holds donors of the model {found[0]!r}, not {fingerprint!r}: give each "
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
            sizes = sizes_from(groups)
            if not isinstance(generation, int):
                raise _NotOurs("rows without keys")
            if isinstance(n_bytes, int) and n_bytes > 0 and isinstance(donor, str):
                donors.append(IndexedDonor(donor, generation, sizes, n_bytes, bool(pinned)))
            else:
                donors.append(IndexedDonor(str(donor), generation, (), 1, False))
        return donors

    def records(self) -> Iterator[tuple[int, DonorRecord | None]]:
        """Every donor's generation and record, which is None where it is not what was written."""
        query = (
            f"SELECT generation, {SAID}, used_at, checksum, ids, vector, history "  # noqa: S608 - constants
            "FROM donors LEFT JOIN arrays USING (generation)"
        )
        for generation, *said, used_at, checksum, ids, vector, history in self._db.execute(query):
            try:
                if checksum_of(said, (ids, vector, history)) == checksum:
                    yield generation, record_from(said, used_at, ids, vector, history)
                else:
                    yield generation, None
            except (TypeError, ValueError):  # a column of another type than was written
                yield generation, None

    def check(self) -> None:
        """Raise if SQLite finds damage. For when something was: reads the whole file."""
        if (found := self._db.execute("PRAGMA quick_check(1)").fetchone()) != ("ok",):
            raise _NotOurs(f"it is damaged: {found}")

    def add(self, record: DonorRecord, generation: int, replaced: Sequence[int]) -> None:
        """Put a donor's rows in, and take others out, in one step."""
        said, arrays = said_of(record), arrays_of(record)
        with self._transaction():
            self._delete(replaced)
            self._db.execute(
                f"INSERT INTO donors (generation, {SAID}, used_at, checksum) "  # noqa: S608 - constants
                f"VALUES ({', '.join('?' * (len(said) + 3))})",
                (generation, *said, float(record.used_at), checksum_of(said, arrays)),
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

    def _formats(self) -> bytes:
        with self._path.open("rb") as file:
            return file.read(20)[18:]

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


def _text(column: bytes) -> str:
    """A damaged text is read like any other; its row's checksum tells."""
    return column.decode("utf-8", "replace")
