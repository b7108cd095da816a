"""Every route in JSON and msgpack, and every way a request can fail."""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
import threading
from typing import Any

import pytest
from aiohttp import ClientResponse
from aiohttp.test_utils import TestClient, TestServer
from fake_engine import MAX_CONTEXT, WORDS, FakeEngine
from service_helpers import entered, running, status_where, worker_of

from semshare.config import ReusePolicy
from semshare.errors import ModelNotAvailable, PoolExhausted
from semshare_service.app import create_app
from semshare_service.engine import Engine
from semshare_service.settings import ServiceSettings
from semshare_service.wire import MediaType, decode, encode

FORMS = list(MediaType)
PROMPT = "twelve chars"
HELLO = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "you"}]


async def exchange(
    client: TestClient,
    method: str,
    path: str,
    body: object = None,
    form: MediaType = MediaType.JSON,
) -> tuple[ClientResponse, Any]:
    headers = {"Accept": form.value}
    data = None
    if body is not None:
        headers["Content-Type"] = form.value
        data = encode(body, form)
    async with client.request(method, path, data=data, headers=headers) as response:
        assert response.content_type == form.value
        return response, decode(await response.read(), form)


async def refused(
    client: TestClient, method: str, path: str, body: object = None
) -> tuple[int, dict[str, Any]]:
    response, value = await exchange(client, method, path, body)
    assert list(value) == ["error"]
    assert set(value["error"]) == {"message", "type", "param", "code"}
    return response.status, value["error"]


# ---- what each route answers


@pytest.mark.parametrize("form", FORMS)
async def test_completions(client: TestClient, engine: FakeEngine, form: MediaType) -> None:
    body = {
        "model": "fake",
        "prompt": PROMPT,
        "max_tokens": 2,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 3,
        "min_p": 0.25,
        "logit_bias": {"7": -100},
        "seed": 4,
        "stop": "x",
        "deadline_s": 9,
        "semshare": {"mode": "span", "namespace": "n"},
    }
    response, value = await exchange(client, "POST", "/v1/completions", body, form)
    assert response.status == 200
    assert value["id"].startswith("cmpl-")
    assert (value["object"], value["model"]) == ("text_completion", "fake")
    assert value["choices"] == [
        {"index": 0, "text": "one two", "logprobs": None, "finish_reason": "length"}
    ]
    assert value["usage"] == {
        "prompt_tokens": 12,
        "completion_tokens": 2,
        "total_tokens": 14,
        "prompt_tokens_details": {"cached_tokens": 4},  # the prefix, not the span
    }
    extension = value["semshare"]
    assert (extension["mode"], extension["exact"], extension["fallback"]) == ("span", False, None)
    assert extension["tokens"] == {"fresh": 6, "prefix": 4, "span": 2, "fuzzy": 0}
    assert extension["compute_fraction"] == 0.25
    assert extension["retained"] == 1.0
    assert [(run["start"], run["end"], run["source"]) for run in extension["spans"]] == [
        (0, 4, "prefix"),
        (4, 6, "fresh"),
        (6, 8, "span"),
        (8, 12, "fresh"),
    ]
    assert (extension["spans"][2]["donor"], extension["spans"][2]["donor_start"]) == ("d0", 20)
    assert extension["timings"]["ttft_s"] == 1.5
    assert extension["timings"]["queue_s"] >= 0
    assert (extension["remembered"], extension["donor"]) == ("no", None)
    assert engine.calls == [
        (
            "stream",
            {
                "prompt": PROMPT,
                "max_tokens": 2,
                "policy": ReusePolicy(mode="span"),
                "namespace": "n",
                "temperature": 0.5,
                "top_p": 0.9,
                "top_k": 3,
                "min_p": 0.25,
                "logit_bias": {7: -100.0},
                "logprobs": None,
                "seed": 4,
                "stop": ("x",),
                "n": 1,
                "deadline_s": 9.0,
            },
        )
    ]


@pytest.mark.parametrize("form", FORMS)
async def test_chat_completions(client: TestClient, engine: FakeEngine, form: MediaType) -> None:
    body = {"model": "fake", "messages": HELLO}
    response, value = await exchange(client, "POST", "/v1/chat/completions", body, form)
    assert response.status == 200
    assert value["id"].startswith("chatcmpl-")
    assert value["object"] == "chat.completion"
    choice = value["choices"][0]
    assert choice["message"] == {"role": "assistant", "content": "".join(WORDS), "refusal": None}
    assert choice["finish_reason"] == "stop"
    arguments = engine.calls[0][1]
    assert arguments["prompt"] == HELLO
    assert (arguments["max_tokens"], arguments["policy"]) == (256, None)
    # What was answered can be sent back.
    history = [*HELLO, choice["message"], {"role": "user", "content": "go on"}]
    response, _ = await exchange(client, "POST", "/v1/chat/completions", {"messages": history})
    assert response.status == 200


@pytest.mark.parametrize("form", FORMS)
async def test_several_completions_with_logprobs(client: TestClient, form: MediaType) -> None:
    body = {"prompt": PROMPT, "max_tokens": 2, "n": 2, "logprobs": 1}
    _, value = await exchange(client, "POST", "/v1/completions", body, form)
    first, second = value["choices"]
    assert (first["index"], first["text"]) == (0, "one two")
    assert first["logprobs"] == {
        "tokens": ["one", " two"],
        "token_logprobs": [-1.25, -1.25],
        "top_logprobs": [{" two": -0.5, "one": -1.25}, {" three": -0.5, " two": -1.25}],
        "text_offset": [0, 3],
    }
    assert (second["index"], second["text"]) == (1, " two three")
    assert second["logprobs"]["tokens"] == [" two", " three"]
    assert value["usage"]["completion_tokens"] == 4  # of both
    assert value["usage"]["total_tokens"] == 16


@pytest.mark.parametrize("form", FORMS)
async def test_several_chats_with_logprobs(
    client: TestClient, engine: FakeEngine, form: MediaType
) -> None:
    body = {"messages": HELLO, "max_tokens": 1, "n": 2, "logprobs": True, "top_logprobs": 1}
    _, value = await exchange(client, "POST", "/v1/chat/completions", body, form)
    assert [choice["message"]["content"] for choice in value["choices"]] == ["one", " two"]
    assert value["choices"][0]["logprobs"] == {
        "content": [
            {
                "token": "one",
                "logprob": -1.25,
                "bytes": [111, 110, 101],
                "top_logprobs": [{"token": " two", "logprob": -0.5, "bytes": [32, 116, 119, 111]}],
            }
        ],
        "refusal": None,
    }
    assert engine.threads == {"semshare-model"}


async def test_an_answer_cut_short_by_its_deadline_is_of_its_length(client: TestClient) -> None:
    body = {"prompt": PROMPT, "deadline_s": 0.5}
    _, value = await exchange(client, "POST", "/v1/completions", body)
    assert value["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize("form", FORMS)
async def test_donors(client: TestClient, form: MediaType) -> None:
    body = {"text": "some text", "namespace": "a", "pinned": True}
    response, donor = await exchange(client, "PUT", "/v1/donors", body, form)
    assert response.status == 200
    assert donor == {
        "object": "donor",
        "id": "d0",
        "namespace": "a",
        "tokens": 9,
        "bytes": 900,
        "pinned": True,
        "created": 0.0,
        "last_used": 0.0,
        "expires": None,
        "published": False,
    }
    _, other = await exchange(client, "PUT", "/v1/donors", {"ids": [1, 2]}, form)
    assert (other["namespace"], other["tokens"]) == ("default", 2)
    _, listed = await exchange(client, "GET", "/v1/donors?namespace=a", form=form)
    assert listed == {"object": "list", "data": [donor], "has_more": False}
    _, gone = await exchange(client, "DELETE", "/v1/donors/d0?namespace=a", form=form)
    assert gone == {"id": "d0", "object": "donor", "deleted": True}
    _, listed = await exchange(client, "GET", "/v1/donors?namespace=a", form=form)
    assert listed["data"] == []
    # Another namespace's donor is not to be found.
    status, error = await refused(client, "DELETE", "/v1/donors/d1?namespace=a")
    assert (status, error["code"], error["type"]) == (404, "not_found", "not_found_error")


@pytest.mark.parametrize("form", FORMS)
async def test_match(client: TestClient, engine: FakeEngine, form: MediaType) -> None:
    body = {"text": PROMPT, "semshare": {"mode": "semantic", "namespace": "n"}}
    response, value = await exchange(client, "POST", "/v1/match", body, form)
    assert response.status == 200
    assert value["prompt_tokens"] == 12
    assert value["compute_fraction"] == 0.5
    assert value["exact"] is False
    assert value["tokens"] == {"fresh": 6, "prefix": 4, "span": 2, "fuzzy": 0}
    reasons = [run["reason"] for run in value["spans"]]
    assert reasons == [None, "unmatched", None, "unmatched", "edge"]
    assert [name for name, _ in engine.calls] == ["plan"]
    assert engine.calls[0][1]["namespace"] == "n"


@pytest.mark.parametrize("form", FORMS)
async def test_health_ready_and_models(client: TestClient, form: MediaType) -> None:
    response, value = await exchange(client, "GET", "/health", form=form)
    assert (response.status, value["status"]) == (200, "ok")
    response, value = await exchange(client, "GET", "/ready", form=form)
    assert response.status == 200
    assert value == {
        "status": "ready",
        "model": "fake",
        "max_context": MAX_CONTEXT,
        "queue": {"waiting": 0, "limit": 32, "running": False},
        "reason": None,
    }
    response, value = await exchange(client, "GET", "/v1/models", form=form)
    assert value["object"] == "list"
    assert (value["data"][0]["id"], value["data"][0]["object"]) == ("fake", "model")


async def test_the_response_may_have_another_form_than_the_request(client: TestClient) -> None:
    headers = {"Content-Type": "application/json", "Accept": "application/x-msgpack"}
    async with client.post("/v1/completions", json={"prompt": "x"}, headers=headers) as response:
        assert response.content_type == "application/msgpack"
        assert decode(await response.read(), MediaType.MSGPACK)["choices"]


async def test_without_an_accept_header_the_form_is_the_requests(client: TestClient) -> None:
    body = encode({"prompt": "x"}, MediaType.MSGPACK)
    headers = {"Content-Type": "application/vnd.msgpack"}
    async with client.post("/v1/completions", data=body, headers=headers) as response:
        assert response.content_type == "application/msgpack"


# ---- what is refused


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/completions", {"prompt": "x", "stream": 1}, "stream"),
        ("/v1/completions", {"prompt": "x", "n": 65}, "n"),
        ("/v1/completions", {"prompt": "x", "logprobs": 6}, "logprobs"),
        ("/v1/completions", {"prompt": "x", "speed": 1}, "speed"),
        ("/v1/completions", {}, "prompt"),
        ("/v1/completions", {"prompt": "x", "semshare": {"mode": "fast"}}, "semshare"),
        ("/v1/chat/completions", {"messages": HELLO, "tools": [{}]}, "tools"),
        ("/v1/chat/completions", {"messages": "hello"}, "messages"),
        ("/v1/match", {"text": "x", "semshare": {"speed": 1}}, "semshare"),
        ("/v1/match", {"text": "x", "prompt": "x"}, "prompt"),
        ("/v1/match", {}, None),
        ("/v1/match", [], None),
    ],
)
async def test_bad_requests_name_their_field(
    client: TestClient, engine: FakeEngine, path: str, body: object, param: str | None
) -> None:
    status, error = await refused(client, "POST", path, body)
    assert (status, error["param"], error["type"]) == (400, param, "invalid_request_error")
    assert engine.calls == []


async def test_a_bad_query_is_refused(client: TestClient) -> None:
    for query in ("namespace=a%20b", "nmespace=a"):
        status, _ = await refused(client, "GET", f"/v1/donors?{query}")
        assert status == 400


async def test_another_model_is_refused(client: TestClient) -> None:
    body = {"model": "gpt-4", "prompt": "x"}
    status, error = await refused(client, "POST", "/v1/completions", body)
    assert (status, error["code"], error["param"]) == (404, "model_not_found", "model")


async def test_the_model_may_be_named_as_in_the_settings(engine: FakeEngine) -> None:
    async with running(engine, model="/path/to/fake") as client:
        body = {"model": "/path/to/fake", "prompt": "x"}
        _, value = await exchange(client, "POST", "/v1/completions", body)
        assert value["model"] == "fake"


async def test_a_prompt_too_long(client: TestClient) -> None:
    status, error = await refused(client, "POST", "/v1/completions", {"prompt": "x" * 2000})
    assert (status, error["code"]) == (400, "context_length_exceeded")
    assert "2000" in error["message"]
    assert str(MAX_CONTEXT) in error["message"]


async def test_an_exhausted_pool(client: TestClient, engine: FakeEngine) -> None:
    engine.error = PoolExhausted(3, 2, 10)
    status, error = await refused(client, "PUT", "/v1/donors", {"text": "x"})
    assert (status, error["code"], error["type"]) == (503, "pool_exhausted", "server_error")


async def test_an_unexpected_error_shows_no_internals(
    client: TestClient, engine: FakeEngine, caplog: pytest.LogCaptureFixture
) -> None:
    engine.error = RuntimeError("tensor of secret prompt")
    with caplog.at_level(logging.DEBUG):
        status, error = await refused(client, "POST", "/v1/completions", {"prompt": PROMPT})
    assert (status, error["code"]) == (500, "internal_error")
    assert "secret" not in str(error) + caplog.text
    assert "RuntimeError at" in caplog.text
    assert PROMPT not in caplog.text


@pytest.mark.parametrize(
    ("headers", "body", "status", "code"),
    [
        ({"Content-Type": "application/json"}, b"{", 400, "invalid_request"),
        ({"Content-Type": "application/msgpack"}, b"\xc1", 400, "invalid_request"),
        ({"Content-Type": "text/plain"}, b"{}", 415, "unsupported_media_type"),
        ({}, b"{}", 415, "unsupported_media_type"),
        (
            {"Content-Type": "application/json", "Accept": "text/html"},
            b"{}",
            406,
            "not_acceptable",
        ),
    ],
)
async def test_bad_bodies_and_headers(
    client: TestClient, headers: dict[str, str], body: bytes, status: int, code: str
) -> None:
    async with client.post("/v1/match", data=body, headers=headers) as response:
        form = MediaType(response.content_type)
        assert response.status == status
        assert decode(await response.read(), form)["error"]["code"] == code
    # Errors come in the form of the request, where it has one.
    wanted = "msgpack" if "msgpack" in headers.get("Content-Type", "") else "json"
    assert form.name.lower() == wanted


@pytest.mark.parametrize("announced", [True, False])
async def test_a_body_too_large(engine: FakeEngine, announced: bool) -> None:
    async with running(engine, max_body_bytes=2048) as client:
        body = json.dumps({"text": "x" * 4096}).encode()

        async def chunks() -> Any:
            yield body

        headers = {"Content-Type": "application/json"}
        data = body if announced else chunks()
        async with client.post("/v1/match", data=data, headers=headers) as response:
            assert response.status == 413
            error = (await response.json())["error"]
        assert error["code"] == "body_too_large"
        assert "max_body_bytes" in error["message"]


async def test_a_compressed_body_counts_as_what_it_unpacks_to(engine: FakeEngine) -> None:
    async with running(engine, max_body_bytes=2048) as client:
        body = gzip.compress(json.dumps({"text": "x" * 1_000_000}).encode())
        assert len(body) < 2048
        headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
        async with client.post("/v1/match", data=body, headers=headers) as response:
            assert response.status == 413


async def test_a_body_that_is_not_compressed_as_it_says(client: TestClient) -> None:
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    async with client.post("/v1/match", data=b'{"text": "x"}', headers=headers) as response:
        assert response.status == 400
        error = (await response.json())["error"]
    assert error["code"] == "invalid_request"
    assert "Content-Encoding" in error["message"]


async def test_unknown_paths_and_methods(client: TestClient) -> None:
    status, error = await refused(client, "GET", "/v1/nothing")
    assert (status, error["code"]) == (404, "not_found")
    response, value = await exchange(client, "PATCH", "/v1/donors")
    assert (response.status, value["error"]["code"]) == (405, "method_not_allowed")
    assert response.headers["Allow"] == "GET, HEAD, PUT"


# ---- while the model is busy, slow, loading or gone


async def test_the_event_loop_answers_while_the_worker_is_busy(
    client: TestClient, engine: FakeEngine
) -> None:
    engine.hold.clear()
    held = asyncio.create_task(exchange(client, "POST", "/v1/completions", {"prompt": "x"}))
    await entered(engine)
    response, _ = await exchange(client, "GET", "/health")
    assert response.status == 200
    _, value = await exchange(client, "GET", "/ready")
    assert value["queue"]["running"] is True
    await exchange(client, "GET", "/v1/models")
    assert not held.done()
    engine.hold.set()
    response, _ = await held
    assert response.status == 200
    assert engine.threads == {"semshare-model"}


async def test_a_full_queue_answers_429(engine: FakeEngine) -> None:
    async with running(engine, queue_limit=1) as client:
        engine.hold.clear()
        body = {"prompt": "x"}
        first = asyncio.create_task(exchange(client, "POST", "/v1/completions", body))
        await entered(engine)
        second = asyncio.create_task(exchange(client, "POST", "/v1/completions", body))
        await status_where(client, lambda status: status.waiting == 1)
        response, value = await exchange(client, "POST", "/v1/completions", body)
        assert response.status == 429
        assert value["error"]["code"] == "queue_full"
        for path in ("/v1/completions", "/v1/chat/completions"):  # whatever the body says
            async with client.post(path, data=b"{") as refused_unread:
                assert refused_unread.status == 429
        assert int(response.headers["Retry-After"]) >= 1
        response, _ = await exchange(client, "GET", "/v1/donors")
        assert response.status == 429
        engine.hold.set()
        for task in (first, second):
            response, _ = await task
            assert response.status == 200


async def test_a_disconnect_takes_the_waiting_request_along(
    client: TestClient, engine: FakeEngine
) -> None:
    engine.hold.clear()
    first = asyncio.create_task(exchange(client, "POST", "/v1/completions", {"prompt": "a"}))
    await entered(engine)
    gone = asyncio.create_task(exchange(client, "POST", "/v1/completions", {"prompt": "b"}))
    await status_where(client, lambda status: status.waiting == 1)
    gone.cancel()  # closes its connection
    await status_where(client, lambda status: status.waiting == 0)
    engine.hold.set()
    await first
    await exchange(client, "POST", "/v1/completions", {"prompt": "c"})
    assert [call["prompt"] for _, call in engine.calls] == ["a", "c"]


async def test_a_disconnect_ends_a_prompt_that_is_only_computed(
    client: TestClient, engine: FakeEngine
) -> None:
    engine.hold.clear()
    gone = asyncio.create_task(exchange(client, "PUT", "/v1/donors", {"text": "a"}))
    await entered(engine)
    (job,) = worker_of(client)._running
    gone.cancel()
    await status_where(client, lambda _: job.abandoned)
    engine.hold.set()
    await status_where(client, lambda status: not status.running)
    assert (engine.given_up, engine.kept) == (1, {})


async def test_a_disconnect_ends_the_running_answer(client: TestClient, engine: FakeEngine) -> None:
    engine.hold.clear()
    gone = asyncio.create_task(exchange(client, "POST", "/v1/completions", {"prompt": "a"}))
    await entered(engine)
    (job,) = worker_of(client)._running
    gone.cancel()
    await status_where(client, lambda _: job.abandoned)
    engine.hold.set()
    await status_where(client, lambda _: engine.given_up == 1)


async def test_a_request_that_takes_too_long(engine: FakeEngine) -> None:
    async with running(engine, request_timeout_s=0.05) as client:
        engine.hold.clear()
        status, error = await refused(client, "POST", "/v1/completions", {"prompt": "x"})
        assert (status, error["code"]) == (504, "timeout")
        assert "request_timeout_s" in error["message"]
        # One that waits behind it leaves the queue as well.
        status, _ = await refused(client, "POST", "/v1/completions", {"prompt": "y"})
        assert status == 504
        assert worker_of(client).status().waiting == 0


async def test_a_timeout_of_the_engines_own_is_unexpected(
    client: TestClient, engine: FakeEngine
) -> None:
    engine.error = TimeoutError()
    status, error = await refused(client, "POST", "/v1/completions", {"prompt": "x"})
    assert (status, error["code"]) == (500, "internal_error")


async def test_while_the_model_loads_and_after_it_failed() -> None:
    gate = threading.Event()

    def load() -> Engine:
        assert gate.wait(60)
        raise ModelNotAvailable("no weights: install them")

    app = create_app(load, ServiceSettings(shutdown_timeout_s=10))
    async with TestClient(TestServer(app)) as client:
        response, _ = await exchange(client, "GET", "/health")
        assert response.status == 200
        response, value = await exchange(client, "GET", "/ready")
        assert (response.status, value["status"], value["model"]) == (503, "loading", None)
        for method, path, body in (
            ("POST", "/v1/completions", {"prompt": "x"}),
            ("GET", "/v1/models", None),
        ):
            response, value = await exchange(client, method, path, body)
            assert (response.status, value["error"]["code"]) == (503, "unavailable")
            assert response.headers["Retry-After"] == "1"
        gate.set()
        await status_where(client, lambda status: status.state == "failed")
        response, value = await exchange(client, "GET", "/ready")
        assert (response.status, value["reason"]) == (503, "no weights: install them")
