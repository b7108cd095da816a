"""One process at a time works on a folder, and whoever comes second learns who it is.

The lock is `flock`'s: the kernel takes it back when its holder ends, however that happens, so a
dead holder's lock is free at once and no file has to be believed or cleaned up. What the file says
is for the message only. A process forked without `exec` shares the lock of the one it came from.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from semshare.errors import StoreLocked

_MOST_BYTES = 4096  # read of what a holder says of itself


class StoreLock:
    """Holds a folder from construction until `release`. The lock file stays; it is 100 bytes.

    Raises:
        StoreLocked: another holds it; the message names its process, host and start.
        OSError: the lock file can't be made, or the file system has no `flock`.

    """

    def __init__(self, path: Path) -> None:
        while True:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                self._lock(fd, path)
                if _is_at(fd, path):
                    break
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)  # the folder went and came back between opening and locking
        self._fd: int | None = fd
        with suppress(OSError):  # a full disk can still be read; the holder has no name then
            os.ftruncate(fd, 0)
            os.pwrite(fd, _myself(), 0)

    def release(self) -> None:
        """Let the next one have it. Safe to call twice."""
        if self._fd is not None:
            fcntl.flock(self._fd, fcntl.LOCK_UN)  # forked processes have it open, too
            os.close(self._fd)
            self._fd = None

    @staticmethod
    def _lock(fd: int, path: Path) -> None:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StoreLocked(
                f"{path.parent} is in use by {_holder(fd)}; a store is one process's: stop that "
                "one, or give this one another folder"
            ) from None


def _is_at(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), path.stat())
    except FileNotFoundError:
        return False


def _myself() -> bytes:
    started = datetime.now(UTC).isoformat(timespec="seconds")
    return json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": started}).encode()


def _holder(fd: int) -> str:
    try:
        said = json.loads(os.pread(fd, _MOST_BYTES, 0))
        return f"process {said['pid']} on {said['host']} since {said['since']}"
    except (OSError, ValueError, LookupError, TypeError):
        return "a process that has not said which it is"
