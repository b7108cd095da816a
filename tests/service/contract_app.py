"""A service without an engine that speaks the REST contract, and remembers what it was asked."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from aiohttp.test_utils import TestServer
from aiohttp.typedefs import Handler

from semshare_service.client.loop_thread import LoopThread
from semshare_service.errors import error_body
from semshare_service.exchange import respond
from semshare_service.kv_wire import CONTENT_TYPE as KV_MEDIA_TYPE
from semshare_service.wire import decode, request_media_type

RUNS = [
    {"start": 0, "end": 4, "source": "prefix", "donor": "d0", "donor_start": 0, "reason": None},
    {"start": 4, "end": 6, "source": "fresh", "donor": None, "donor_start": None, "reason": "fact"},
]
REUSE = {
    "mode": "semantic",
    "exact": True,
    "fallback": None,
    "retained": 1.0,
    "repaired_after": None,
    "compute_fraction": 0.25,
    "tokens": {"fresh": 2, "prefix": 4, "span": 0, "fuzzy": 0},
    "spans": RUNS,
}
PIECES = [
    {
        "text": "The [ferry]",
        "source": "prefix",
        "donor": "d0",
        "donor_start": 0,
        "donor_text": "The [ferry]",
        "reason": None,
    },
    {
        "text": " leaves",
        "source": "fresh",
        "donor": None,
        "donor_start": None,
        "donor_text": None,
        "reason": "fact",
    },
]
_TIMINGS = "tokenize_s lookup_s plan_s load_s prefill_s ttft_s decode_s queue_s"
EXTENSION = {
    **REUSE,
    "remembered": "no",
    "donor": None,
    "timings": dict.fromkeys(_TIMINGS.split(), 0.5),
}
USAGE = {
    "prompt_tokens": 6,
    "completion_tokens": 3,
    "total_tokens": 9,
    "prompt_tokens_details": {"cached_tokens": 4},
}
REQUEST = {
    "id": "r1",
    "route": "chat",
    "namespace": "default",
    "ended": 1_700_000_000.0,
    "prompt_tokens": 6,
    "completion_tokens": 3,
    "tokens": REUSE["tokens"],
    "compute_fraction": 0.25,
    "mode": "semantic",
    "exact": True,
    "ttft_s": 0.125,
    "queue_s": 0.5,
}
STATS = {
    "pool": {"age_s": 0.25, "donors": 3_000_000, "prefixes": 0, "running": None, "free": None},
    "donors": 7,
    "storage": {
        "tiers": [
            {"name": "disk", "used_bytes": 2_000_000, "budget_bytes": 64_000_000_000},
            {"name": "redis", "used_bytes": None, "budget_bytes": 8_000_000_000},
        ],
        "waiting": 2,
    },
}
KV = [b"\x81header", b"tensor " * 20_000, b"tensor"]


def donor_body(number: int, **fields: Any) -> dict[str, Any]:
    body = {"id": f"d{number}", "namespace": "default", "tokens": 6, "bytes": 600, "pinned": False}
    body |= {"created": 1.5, "last_used": 2.5, "expires": None, "published": False}
    return {"object": "donor", **body, **fields}


def completion_chunks() -> list[dict[str, Any]]:
    """Two continuations of a text, in turns: `one, two` and `uno`."""
    head = {"id": "cmpl-1", "object": "text_completion", "model": "fake", "usage": None}
    logprobs = {
        "tokens": ["one"],
        "token_logprobs": [-0.5],
        "top_logprobs": [{"one": -0.5}],
        "text_offset": [0],
    }
    rows = [(0, "one", logprobs, None), (1, "uno", None, "stop"), (0, ", two", None, "length")]
    chunks: list[dict[str, Any]] = [
        head
        | {"choices": [{"index": index, "text": text, "logprobs": found, "finish_reason": reason}]}
        for index, text, found, reason in rows
    ]
    chunks[-1]["semshare"] = EXTENSION
    return [*chunks, head | {"choices": [], "usage": USAGE}]


def chat_chunks() -> list[dict[str, Any]]:
    """One continuation, `Ahoy you`, after a first chunk that only names the role."""
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "model": "fake"}
    deltas = [{"role": "assistant", "content": ""}, {"content": "Ahoy"}, {"content": " you"}, {}]
    chunks: list[dict[str, Any]] = [
        head | {"choices": [{"index": 0, "delta": delta, "finish_reason": None}]}
        for delta in deltas
    ]
    chunks[-1]["choices"][0]["finish_reason"] = "stop"
    chunks[-1]["semshare"] = EXTENSION
    return [*chunks, head | {"choices": [], "usage": USAGE}]


@dataclass
class Seen:
    """One request."""

    method: str
    path: str  # with the query
    body: Any
    headers: dict[str, str]
    connection: int


@dataclass
class Contract:
    """What the service does and was asked.

    refusals: answers to the next requests in place of the routes': a status and headers, or None
              for a connection that is dropped without an answer.
    events:   in place of a stream's own; `[DONE]` is not added to these.
    hold:     while it is set to an event, a stream waits for that after its first event.
    drop:     whether a stream's connection is dropped after its first event.
    left:     set when a client has hung up in the middle of a stream.
    """

    refusals: deque[tuple[int, dict[str, str]] | None] = field(default_factory=deque)
    events: list[str] | None = None
    hold: asyncio.Event | None = None
    drop: bool = False
    left: asyncio.Event = field(default_factory=asyncio.Event)
    seen: list[Seen] = field(default_factory=list)

    def app(self) -> web.Application:
        app = web.Application(middlewares=[self._remember])
        app.add_routes(
            [
                web.post("/v1/completions", self._completion),
                web.post("/v1/chat/completions", self._chat),
                web.put("/v1/donors", self._answer(donor_body(0))),
                web.get("/v1/donors", self._donors),
                web.get("/v1/donors/{id}", self._answer(donor_body(0, text="The ferry"))),
                web.patch("/v1/donors/{id}", self._answer(donor_body(0, pinned=True))),
                web.delete("/v1/donors/{id}", self._answer({"id": "d0", "deleted": True})),
                web.post("/v1/donors/{id}/publish", self._answer(donor_body(0))),
                web.post("/v1/match", self._answer(_match())),
                web.post("/v1/inspect", self._answer(_match() | {"pieces": PIECES})),
                web.post("/v1/prefill", self._answer(_prefill())),
                web.get("/v1/kv/{handle}", self._kv),
                web.delete("/v1/kv/{handle}", self._answer({"handle": "h1", "deleted": True})),
                web.put("/v1/kv", self._answer(donor_body(0))),
                web.get("/v1/models", self._answer({"data": [_model()]})),
                web.get("/v1/stats", self._answer(STATS)),
                web.get("/v1/requests", self._answer({"data": [REQUEST]})),
                web.get("/v1/requests/{id}", self._answer(REQUEST | {"pieces": PIECES})),
                web.get("/metrics", self._metrics),
                web.get("/ready", self._answer(_ready())),
                web.get("/health", self._answer({"status": "ok", "version": "1"})),
            ]
        )
        return app

    @web.middleware
    async def _remember(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        raw = await request.read()
        is_kv = request.content_type == KV_MEDIA_TYPE
        body = decode(raw, request_media_type(request.content_type)) if raw and not is_kv else raw
        headers, connection = dict(request.headers), id(request.transport)
        self.seen.append(Seen(request.method, request.path_qs, body, headers, connection))
        if not self.refusals:
            return await handler(request)
        refusal = self.refusals.popleft()
        if refusal is None:
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        status, headers = refusal
        code = "queue_full" if status == 429 else "unavailable"
        body = error_body("come back later", type_="server_error", code=code)
        return respond(request, body, status=status, headers=headers)

    @staticmethod
    def _answer(body: dict[str, Any]) -> Handler:
        async def handler(request: web.Request) -> web.StreamResponse:
            return respond(request, body)

        return handler

    async def _donors(self, request: web.Request) -> web.StreamResponse:
        """Five donors, two a page at most."""
        after = request.query.get("after")
        first = 0 if after is None else int(after[1:]) + 1
        last = min(first + min(int(request.query.get("limit", 2)), 2), 5)
        data = [donor_body(number) for number in range(first, last)]
        return respond(request, {"object": "list", "data": data, "has_more": last < 5})

    async def _completion(self, request: web.Request) -> web.StreamResponse:
        return await self._generation(request, completion_chunks())

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        return await self._generation(request, chat_chunks())

    async def _generation(
        self, request: web.Request, chunks: list[dict[str, Any]]
    ) -> web.StreamResponse:
        if not self.seen[-1].body.get("stream"):
            choice = {"index": 0, "text": "one", "logprobs": None, "finish_reason": "stop"}
            body = {"id": "cmpl-1", "model": "fake", "choices": [choice]}
            return respond(request, body | {"usage": USAGE, "semshare": EXTENSION})
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        events = [*map(json.dumps, chunks), "[DONE]"] if self.events is None else self.events
        try:
            for event in events:
                await response.write(f"data: {event}\n\n".encode())
                if self.hold is not None:
                    await self.hold.wait()
                if self.drop:
                    assert request.transport is not None
                    request.transport.abort()
        except (ConnectionResetError, asyncio.CancelledError):
            self.left.set()
            raise
        return response

    async def _kv(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": KV_MEDIA_TYPE})
        await response.prepare(request)
        for chunk in KV:
            await response.write(chunk)
        return response

    async def _metrics(self, request: web.Request) -> web.StreamResponse:
        return web.Response(text="semshare:requests_total 7\n")


def _match() -> dict[str, Any]:
    names = ("exact", "compute_fraction", "tokens", "spans")
    return {"prompt_tokens": 6, **{name: REUSE[name] for name in names}}


def _prefill() -> dict[str, Any]:
    return {"handle": "h1", "prompt_tokens": 6, "expires": 1_700_000_060.0, "semshare": EXTENSION}


def _model() -> dict[str, Any]:
    model = {"id": "fake", "object": "model", "created": 1_700_000_000, "owned_by": "semshare"}
    return model | {"max_model_len": 1024}


def _ready() -> dict[str, Any]:
    queue = {"waiting": 2, "limit": 32, "running": True}
    status = {"status": "ready", "model": "fake", "max_context": 1024}
    return status | {"queue": queue, "reason": None}


@asynccontextmanager
async def listening(contract: Contract) -> AsyncIterator[str]:
    """The address of a service that ends with the context."""
    async with TestServer(contract.app()) as server:
        yield str(server.make_url("/")).rstrip("/")


@contextmanager
def listening_in_a_thread(contract: Contract) -> Iterator[str]:
    """`listening`, for tests that are not coroutines."""
    thread = LoopThread()
    service = listening(contract)
    try:
        yield thread.run(service.__aenter__())  # type: ignore[arg-type]
    finally:
        thread.close(service.__aexit__(None, None, None))  # type: ignore[arg-type]
