"""What a tenant may take: requests at the same time, prompts, donors."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp.test_utils import TestClient
from fake_engine import FakeEngine
from service_helpers import entered, running
from tiny import tiny_engine

from semshare_service.auth import hash_key
from semshare_service.limits import limits_of
from semshare_service.settings import ServiceSettings
from semshare_service.tenants import Tenant

PROMPTS = [
    ("POST", "/v1/completions", {"prompt": "p"}),
    ("POST", "/v1/chat/completions", {"messages": [{"role": "user", "content": "p"}]}),
    ("PUT", "/v1/donors", {"text": "p"}),
]


def tenants(**limits: Any) -> dict[str, dict[str, Any]]:
    """`a` with these limits, and `b` without any."""
    return {"a": {"keys": [hash_key("a")], **limits}, "b": {"keys": [hash_key("b")]}}


async def told(
    client: TestClient, tenant: str, method: str, path: str, body: object = None
) -> tuple[int, Any, dict[str, str]]:
    headers = {"X-API-Key": tenant}
    async with client.request(method, path, json=body, headers=headers) as response:
        return response.status, await response.json(), dict(response.headers)


@pytest.fixture
async def client(engine: FakeEngine) -> AsyncIterator[TestClient]:
    async with running(engine, concurrency=4, tenants=tenants(max_concurrency=1)) as started:
        yield started


@pytest.mark.parametrize(("method", "path", "body"), PROMPTS)
async def test_one_request_too_many_is_told_to_come_back(
    client: TestClient, engine: FakeEngine, method: str, path: str, body: object
) -> None:
    engine.hold.clear()
    first = asyncio.create_task(told(client, "a", *PROMPTS[0]))
    await entered(engine)
    status, reply, headers = await told(client, "a", method, path, body)
    assert (status, headers["Retry-After"]) == (429, "1")
    assert reply["error"]["code"] == "concurrency_exceeded"
    assert reply["error"]["type"] == "rate_limit_error"
    assert (await told(client, "a", "GET", "/v1/models"))[0] == 200  # computes nothing
    other = asyncio.create_task(told(client, "b", method, path, body))
    await entered(engine)  # another tenant has places of its own
    engine.hold.set()
    assert [(await task)[0] for task in (first, other)] == [200, 200]
    assert (await told(client, "a", method, path, body))[0] == 200


async def test_a_refused_request_frees_its_place(client: TestClient) -> None:
    for _ in range(3):
        assert (await told(client, "a", "PUT", "/v1/donors", {}))[0] == 400


@pytest.mark.parametrize(("method", "path", "body"), PROMPTS)
async def test_hanging_up_takes_no_second_place(
    client: TestClient, engine: FakeEngine, method: str, path: str, body: object
) -> None:
    engine.hold.clear()
    gone = asyncio.create_task(told(client, "a", method, path, body))
    await entered(engine)
    gone.cancel()  # closes its connection, while the engine still computes
    match = ("POST", "/v1/match", {"text": "p"})
    for _ in range(3):
        assert (await told(client, "a", *match))[0] == 429
    engine.hold.set()
    async with asyncio.timeout(60):
        while (await told(client, "a", *match))[0] == 429:
            pass


@pytest.mark.parametrize(
    ("method", "path", "body"), [*PROMPTS, ("POST", "/v1/match", {"text": "p"})]
)
async def test_prompts_longer_than_the_tenants_are_413(
    method: str, path: str, body: dict[str, Any]
) -> None:
    engine = tiny_engine(layers=1)
    (name,) = body

    def of_length(tokens: int) -> dict[str, Any]:
        text = "p" * tokens
        return {name: [{"role": "user", "content": text}] if name == "messages" else text}

    around = len(engine.encode([{"role": "user", "content": ""}])) if name == "messages" else 0
    async with running(engine, tenants=tenants(max_prompt_tokens=60)) as client:
        assert (await told(client, "a", method, path, of_length(60 - around)))[0] == 200
        status, reply, _ = await told(client, "a", method, path, of_length(61 - around))
        assert (status, reply["error"]["code"]) == (413, "prompt_over_limit")
        assert "61 tokens and may have 60" in reply["error"]["message"]
        assert (await told(client, "b", method, path, of_length(61 - around)))[0] == 200


async def test_donors_above_the_tenants_quota_are_429() -> None:
    engine = tiny_engine(layers=1)
    remember = {"prompt": "third", "max_tokens": 1, "semshare": {"remember": True}}
    async with running(engine, tenants=tenants(max_donors=2)) as client:
        for text, namespace in (("first", "x"), ("second", "y")):
            body = {"text": text, "namespace": namespace}
            assert (await told(client, "a", "PUT", "/v1/donors", body))[0] == 200
        status, reply, headers = await told(client, "a", "PUT", "/v1/donors", {"text": "third"})
        assert (status, headers["Retry-After"]) == (429, "60")
        assert reply["error"]["code"] == "quota_exceeded"
        status, reply, _ = await told(client, "a", "POST", "/v1/completions", remember)
        assert (status, reply["semshare"]["remembered"]) == (200, "no")
        status, reply, _ = await told(client, "b", "POST", "/v1/completions", remember)
        assert (status, reply["semshare"]["remembered"]) == (200, "done")


def test_limits_are_those_of_the_tenant_whose_namespace_it_is() -> None:
    settings = ServiceSettings(tenants=tenants(max_donors=3, max_donor_bytes="1KiB"))
    of = limits_of(settings)
    limits = of(Tenant("a").space("any"))
    assert (limits.prefix, limits.max_donors, limits.max_donor_bytes) == ("a/", 3, 1024)
    assert of(Tenant("b").space("a")).max_donors is None
    assert of("a").max_donors is None
