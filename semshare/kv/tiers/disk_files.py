"""Blobs as files: written so that they are whole or not there, read by position, set aside if bad.

A blob's name holds its donor's generation, which no other put ever gets, and a file is never
written again. So who has opened one reads that generation's bytes to the end, whatever happens to
the name meanwhile.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from semshare.kv.tiers.tier import Buffer, ByteRange

BLOCK_BYTES = 4096  # what a file is rounded up to, as file systems do
WRITE_BYTES = 8 << 20  # most bytes of one `write`, so that a full disk is noticed early
QUARANTINE_FILES = 64
TEMPORARY = ".tmp"

# Called before each step that a fault may break; tests kill the process there or raise from it.
FaultPoint = Callable[[str], None]


def blob_names(donor: str, generation: int, groups: int) -> tuple[str, ...]:
    """The donor's part is for who looks into the folder; `generation` alone makes it unique."""
    stem = f"{re.sub('[^A-Za-z0-9_-]', '_', donor)[:64]}.{generation:016x}"
    return tuple([f"{stem}.{group}.kv" for group in range(groups)])


def on_disk(n_bytes: int) -> int:
    """Bytes that a file of `n_bytes` takes."""
    return -(-n_bytes // BLOCK_BYTES) * BLOCK_BYTES


class BlobFolder:
    """The folders `blobs` and `quarantine` under `root`. Methods raise `OSError`.

    Not thread-safe but for `read`. Quarantine holds at most `quarantine_bytes`, and
    `QUARANTINE_FILES` files, of which the oldest go first.
    """

    def __init__(self, root: Path, quarantine_bytes: int, at: FaultPoint) -> None:
        self._blobs = root / "blobs"
        self._quarantine = root / "quarantine"
        self._at = at
        self._most_bytes = quarantine_bytes
        for folder in (self._blobs, self._quarantine):
            folder.mkdir(mode=0o700, exist_ok=True)
        fsync_folder(root)
        aside = sorted(_files(self._quarantine), key=lambda entry: entry.stat().st_mtime_ns)
        self._aside = {entry.name: on_disk(entry.stat().st_size) for entry in aside}
        self._make_room_aside(0)

    @property
    def quarantined_bytes(self) -> int:
        """What quarantine takes now."""
        return sum(list(self._aside.values()))  # a copy, as other threads add to it

    def sizes(self) -> dict[str, int]:
        """Size in bytes of every file among the blobs, from one look at the folder."""
        return {entry.name: entry.stat().st_size for entry in _files(self._blobs)}

    def write(self, names: Sequence[str], blobs: Sequence[Buffer]) -> None:
        """Make new files, safe from loss of power once this returns.

        If it raises, some of `names` are left, with or without `TEMPORARY`, for the caller to
        remove.
        """
        for name, blob in zip(names, blobs, strict=True):
            self._write(self._blobs / (name + TEMPORARY), blob)
        for name in names:
            self._at("rename")
            (self._blobs / (name + TEMPORARY)).rename(self._blobs / name)
        self._at("fsync folder")
        fsync_folder(self._blobs)

    def read(self, name: str, ranges: Iterable[ByteRange]) -> list[Buffer]:
        """Parts of a file, shorter where it ends before they do. Other threads run meanwhile."""
        fd = os.open(self._blobs / name, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return [_pread(fd, part) for part in ranges]
        finally:
            os.close(fd)

    def remove(self, names: Iterable[str]) -> None:
        """Delete files, as far as they are there."""
        for name in names:
            self._at("unlink")
            (self._blobs / name).unlink(missing_ok=True)

    def set_aside(self, names: Iterable[str]) -> None:
        """Move files to quarantine, as far as they are there and fit into it."""
        for name in names:
            self.set_file_aside(self._blobs / name, name)

    def set_file_aside(self, path: Path, name: str) -> None:
        """Move any file to quarantine, under `name`, if it is there and fits."""
        with suppress(FileNotFoundError):
            size = on_disk(path.stat().st_size)
            self._at("set aside")
            if self._make_room_aside(size):
                path.rename(self._quarantine / name)
                self._aside[name] = size
            else:
                path.unlink()

    def _make_room_aside(self, n_bytes: int) -> bool:
        while self._aside and (
            self.quarantined_bytes + n_bytes > self._most_bytes
            or len(self._aside) >= QUARANTINE_FILES
        ):
            oldest = next(iter(self._aside))
            (self._quarantine / oldest).unlink(missing_ok=True)
            del self._aside[oldest]
        return n_bytes <= self._most_bytes

    def _write(self, path: Path, blob: Buffer) -> None:
        self._at("create")
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            left = memoryview(blob).cast("B")
            while left:
                self._at("write")
                left = left[os.write(fd, left[:WRITE_BYTES]) :]
            self._at("fsync")
            os.fsync(fd)
        finally:
            os.close(fd)


def fsync_folder(folder: Path) -> None:
    """Make the names in `folder` safe from loss of power."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _files(folder: Path) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return [entry for entry in entries if not entry.is_dir(follow_symlinks=False)]


def _pread(fd: int, part: ByteRange) -> bytes:
    read = os.pread(fd, len(part), part.start)
    if len(read) == len(part):
        return read
    pieces = [read]  # one call reads 2 GiB at most; what ends before that ends with the file
    while pieces[-1] and sum(map(len, pieces)) < len(part):
        done = sum(map(len, pieces))
        pieces.append(os.pread(fd, len(part) - done, part.start + done))
    return b"".join(pieces)
