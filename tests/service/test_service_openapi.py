"""`/openapi.json` says what the service does: all its routes, and the answers that it gives."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp.test_utils import TestClient
from described import DOCUMENT, validator
from fake_engine import FakeEngine
from service_helpers import entered, running
from whole_engine import WholeEngine

from semshare.config import ReusePolicy
from semshare.errors import ModelNotAvailable, UnsupportedModel
from semshare.types import FreshReason, TokenSource
from semshare_service.app import create_app
from semshare_service.auth import OPEN_PATHS, hash_key
from semshare_service.description import answers
from semshare_service.description.operations import OPERATIONS
from semshare_service.errors import KINDS
from semshare_service.kv_wire import CONTENT_TYPE
from semshare_service.settings import ServiceSettings

BODIES = {
    route: operation.body for route, operation in OPERATIONS.items() if operation.body is not None
}


@pytest.fixture
def engine() -> WholeEngine:
    return WholeEngine()


@pytest.fixture
async def client(engine: WholeEngine) -> AsyncIterator[TestClient]:
    async with running(engine) as started:
        yield started


async def test_it_is_served_as_it_is_made(client: TestClient) -> None:
    async with client.get("/openapi.json") as response:
        assert response.status == 200
        assert response.content_type == "application/json"
        assert await response.json() == json.loads(json.dumps(DOCUMENT))


def test_every_route_is_described_and_nothing_else() -> None:
    app = create_app(FakeEngine(), ServiceSettings())
    routes = {
        (route.method, route.resource.canonical)
        for route in app.router.routes()
        if route.resource is not None and route.method != "HEAD"  # which is GET without a body
    }
    described = {
        (method.upper(), path) for path, item in DOCUMENT["paths"].items() for method in item
    }
    assert described == routes == set(OPERATIONS)


def test_operations_have_names_of_their_own_and_texts() -> None:
    operations = [one for item in DOCUMENT["paths"].values() for one in item.values()]
    assert len({one["operationId"] for one in operations}) == len(operations)
    assert all(one["summary"] and "\n" not in one["summary"] for one in operations)


def test_every_code_of_an_error_is_some_operations() -> None:
    raised = {error for (_, path), row in OPERATIONS.items() for error in row.all_errors(path)}
    # Raised where the model is loaded, which requests are told as `ServiceUnavailable`.
    never_told = {ModelNotAvailable, UnsupportedModel}
    assert raised == {kind.exception for kind in KINDS} - never_told


def test_a_key_is_asked_for_where_the_service_asks() -> None:
    for path, item in DOCUMENT["paths"].items():
        for operation in item.values():
            assert (operation.get("security") == []) == (path in OPEN_PATHS)
            assert ("401" in operation["responses"]) == (path not in OPEN_PATHS)


def test_every_field_of_a_policy_has_its_text() -> None:
    described = DOCUMENT["components"]["schemas"]["ReuseRequest"]["properties"]
    assert set(described) == {"namespace", *ReusePolicy.__dataclass_fields__}
    assert described["recompute"]["default"] == ReusePolicy().recompute
    assert described["sink_tokens"]["description"] == (
        "first tokens of the prompt that are exact or fresh, never approximate."
    )


def test_every_field_has_its_text() -> None:
    for name, schema in DOCUMENT["components"]["schemas"].items():
        for field, described in schema["properties"].items():
            assert described.get("description"), f"{field} of {name}"
    for path, item in DOCUMENT["paths"].items():
        for operation in item.values():
            for parameter in operation.get("parameters", ()):
                assert parameter["description"], f"{parameter['name']} of {path}"


def test_names_of_sources_and_reasons_are_the_engines() -> None:
    assert set(answers.Source.__args__) == {source.name.lower() for source in TokenSource}
    assert set(answers.FreshReasonName.__args__) == {
        reason.name.lower() for reason in FreshReason if reason is not FreshReason.REUSED
    }


@pytest.mark.parametrize("route", BODIES, ids=" ".join)
def test_examples_validate(route: tuple[str, str]) -> None:
    example = OPERATIONS[route].example
    validator(BODIES[route].__name__).validate(example)
    BODIES[route].parse(example)


CHAT = [{"role": "user", "content": "hello"}]


@pytest.mark.parametrize(
    ("name", "body", "valid"),
    [
        ("CompletionRequest", {"prompt": "hello"}, True),
        ("CompletionRequest", {"prompt": [1, 2]}, True),
        ("CompletionRequest", {"prompt": ["hello"]}, True),
        ("CompletionRequest", {"prompt": [[1, 2]]}, True),
        ("CompletionRequest", {"prompt": ["one", "two"]}, False),
        ("CompletionRequest", {"prompt": [-1]}, False),
        ("CompletionRequest", {"prompt": "hello", "stop": "x", "best_of": 1, "user": "u"}, True),
        ("CompletionRequest", {"prompt": "hello", "stop": [""]}, False),
        ("CompletionRequest", {"prompt": "hello", "best_of": 2}, False),
        ("CompletionRequest", {"prompt": "hello", "logit_bias": {"7": -100}}, True),
        ("CompletionRequest", {"prompt": "hello", "logit_bias": {"7": -101}}, False),
        ("CompletionRequest", {"prompt": "hello", "semshare": {"mode": "span"}}, True),
        ("CompletionRequest", {"prompt": "hello", "semshare": {"made": "span"}}, False),
        ("ChatRequest", {"messages": CHAT, "response_format": {"type": "text"}}, True),
        ("ChatRequest", {"messages": CHAT, "tools": [{}]}, False),
        ("ChatRequest", {"messages": []}, False),
        ("ChatRequest", {"messages": [{**CHAT[0], "refusal": None, "tool_calls": []}]}, True),
        ("ChatRequest", {"messages": [{**CHAT[0], "tool_calls": [{}]}]}, False),
        ("ChatRequest", {"messages": [{**CHAT[0], "more": None}]}, False),
        ("MatchRequest", {"text": "hello", "ids": None}, True),
        ("MatchRequest", {"text": "hello", "ids": [1]}, False),
        ("MatchRequest", {}, False),
        ("DonorChanges", {"ttl_s": None}, True),
        ("DonorChanges", {}, False),
    ],
)
async def test_the_service_takes_what_is_described_and_refuses_what_is_not(
    client: TestClient, name: str, body: dict[str, Any], valid: bool
) -> None:
    assert validator(name).is_valid(body) == valid
    async with client.put("/v1/donors", json={"text": "hello"}) as response:
        path = f"/v1/donors/{(await response.json())['id']}"
    method, path = {
        "CompletionRequest": ("POST", "/v1/completions"),
        "ChatRequest": ("POST", "/v1/chat/completions"),
        "MatchRequest": ("POST", "/v1/match"),
        "DonorChanges": ("PATCH", path),
    }[name]
    async with client.request(method, path, json=body) as response:
        assert response.status == (200 if valid else 400), await response.text()


async def told(
    client: TestClient, method: str, path: str, template: str, body: Any = None
) -> dict[str, Any]:
    """An answer of a route, which is as the route's row says."""
    answer = OPERATIONS[method, template].answer
    assert answer is not None
    async with client.request(method, path, json=body) as response:
        assert response.status == 200, await response.text()
        reply: dict[str, Any] = await response.json()
    validator(answer.__name__).validate(reply)
    return reply


async def test_answers_are_as_described(client: TestClient) -> None:
    text, span = {"text": "twelve chars"}, {"semshare": {"mode": "span", "remember": True}}
    donor = (await told(client, "PUT", "/v1/donors", "/v1/donors", text))["id"]
    of_one = "/v1/donors/{id}"
    await told(client, "GET", "/v1/donors", "/v1/donors")
    await told(client, "GET", f"/v1/donors/{donor}", of_one)
    await told(client, "PATCH", f"/v1/donors/{donor}", of_one, {"ttl_s": 5.0})
    await told(client, "POST", f"/v1/donors/{donor}/publish", f"{of_one}/publish")
    for logprobs in ({}, {"logprobs": 2}):
        body = {"prompt": "twelve chars", "n": 2, **span, **logprobs}
        await told(client, "POST", "/v1/completions", "/v1/completions", body)
    for logprobs in ({}, {"logprobs": True, "top_logprobs": 2}):
        body = {"messages": CHAT, "n": 2, **span, **logprobs}
        await told(client, "POST", "/v1/chat/completions", "/v1/chat/completions", body)
    for path in ("/v1/match", "/v1/inspect"):
        await told(client, "POST", path, path, text | span)
    for path in ("/health", "/ready", "/v1/models", "/v1/stats"):
        await told(client, "GET", path, path)
    await told(client, "GET", "/v1/models/fake", "/v1/models/{id}")
    recent = (await told(client, "GET", "/v1/requests", "/v1/requests"))["data"]
    assert len(recent) == 4
    await told(client, "GET", f"/v1/requests/{recent[0]['id']}", "/v1/requests/{id}")
    handle = (await told(client, "POST", "/v1/prefill", "/v1/prefill", text))["handle"]
    await told(client, "DELETE", f"/v1/kv/{handle}", "/v1/kv/{handle}")
    await told(client, "DELETE", f"/v1/donors/{donor}", of_one)


async def test_kv_is_of_the_type_that_is_described(client: TestClient) -> None:
    async with client.post("/v1/prefill", json={"ids": [1, 2]}) as response:
        handle = (await response.json())["handle"]
    async with client.get(f"/v1/kv/{handle}") as response:
        described = DOCUMENT["paths"]["/v1/kv/{handle}"]["get"]["responses"]["200"]["content"]
        assert [response.content_type] == list(described) == [CONTENT_TYPE]


@pytest.mark.parametrize(
    ("path", "prompt", "chunk"),
    [
        ("/v1/completions", {"prompt": "hello", "logprobs": 1}, "CompletionChunk"),
        ("/v1/chat/completions", {"messages": CHAT, "logprobs": True}, "ChatChunk"),
    ],
)
async def test_chunks_are_as_described(
    client: TestClient, path: str, prompt: dict[str, Any], chunk: str
) -> None:
    described = validator(chunk)
    body = {**prompt, "n": 2, "stream": True, "stream_options": {"include_usage": True}}
    async with client.post(path, json=body) as response:
        assert response.status == 200
        *events, done, _ = (await response.text()).split("\n\n")
    assert done == "data: [DONE]"
    assert len(events) > 2
    for event in events:
        described.validate(json.loads(event.removeprefix("data: ")))


EXCEEDED = "concurrency_exceeded"
PLACES = {"{id}": "known", "{handle}": "known", "{name}": "app.js"}


async def code_of(client: TestClient, route: tuple[str, str], **headers: str) -> str | None:
    """The code of the error with which a route answers a good request, if it does."""
    row, (method, path) = OPERATIONS[route], route
    for name, place in PLACES.items():
        path = path.replace(name, place)
    sent = {"data": b"KV", "headers": {"Content-Type": row.raw_body}} if row.raw_body else {}
    if row.body is not None:
        sent = {"json": row.example}
    sent["headers"] = sent.get("headers", {}) | headers
    async with client.request(method, path, **sent) as response:
        if response.status < 400:
            return None
        return str((await response.json())["error"]["code"])


async def test_who_waits_for_the_engine_may_be_one_too_many(engine: WholeEngine) -> None:
    tenants = {"acme": {"keys": [hash_key("key")], "operator": True, "max_concurrency": 1}}
    key = {"X-API-Key": "key"}
    async with running(engine, concurrency=2, tenants=tenants) as client:
        asked = {"prompt": "p"}
        headers = key | {"X-Request-Id": PLACES["{id}"]}
        async with client.post("/v1/completions", json=asked, headers=headers) as response:
            assert response.status == 200  # so that there is a request to be inspected
        await entered(engine)
        engine.hold.clear()
        first = asyncio.create_task(code_of(client, ("POST", "/v1/match"), **key))
        await entered(engine)
        refused = {route for route in OPERATIONS if await code_of(client, route, **key) == EXCEEDED}
        engine.hold.set()
        await first
    assert refused == {route for route, row in OPERATIONS.items() if row.engine}


async def test_everything_but_the_open_paths_needs_a_key(engine: WholeEngine) -> None:
    async with running(engine, tenants={"acme": {"keys": [hash_key("key")]}}) as client:
        codes = {route: await code_of(client, route) for route in OPERATIONS}
    assert {path for (_, path), code in codes.items() if code != "invalid_api_key"} == OPEN_PATHS


async def test_without_keys_everything_is_refused_under_another_host(client: TestClient) -> None:
    codes = {await code_of(client, route, Host="elsewhere.example") for route in OPERATIONS}
    assert codes == {"permission_denied"}


def test_the_prose_has_every_route_and_every_code() -> None:
    text = (Path(__file__).parents[2] / "docs" / "service.md").read_text("utf-8")
    rows = re.findall(r"^\| (`[A-Z]+ /.*?) \|", text, re.MULTILINE)
    routes = re.findall(r"`([A-Z]+) (/[^`?]*)", "".join(rows))
    assert sorted(routes) == sorted(OPERATIONS)
    told = {
        (int(status), code)
        for statuses, codes in re.findall(r"^\| ([45][\d, ]+) \| ([^|]*) \|", text, re.MULTILINE)
        for status in statuses.split(", ")
        for code in re.findall(r"`(\w+)`", codes)
    }
    raised = {error for (_, path), row in OPERATIONS.items() for error in row.all_errors(path)}
    assert {(kind.status, kind.code) for kind in KINDS if kind.exception in raised} <= told
    known = {kind.code for kind in KINDS if kind.exception in raised} | {"method_not_allowed"}
    assert {code for _, code in told} == known
