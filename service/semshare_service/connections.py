"""Bounds how many connections are open, so that idle ones lock nobody out."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import TypeAlias, cast

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.typedefs import Handler

from semshare_service.errors import error_body
from semshare_service.wire import MediaType, encode

# In place of aiohttp's own, which writes what it could not read into the log.
server_logger = logging.getLogger("semshare_service.http")

ProtocolFactory: TypeAlias = Callable[[], asyncio.BaseProtocol]


class Connections:
    """At a limit, a new connection takes the place of the oldest that has no request in progress.

    A client that opens connections and sends nothing, or its head byte by byte, thus only crowds
    out connections of its kind. Where all have a request in progress, the new one gets a 503.
    Connections that come in the same moment are not yet counted, so that there may be more than
    the limit by as many as the system queues for `accept`.

    Args:
        limit: connections that may be open.

    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._busy: set[web.RequestHandler] = set()

    @web.middleware
    async def middleware(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Knows a connection as busy while a request of its is in progress."""
        connection = request.protocol
        self._busy.add(connection)
        try:
            return await handler(request)
        finally:
            self._busy.discard(connection)

    def bound(self, server: web.Server) -> ProtocolFactory:
        """What `loop.create_server` calls for each connection, in place of `server`."""

        def protocol() -> asyncio.BaseProtocol:
            return cast(asyncio.BaseProtocol, server()) if self._make_room(server) else _Refusal()

        return protocol

    def _make_room(self, server: web.Server) -> bool:
        """Whether there is room for one more, if need be after closing idle ones."""
        # In the order in which they were opened; those that are closing have no transport.
        still_open = [one for one in server.connections if one.transport is not None]
        over = len(still_open) - self._limit + 1
        if over <= 0:
            return True
        idle = [one for one in still_open if one not in self._busy][:over]
        for connection in idle:
            connection.force_close()
        return len(idle) == over


class _Refusal(asyncio.Protocol):
    """Says why and hangs up, whatever is sent."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        body = encode(
            error_body(
                "as many connections as may be open (max_connections) have a request in progress: "
                "try again in 1 s",
                type_="server_error",
                code="unavailable",
            ),
            MediaType.JSON,
        )
        head = (
            "HTTP/1.1 503 Service Unavailable\r\n"
            "Content-Type: application/json; charset=utf-8\r\n"
            f"Content-Length: {len(body)}\r\n"
            "Retry-After: 1\r\n"
            "Connection: close\r\n\r\n"
        )
        writing = cast(asyncio.WriteTransport, transport)
        writing.write(head.encode("ascii") + body)
        writing.close()


class _WithoutContents(logging.Filter):
    """A head that can't be read may hold a key: the log says that there was one, and no more."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if isinstance(record.exc_info, tuple) else None
        if isinstance(error, HttpProcessingError):
            record.msg, record.exc_info = f"{record.msg}: {type(error).__name__}", None
            record.levelno, record.levelname = logging.WARNING, "WARNING"
        return True


server_logger.addFilter(_WithoutContents())
