"""Answers as they come: server-sent events over aiohttp.

An event is `data: ` and one JSON value, and a blank line; `[DONE]` is the last one of a complete
answer. What goes wrong before the first event is a normal error response; afterwards it is an event
of the error's body, after which the stream ends.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from typing import cast

from aiohttp import web
from aiohttp.typedefs import Handler

from semshare_service.context import SERVICE
from semshare_service.exchange import EVENT_STREAM, REQUEST_ID_HEADER, request_id
from semshare_service.replies import Body
from semshare_service.wire import MediaType, encode

_DONE = b"[DONE]"
_HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",  # proxies would hold events back until they have many
}


def event(data: bytes) -> bytes:
    """One server-sent event. JSON has no line breaks in it, so that one line holds `data`."""
    return b"data: " + data + b"\n\n"


async def send_events(request: web.Request, bodies: AsyncGenerator[Body]) -> web.StreamResponse:
    """Send each of `bodies`, of which there is at least one, and that they are complete.

    The response begins with the first of them. A client that has gone, or to which nothing could
    be written for `write_timeout_s` seconds, is dropped; `bodies` is closed in any case.
    """
    async with aclosing(bodies):
        first = await anext(bodies)
        response = web.StreamResponse(headers=_HEADERS | {REQUEST_ID_HEADER: request_id(request)})
        request[EVENT_STREAM] = response
        try:
            await response.prepare(request)
            await _write(request, _encoded(first))
            async for body in bodies:
                await _write(request, _encoded(body))
            await _write(request, _DONE, last=True)
        except ConnectionError:
            pass  # nobody is there to be told
    return response


@web.middleware
async def errors_as_events(request: web.Request, handler: Handler) -> web.StreamResponse:
    """An error response that comes after the request's stream has begun becomes its last event.

    Stands before the middleware that makes such responses.
    """
    response = await handler(request)
    stream: web.StreamResponse | None = request.get(EVENT_STREAM)
    if stream is None or not isinstance(response, web.Response):
        return response
    with suppress(ConnectionError):  # nobody is there to be told
        await _write(request, cast(bytes, response.body), last=True)
    return stream


async def _write(request: web.Request, data: bytes, *, last: bool = False) -> None:
    """Add an event to the request's stream; `ConnectionError` where the client has gone."""
    stream = request[EVENT_STREAM]
    waiting = asyncio.timeout(request.app[SERVICE].settings.write_timeout_s)
    try:
        async with waiting:
            await stream.write(event(data))
            if last:
                await stream.write_eof()
    except TimeoutError:
        if request.transport is not None:
            request.transport.abort()  # closing it would wait for what is left in its buffer
        raise ConnectionAbortedError from None


def _encoded(body: Body) -> bytes:
    return encode(body, MediaType.JSON)
