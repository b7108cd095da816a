"""Streamed answers: their events, and what happens to those who leave, dawdle or come too late."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
from aiohttp import ClientPayloadError, ClientResponse
from aiohttp.test_utils import TestClient
from fake_engine import FakeEngine
from service_helpers import entered, running, status_where, worker_of

from semshare.errors import PoolExhausted
from semshare.types import TextDelta
from semshare_service.context import SERVICE
from semshare_service.observed import Answered

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
HELLO = [{"role": "user", "content": "hello"}]
MEBIBYTE = 1 << 20


def events_of(text: str) -> list[Any]:
    """The events' values; `[DONE]` as the string it is."""
    assert text.endswith("\n\n")
    lines = text.removesuffix("\n\n").split("\n\n")
    assert all(line.startswith("data: ") for line in lines)
    values = [line.removeprefix("data: ") for line in lines]
    return [value if value == "[DONE]" else json.loads(value) for value in values]


async def streamed(client: TestClient, path: str, body: dict[str, Any]) -> list[Any]:
    async with client.post(path, json={**body, "stream": True}) as response:
        assert response.status == 200
        assert response.content_type == "text/event-stream"
        return events_of(await response.text())


async def test_events_of_a_completion(client: TestClient) -> None:
    told: list[Answered] = []
    assert client.app is not None
    client.app[SERVICE].listeners.append(told.append)
    *chunks, done = await streamed(client, COMPLETIONS, {"prompt": "twelve chars"})
    assert done == "[DONE]"
    assert [chunk["choices"][0]["text"] for chunk in chunks] == [
        *("one", " two", " three", " four"),
        "",
    ]
    reasons = [chunk["choices"][0]["finish_reason"] for chunk in chunks]
    assert reasons == [None, None, None, None, "stop"]
    assert {chunk["object"] for chunk in chunks} == {"text_completion"}
    assert len({(chunk["id"], chunk["created"], chunk["model"]) for chunk in chunks}) == 1
    assert [("semshare" in chunk, "usage" in chunk) for chunk in chunks] == [
        *[(False, False)] * 4,
        (True, False),
    ]
    assert chunks[-1]["semshare"]["tokens"] == {"fresh": 6, "prefix": 4, "span": 2, "fuzzy": 0}
    (event,) = told
    assert (event.route, event.prompt, event.answer.text) == (
        "completions",
        "twelve chars",
        "one two three four",
    )


async def test_events_of_several_chats_with_usage(client: TestClient) -> None:
    body = {"messages": HELLO, "n": 2, "stream_options": {"include_usage": True}}
    *chunks, usage, done = await streamed(client, CHAT, body)
    assert done == "[DONE]"
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    choices = [chunk["choices"][0] for chunk in chunks]
    for index, text in enumerate(("one two three four", " two three four")):
        mine = [choice for choice in choices if choice["index"] == index]
        assert "".join(choice["delta"]["content"] for choice in mine) == text
        assert ["role" in choice["delta"] for choice in mine] == [True, *[False] * (len(mine) - 1)]
        assert [choice["finish_reason"] for choice in mine] == [None] * (len(mine) - 1) + ["stop"]
    assert [choice["index"] for choice in choices[:4]] == [0, 1, 0, 1]
    assert ["semshare" in chunk for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert {chunk["usage"] for chunk in chunks} == {None}
    assert (usage["choices"], usage["usage"]) == (
        [],
        {
            "prompt_tokens": 5,
            "completion_tokens": 7,
            "total_tokens": 12,
            "prompt_tokens_details": {"cached_tokens": 4},
        },
    )


async def test_log_probabilities_come_with_their_tokens(client: TestClient) -> None:
    *chunks, _ = await streamed(client, COMPLETIONS, {"prompt": "x", "logprobs": 1})
    logprobs = [chunk["choices"][0]["logprobs"] for chunk in chunks]
    assert [found["tokens"] for found in logprobs[:-1]] == [
        ["one"],
        [" two"],
        [" three"],
        [" four"],
    ]
    assert [found["text_offset"] for found in logprobs[:-1]] == [[0], [3], [7], [13]]
    assert logprobs[-1] is None


async def test_a_client_that_accepts_events_only(client: TestClient) -> None:
    headers = {"Accept": "text/event-stream", "X-Request-Id": "mine"}
    body = {"prompt": "x", "stream": True}
    async with client.post(COMPLETIONS, json=body, headers=headers) as response:
        assert response.headers["X-Request-Id"] == "mine"
        assert events_of(await response.text())[-1] == "[DONE]"


async def test_an_error_before_the_first_piece_is_a_response(
    client: TestClient, engine: FakeEngine
) -> None:
    engine.error = PoolExhausted(3, 2, 1)
    async with client.post(COMPLETIONS, json={"prompt": "x", "stream": True}) as response:
        assert response.status == 503
        assert (await response.json())["error"]["code"] == "pool_exhausted"


class Breaking(FakeEngine):
    """Fails after its first piece."""

    def stream(self, *_: Any, **__: Any) -> Iterator[TextDelta]:
        yield TextDelta("one", [0])
        raise RuntimeError("my secret prompt")


async def test_an_error_after_the_first_piece_is_the_last_event(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with running(Breaking()) as client:
        first, error = await streamed(client, COMPLETIONS, {"prompt": "x"})
    assert first["choices"][0]["text"] == "one"
    assert error["error"]["code"] == "internal_error"
    assert "secret" not in caplog.text


async def begun(client: TestClient, **body: Any) -> ClientResponse:
    """A stream whose first event has come."""
    response = await client.post(COMPLETIONS, json={"prompt": "x", "stream": True, **body})
    assert (await response.content.readuntil(b"\n\n")).startswith(b"data: ")
    return response


async def test_a_stream_that_takes_too_long(engine: FakeEngine) -> None:
    engine.hold_rest.clear()
    async with running(engine, request_timeout_s=0.5) as client:
        response = await begun(client)
        (error,) = events_of(await response.text())
        assert error["error"]["code"] == "timeout"
        await status_where(client, lambda status: not status.running)
    assert engine.given_up == 1


async def test_a_client_that_leaves_ends_its_stream(client: TestClient, engine: FakeEngine) -> None:
    engine.hold_rest.clear()
    response = await begun(client)
    response.close()
    await status_where(client, lambda status: not status.running)
    assert engine.given_up == 1


async def test_a_client_that_leaves_before_its_turn(client: TestClient, engine: FakeEngine) -> None:
    engine.hold_rest.clear()
    running_one = await begun(client)
    body = {"prompt": "b", "stream": True}
    gone = asyncio.create_task(client.post(COMPLETIONS, json=body))
    await status_where(client, lambda status: status.waiting == 1)
    gone.cancel()
    await status_where(client, lambda status: status.waiting == 0)
    engine.hold_rest.set()
    assert events_of(await running_one.text())[-1] == "[DONE]"
    assert [call["prompt"] for _, call in engine.calls] == ["x"]


class Flood(FakeEngine):
    """Gives 32 MiB of text at once, more than the sockets between it and a client hold.

    The rest of its answer comes once nothing is held any more.
    """

    def stream(self, prompt: Any, **options: Any) -> Iterator[TextDelta]:
        for _ in range(32):
            yield TextDelta("x" * MEBIBYTE, [0])
        self.entered.release()
        yield from super().stream(prompt, **options)


async def test_a_slow_reader_does_not_hold_up_the_thread() -> None:
    engine = Flood()
    async with running(engine) as client:
        response = await client.post(COMPLETIONS, json={"prompt": "x", "stream": True})
        await entered(engine)  # all has been given, and nothing has been read
        await status_where(client, lambda status: not status.running)
        assert events_of(await response.text())[-1] == "[DONE]"


async def test_a_reader_that_is_stuck_is_dropped(caplog: pytest.LogCaptureFixture) -> None:
    engine = Flood()
    engine.hold_rest.clear()
    with caplog.at_level(logging.INFO):
        async with running(engine, write_timeout_s=0.2) as client:
            response = await client.post(COMPLETIONS, json={"prompt": "x", "stream": True})
            await entered(engine)
            await status_where(client, lambda status: not status.running)
            assert engine.given_up == 1
            with pytest.raises((ClientPayloadError, ConnectionError)):
                await response.text()
    assert "failed" not in caplog.text


async def test_running_streams_end_after_the_stop_or_are_told(engine: FakeEngine) -> None:
    engine.hold_rest.clear()
    async with running(engine, concurrency=2) as client:
        response = await begun(client)
        worker = worker_of(client)
        worker.drain()
        assert worker.status().running  # it may end …
        worker.give_up_running()  # … until its time is over
        (error,) = events_of(await response.text())
    assert error["error"]["code"] == "unavailable"
    assert "stopped before the answer was complete" in error["error"]["message"]


async def test_embeddings_are_refused_in_words(client: TestClient) -> None:
    async with client.post("/v1/embeddings", json={"input": "x"}) as response:
        error = (await response.json())["error"]
    assert (response.status, error["code"]) == (404, "not_offered")
    assert "embedding model" in error["message"]


async def test_a_model_by_its_name(client: TestClient) -> None:
    async with client.get("/v1/models/fake") as response:
        assert (await response.json())["id"] == "fake"
    async with client.get("/v1/models/some/other") as response:
        assert response.status == 404
        assert (await response.json())["error"]["code"] == "model_not_found"
