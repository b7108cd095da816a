"""A record of every HTTP request once it has ended, for access logs and counters."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler, Middleware

from semshare_service.context import tenant_of
from semshare_service.exchange import request_id, route_of
from semshare_service.observed import Answered

# What nginx logs where a client left before its response was ready; no response carries it.
CLIENT_LEFT = 499
# Those that may be told by name: a client may send any word as its method.
METHODS = hdrs.METH_ALL - {hdrs.METH_ANY}


@dataclass(slots=True)
class Ongoing:
    """The request that the present context works for; `answered` once it has its answer."""

    request_id: str
    answered: Answered | None = None


ONGOING: ContextVar[Ongoing | None] = ContextVar("ongoing_request", default=None)


@dataclass(frozen=True, slots=True)
class Finished:
    """A request that has ended. It holds no text of the client's but what names it and its trace.

    route:    the template of its path (`/v1/donors/{id}`), `unmatched` where no route has it.
    status:   of the response; 499 where the client left before there was one.
    tenant:   the name of who asked, empty without keys.
    seconds:  from its headers to the end of its response's body.
    ended:    seconds since the epoch.
    answered: what was told of its answer, if a model answered it.
    traceparent: W3C's header as the client sent it, unchecked; None where it sent none.
    """

    request_id: str
    method: str
    route: str
    status: int
    tenant: str
    seconds: float
    ended: float
    answered: Answered | None
    traceparent: str | None


def note_answer(event: Answered) -> None:
    """A `Service.listeners` entry: keep an answer for the record of the request it belongs to."""
    ongoing = ONGOING.get()
    if ongoing is not None:
        ongoing.answered = event


def finish_middleware(listeners: Sequence[Callable[[Finished], None]]) -> Middleware:
    """The outermost middleware: tells `listeners` of each request when it has ended."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        started, status = time.perf_counter(), CLIENT_LEFT
        ongoing = Ongoing(request_id(request))
        # Reset at the end: the requests of one connection follow each other in one context.
        token = ONGOING.set(ongoing)
        try:
            response = await handler(request)
            status = response.status
            return response
        finally:
            finished = Finished(
                request_id=ongoing.request_id,
                method=request.method,
                route=route_of(request),
                status=status,
                tenant=tenant_of(request).name,
                seconds=time.perf_counter() - started,
                ended=time.time(),
                answered=ongoing.answered,
                traceparent=request.headers.get("traceparent"),
            )
            for listener in listeners:
                listener(finished)
            ONGOING.reset(token)

    return middleware
