"""A connection of a load test's client, which does as little as it can.

Clients share the processor with the service they measure. A client library would spend a third of
what the service spends on an answer, part of it between the answer's beginning and its end.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import cast
from urllib.parse import urlsplit

_END_OF_HEAD = b"\r\n\r\n"
_END_OF_CHUNKS = b"\r\n0\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Response:
    """Of a request. `headers` have names in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes


class Connection(asyncio.Protocol):
    """One request after the other over HTTP/1.1, to a service whose bodies are JSON or events.

    No line of either ends in CR LF, so that the end of a chunked body shows without reading it.

    Args:
        url: of the service.

    """

    def __init__(self, url: str) -> None:
        self._address = urlsplit(url)
        self._transport: asyncio.Transport | None = None
        self._received = bytearray()
        self._length: int | None = None  # of head and body, where the head says it
        self._has_head = False
        self._whole: asyncio.Future[None] | None = None

    async def post(self, path: str, body: bytes) -> Response:
        """Connect where there is no connection yet, send JSON and wait for the whole response.

        Raises:
            OSError: the service could not be reached, or hung up before its response was whole.

        """
        transport = self._transport or await self._connected()
        self._received.clear()
        self._length, self._has_head = None, False
        self._whole = asyncio.get_running_loop().create_future()
        head = (
            f"POST {path} HTTP/1.1\r\nHost: {self._address.netloc}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        transport.write(head.encode("ascii") + body)
        await self._whole
        return _response(bytes(self._received))

    async def _connected(self) -> asyncio.Transport:
        host, port = self._address.hostname, self._address.port
        assert host is not None  # noqa: S101 - it is the address of a service of ours
        assert port is not None  # noqa: S101
        transport, _ = await asyncio.get_running_loop().create_connection(lambda: self, host, port)
        return transport

    def close(self) -> None:
        """End it."""
        if self._transport is not None:
            self._transport.abort()
            self._transport = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """As asyncio calls it."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """As asyncio calls it."""
        self._received += data
        if not self._has_head:
            self._read_head()
        if self._whole is not None and not self._whole.done() and self._is_whole():
            self._whole.set_result(None)

    def _read_head(self) -> None:
        head, end, _ = self._received.partition(_END_OF_HEAD)
        self._has_head = bool(end)
        length = _headers(head).get("content-length")
        if self._has_head and length is not None:
            self._length = len(head) + len(end) + int(length)

    def _is_whole(self) -> bool:
        if self._length is None:
            return self._received.endswith(_END_OF_CHUNKS)
        return len(self._received) >= self._length

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's name
        """As asyncio calls it."""
        self._transport = None
        if self._whole is not None and not self._whole.done():
            self._whole.set_exception(
                ConnectionResetError("the service closed the connection before its answer ended")
            )


def _response(received: bytes) -> Response:
    head, _, body = received.partition(_END_OF_HEAD)
    headers = _headers(head)
    if "content-length" not in headers:
        body = b"".join(_chunks(body))
    return Response(int(head.split(b" ", 2)[1]), headers, body)


def _headers(head: bytes | bytearray) -> dict[str, str]:
    lines = head.decode("latin-1").split("\r\n")[1:]
    return {
        name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)
    }


def _chunks(body: bytes) -> list[bytes]:
    chunks: list[bytes] = []
    at = 0
    while True:
        start = body.index(b"\r\n", at) + 2
        length = int(body[at : start - 2], 16)
        if not length:
            return chunks
        chunks.append(body[start : start + length])
        at = start + length + 2
