"""Waiting for servers no longer than the call may that waits."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.connection import UnixDomainSocketConnection
from redis.retry import Retry

from semshare.kv.tiers.redis_url import Address

Client = Any  # redis.Redis; its commands are typed for two clients at once

# Several of a reader's 4 MiB values pass through this buffer of a connection in one call each.
_READ_BYTES = 1 << 20


class _Limits(threading.local):
    """Of the call that this thread is in."""

    deadline: float | None = None  # by `time.monotonic`
    step_s: float | None = None  # of one wait; the connection's own if None


_limits = _Limits()


@contextmanager
def within(seconds: float, *, step_s: float | None = None) -> Iterator[None]:
    """Everything this thread waits for in servers takes `seconds` at most, outer bounds included.

    `step_s` is the longest single wait, instead of the connection's own.
    """
    before = _limits.deadline, _limits.step_s
    until = time.monotonic() + seconds
    _limits.deadline = until if before[0] is None else min(before[0], until)
    _limits.step_s = step_s
    try:
        yield
    finally:
        _limits.deadline, _limits.step_s = before


def seconds_left(most: float) -> float:
    """What is left of the call's time, at most `most`; `TimeoutError` where nothing is."""
    if _limits.deadline is None:
        return most
    left = _limits.deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("the call's time is over")
    return min(most, left)


class _BoundedSocket:
    """A socket that waits no longer than its call may, however slowly bytes trickle in."""

    def __init__(self, sock: socket.socket, timeout_s: float) -> None:
        self._sock = sock
        self._timeout_s = timeout_s

    def _bound(self) -> None:
        self._sock.settimeout(seconds_left(_limits.step_s or self._timeout_s))

    def recv_into(self, *arguments: Any) -> int:
        self._bound()
        return self._sock.recv_into(*arguments)

    def recv(self, *arguments: Any) -> bytes:
        self._bound()
        return self._sock.recv(*arguments)

    def sendall(self, data: Any) -> None:
        self._bound()  # Python counts this time over all of the data
        self._sock.sendall(data)

    def settimeout(self, timeout_s: float | None) -> None:
        """Ignored: each wait has its own."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)


class _BoundedConnect:
    """Mixed into a connection class of `redis`."""

    socket_connect_timeout: float
    socket_timeout: float
    bounded_connect_s: float

    def _connect(self) -> Any:
        self.socket_connect_timeout = seconds_left(self.bounded_connect_s)
        return _BoundedSocket(super()._connect(), self.socket_timeout)  # type: ignore[misc]


def bounded_client(
    address: Address, options: Mapping[str, Any], *, connect_s: float, command_s: float
) -> Client:
    """A client of one node. It never tries again by itself, and waits within `within` only.

    Args:
        address: of the node.
        options: of its connections, from `redis_url.parse`.
        connect_s, command_s: most seconds for a connection, and for one wait of a command.

    """
    chosen = dict(options)
    kind = chosen.pop("connection_class", redis.Connection)
    if kind is UnixDomainSocketConnection:
        chosen["path"] = address[0]
    else:
        chosen |= {"host": address[0], "port": address[1], "socket_keepalive": True}
        chosen["socket_connect_timeout"] = connect_s
    bounded = type("Bounded", (_BoundedConnect, kind), {"bounded_connect_s": connect_s})
    chosen |= {
        "connection_class": bounded,
        "protocol": 2,  # nothing of RESP3 is used, and it has pushes to read
        "retry": Retry(NoBackoff(), 0),
        "socket_timeout": command_s,
        "socket_read_size": _READ_BYTES,
    }
    return redis.Redis(connection_pool=redis.ConnectionPool(**chosen))
