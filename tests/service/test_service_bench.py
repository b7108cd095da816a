"""The load test's own parts: its clients, its stub, and a server process that looks for leaks."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from semshare.types import TokenSource
from semshare_service.bench import run
from semshare_service.bench.clients import Tally, probing_health, run_clients
from semshare_service.bench.server import slots_held
from semshare_service.bench.stub import StubEngine
from semshare_service.settings import ServiceSettings

BODY = {"messages": [{"role": "user", "content": "x"}], "stream": True}
PIECE = {"choices": [{"index": 0, "delta": {"content": "a"}, "finish_reason": None}]}
LAST = {"choices": [{"index": 0, "delta": {}, "finish_reason": "length"}]}
USAGE = {"choices": [], "usage": {"prompt_tokens": 1}}
ERROR = {"error": {"message": "it broke", "type": "server_error", "param": None, "code": "x"}}
DONE = "[DONE]"

Handler = Callable[[web.Request], Any]


def streaming(*events: object) -> Handler:
    """Answers with these events."""

    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for event in events:
            data = event if isinstance(event, str) else json.dumps(event)
            await response.write(f"data: {data}\n\n".encode())
        return response

    return handler


@asynccontextmanager
async def answering(*handlers: Handler) -> AsyncIterator[str]:
    """A service whose first answers are these; the last of them is then repeated."""
    left = list(handlers)

    async def chat(request: web.Request) -> web.StreamResponse:
        handler = left.pop(0) if len(left) > 1 else left[0]
        response: web.StreamResponse = await handler(request)
        return response

    app = web.Application()
    app.add_routes([web.post("/v1/chat/completions", chat), web.get("/health", healthy)])
    async with TestServer(app) as server:
        yield str(server.make_url("")).rstrip("/")


async def healthy(_: web.Request) -> web.Response:
    return web.json_response({"status": "ok"})


async def asked_once(*handlers: Handler) -> Tally:
    """One client that asks until `handlers` have all been asked, as far as time allows."""
    async with answering(*handlers) as url:
        return await run_clients(url, [BODY], clients=1, seconds=0.05)


async def test_a_stream_up_to_its_end_is_an_answer() -> None:
    tally = await asked_once(streaming(PIECE, LAST, USAGE, DONE))
    assert tally.requests == len(tally.durations) >= 1
    assert not tally.errors


@pytest.mark.parametrize(
    ("events", "message"),
    [
        ((PIECE, LAST), "the stream ended without [DONE]"),
        ((PIECE, DONE), "the stream ended without a finish_reason"),
        ((PIECE, ERROR), "it broke"),
        ((), "the stream ended without [DONE]"),
    ],
)
async def test_a_stream_that_breaks_off_is_an_error(events: Any, message: str) -> None:
    tally = await asked_once(streaming(*events))
    assert not tally.durations
    assert set(tally.errors) == {message}


async def test_a_refusal_for_want_of_room_is_no_error_and_its_wait_is_kept() -> None:
    async def full(_: web.Request) -> web.Response:
        return web.json_response(ERROR, status=429, headers={"Retry-After": "3600"})

    tally = await asked_once(full)  # an hour, or until the load ends
    assert (tally.rejected, tally.requests) == (1, 1)
    assert not tally.errors


async def test_other_refusals_are_errors() -> None:
    async def wrong(_: web.Request) -> web.Response:
        return web.json_response(ERROR, status=400)

    tally = await asked_once(wrong)
    assert tally.errors.total() == tally.requests
    assert next(iter(tally.errors)).startswith("HTTP 400: ")


async def test_each_client_has_one_request_at_a_time() -> None:
    now, most = 0, 0
    answer = streaming(PIECE, LAST, DONE)

    async def counting(request: web.Request) -> web.StreamResponse:
        nonlocal now, most
        now += 1
        most = max(most, now)
        try:
            response: web.StreamResponse = await answer(request)
            return response
        finally:
            now -= 1

    async with answering(counting) as url:
        await run_clients(url, [BODY], clients=3, seconds=0.2)
    assert 1 <= most <= 3


async def test_health_is_measured_at_least_once() -> None:
    async with answering(streaming(DONE)) as url, probing_health(url) as latencies:
        await run_clients(url, [BODY], clients=1, seconds=0.05)
    assert latencies
    assert max(latencies) < 30


# ------------------------------------------------------------------- the stub


def test_the_stub_answers_as_an_engine_does() -> None:
    engine = StubEngine(0.0)
    *pieces, last = engine.stream("x" * 1024, max_tokens=3)
    assert [piece.text for piece in pieces] == [" word"] * 3
    assert last.answer is not None
    assert last.answer.text == "".join(piece.text for piece in pieces)
    assert last.answer.prompt_tokens == 256
    assert last.answer.provenance.counts == {"fresh": 64, "prefix": 0, "span": 0, "fuzzy": 192}
    assert last.answer.provenance.compute_fraction == 0.25
    assert (last.answer.provenance.source[192:] == TokenSource.FRESH).all()


def test_the_stub_knows_which_answers_are_open() -> None:
    engine = StubEngine(0.0)
    answers = [engine.stream("x", max_tokens=3) for _ in range(2)]
    for answer in answers:
        next(answer)
    assert slots_held(engine) == 2
    answers[0].close()
    list(answers[1])
    assert slots_held(engine) == 0


async def test_the_server_process_says_where_it_is_and_what_leaked() -> None:
    settings = ServiceSettings(port=0, log_level="error")
    async with run._serving(settings, token_s=0.0) as server:
        async with probing_health(server.url) as latencies:
            pass
        server.slots_leaked = -1
    assert latencies
    assert server.slots_leaked == 0


def test_requests_ask_about_rewritten_passages() -> None:
    bodies = run.request_bodies("test")
    assert len(bodies) == 18  # six passages, three questions
    assert all(body["stream"] and body["max_tokens"] == run.ANSWER_TOKENS for body in bodies)
    assert len({body["messages"][0]["content"] for body in bodies}) == 18
