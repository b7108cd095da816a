"""Answers as they come: server-sent events over aiohttp.

An event is `data: ` and one JSON value, and a blank line; `[DONE]` is the last one of a complete
answer. What goes wrong before the first event is a normal error response; afterwards it is an event
of the error's body, after which the stream ends.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True)
class Events:
    """Bodies that are sent in one piece. With the last of them the answer is complete."""

    bodies: Sequence[Body]
    are_last: bool = False


def event(data: bytes) -> bytes:
    """One server-sent event. JSON has no line breaks in it, so that one line holds `data`."""
    return b"data: " + data + b"\n\n"


class EventStream(web.StreamResponse):
    """A response of events, whose client is dropped if nothing can be written to it for so long.

    Args:
        request: that it answers.

    """

    def __init__(self, request: web.Request) -> None:
        super().__init__(headers=_HEADERS | {REQUEST_ID_HEADER: request_id(request)})
        self._asked = request
        self._loop = asyncio.get_running_loop()
        self._timeout_s = request.app[SERVICE].settings.write_timeout_s
        self._writing_since: float | None = None
        # One timer that goes on looking costs less than one for each token.
        self._timer = self._loop.call_later(self._timeout_s, self._drop_if_stuck)

    async def send(self, data: bytes, *, last: bool = False) -> None:
        """Write events; `ConnectionError` where the client has gone or was dropped."""
        self._writing_since = self._loop.time()
        if last:
            await self.write_eof(data)
        else:
            await self.write(data)
        self._writing_since = None

    def release(self) -> None:
        """To be called once nothing will be written any more."""
        self._timer.cancel()

    def _drop_if_stuck(self) -> None:
        now, transport = self._loop.time(), self._asked.transport
        since = now if self._writing_since is None else self._writing_since
        if since + self._timeout_s > now:
            self._timer = self._loop.call_at(since + self._timeout_s, self._drop_if_stuck)
        elif transport is not None:
            transport.abort()  # closing it would wait for what is left in its buffer


async def send_events(request: web.Request, answer: AsyncGenerator[Events]) -> web.StreamResponse:
    """Send the events of `answer`, and that they are complete.

    The response begins with the first of them. A client that has gone, or to which nothing could
    be written for `write_timeout_s` seconds, is dropped; `answer` is closed in any case.
    """
    async with aclosing(answer):
        first = await anext(answer)
        request[EVENT_STREAM] = response = EventStream(request)
        try:
            await response.prepare(request)
            await response.send(_written(first), last=first.are_last)
            async for events in answer:
                await response.send(_written(events), last=events.are_last)
        except ConnectionError:
            pass  # nobody is there to be told
    return response


@web.middleware
async def errors_as_events(request: web.Request, handler: Handler) -> web.StreamResponse:
    """An error response that comes after the request's stream has begun becomes its last event.

    Stands before the middleware that makes such responses.
    """
    try:
        response = await handler(request)
        stream = cast(EventStream | None, request.get(EVENT_STREAM))
        if stream is None or not isinstance(response, web.Response):
            return response
        with suppress(ConnectionError):  # nobody is there to be told
            await stream.send(event(cast(bytes, response.body)), last=True)
        return stream
    finally:
        if EVENT_STREAM in request:
            cast(EventStream, request[EVENT_STREAM]).release()


def _written(events: Events) -> bytes:
    written = [event(encode(body, MediaType.JSON)) for body in events.bodies]
    return b"".join([*written, event(_DONE)] if events.are_last else written)
