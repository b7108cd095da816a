"""The KV routes over tiny models: out of one service, into another, and what is refused."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import torch
from aiohttp import ClientPayloadError, web
from aiohttp.test_utils import TestClient
from service_helpers import running, status_where, worker_of
from tiny import CONTEXT, tiny_engine

from semshare import ReusePolicy, SemShare
from semshare.engine.kv_export import PrefilledPrompt
from semshare.kv.exchange import LayerKV
from semshare_service.kv_wire import CONTENT_TYPE, read_layers
from semshare_service.routes import kv
from semshare_service.tenants import Tenant

DOCUMENT = Path(__file__).parents[2] / "docs" / "wire.md"
TEXT = "A donor's text, long enough that its tokens are worth reusing somewhere else. " * 3
SHIFTED = f"Another instruction comes first. {TEXT} And what of it?"
OFF = {"mode": "off"}
SPAN = {"mode": "span", "recompute": 0.0}


@pytest.fixture
def engine() -> SemShare:
    return tiny_engine()


@pytest.fixture
async def client(engine: SemShare) -> AsyncIterator[TestClient]:
    async with running(engine) as started:
        yield started


async def prefilled(
    client: TestClient, text: str, policy: dict[str, Any] | None = None, **more: Any
) -> dict[str, Any]:
    body = {"text": text, "semshare": policy or OFF, **more}
    async with client.post("/v1/prefill", json=body) as response:
        assert response.status == 200, await response.text()
        return await response.json()


async def kv_of(client: TestClient, handle: str) -> bytes:
    async with client.get(f"/v1/kv/{handle}") as response:
        assert response.status == 200, await response.text()
        assert response.content_type == CONTENT_TYPE
        assert response.headers["X-Request-Id"]
        return await response.read()


async def status_of(client: TestClient, method: str, path: str, **arguments: Any) -> int:
    async with client.request(method, path, **arguments) as response:
        return response.status


async def put(
    client: TestClient, body: Any, query: str = "", content_type: str = CONTENT_TYPE
) -> tuple[int, dict[str, Any]]:
    headers = {"Content-Type": content_type}
    async with client.put(f"/v1/kv{query}", data=body, headers=headers) as response:
        return response.status, await response.json()


async def test_kv_of_one_service_becomes_a_donor_of_another(client: TestClient) -> None:
    before = time.time()
    found = await prefilled(client, TEXT)
    assert found["object"] == "prefill"
    assert found["prompt_tokens"] == len(TEXT)
    assert before + 299 < found["expires"] < time.time() + 301
    assert found["semshare"]["exact"]
    body = await kv_of(client, found["handle"])
    assert await kv_of(client, found["handle"]) == body
    other = tiny_engine()
    expected = other.generate(f"{TEXT} And then?", max_tokens=6, policy=ReusePolicy(mode="off"))
    async with running(other) as second:
        status, donor = await put(second, body, "?namespace=n&pinned=true")
        assert status == 200, donor
        assert (donor["object"], donor["namespace"]) == ("donor", "n")
        assert (donor["tokens"], donor["pinned"]) == (len(TEXT), True)
        request = {
            "prompt": f"{TEXT} And then?",
            "max_tokens": 6,
            "semshare": {"mode": "prefix", "namespace": "n"},
        }
        async with second.post("/v1/completions", json=request) as response:
            answer = await response.json()
    assert answer["choices"][0]["text"] == expected.text
    assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] == len(TEXT) // 16 * 16


async def test_kv_whose_sender_has_gone_is_read_no_further(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = await kv_of(client, (await prefilled(client, TEXT))["handle"])
    taken: list[Any] = []

    def nobody_waits(spool: Any, header: Any, header_bytes: int) -> Any:
        for layer in read_layers(spool, header, header_bytes):
            taken.append(layer)
            worker_of(client).give_up_running()
            yield layer

    monkeypatch.setattr(kv, "read_layers", nobody_waits)
    status, error = await put(client, body)
    assert (status, error["error"]["code"]) == (503, "unavailable")
    assert len(taken) == 1


@pytest.mark.parametrize(("prompt", "policy"), [(TEXT, OFF), (SHIFTED, SPAN)])
async def test_the_documented_loader_answers_as_the_engine(
    client: TestClient, engine: SemShare, prompt: str, policy: dict[str, Any]
) -> None:
    engine.remember(TEXT)
    own = engine.generate(prompt, max_tokens=8, policy=ReusePolicy.from_mapping(policy))
    assert len(own.token_ids) == 8
    found = await prefilled(client, prompt, policy)
    assert found["semshare"]["exact"] is (policy is OFF)
    body = await kv_of(client, found["handle"])
    block = DOCUMENT.read_text(encoding="utf-8").split("```python\n")[1].split("```")[0]
    names: dict[str, Any] = {"body": body, "model": engine.model.hf_model}
    with torch.inference_mode():
        exec(block, names)  # noqa: S102 - the document's own code
    assert names["tokens"].tolist() == own.token_ids


async def test_slots_come_back(client: TestClient, engine: SemShare) -> None:
    free = engine.pool.free_pages
    kept = await prefilled(client, TEXT)
    short = await prefilled(client, TEXT, ttl_s=0.01)
    await status_where(client, lambda _: engine.pool.free_pages == free - len(TEXT) // 16 - 1)
    assert await status_of(client, "GET", f"/v1/kv/{short['handle']}") == 404
    async with client.delete(f"/v1/kv/{kept['handle']}") as response:
        assert await response.json() == {
            "object": "prefill",
            "handle": kept["handle"],
            "deleted": True,
        }
    await status_where(client, lambda _: engine.pool.free_pages == free)
    for method in ("GET", "DELETE"):
        assert await status_of(client, method, f"/v1/kv/{kept['handle']}") == 404


async def test_nothing_is_held_after_the_end(engine: SemShare) -> None:
    free = engine.pool.free_pages
    async with running(engine) as client:
        await prefilled(client, TEXT)
        assert engine.pool.free_pages < free
    assert engine.pool.free_pages == free


async def test_a_refused_prefill_leaves_no_handle(engine: SemShare) -> None:
    async with running(engine, max_handles=1) as client:
        for body in (
            {"text": "x" * CONTEXT},
            {"text": TEXT, "semshare": {"retention": 0.5}},
            {"text": TEXT, "ttl_s": 0},
            {"text": TEXT, "stream": True},
        ):
            assert await status_of(client, "POST", "/v1/prefill", json=body) == 400
        await prefilled(client, TEXT)
        async with client.post("/v1/prefill", json={"text": TEXT}) as response:
            assert response.status == 429
            assert 1 <= int(response.headers["Retry-After"]) <= 300
            assert (await response.json())["error"]["code"] == "too_many_handles"


async def test_tenants_are_apart(
    client: TestClient, engine: SemShare, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tenant_of(request: web.Request) -> Tenant:
        return Tenant(request.headers["Tenant"])

    monkeypatch.setattr(kv, "tenant_of", tenant_of)
    engine.remember(TEXT, namespace="a/default")
    client.session.headers["Tenant"] = "b"
    found = await prefilled(client, SHIFTED, SPAN)
    assert found["semshare"]["tokens"]["span"] == 0
    client.session.headers["Tenant"] = "a"
    found = await prefilled(client, SHIFTED, SPAN)
    assert found["semshare"]["tokens"]["span"] > len(TEXT) // 2
    exact = await prefilled(client, SHIFTED)
    body = await kv_of(client, exact["handle"])
    client.session.headers["Tenant"] = "b"
    for method in ("GET", "DELETE"):
        assert await status_of(client, method, f"/v1/kv/{found['handle']}") == 404
    status, donor = await put(client, body)
    assert (status, donor["namespace"]) == (200, "default")
    assert [one.namespace for one in engine.donors(namespace="b/default")] == ["b/default"]
    assert len(engine.donors(namespace="a/default")) == 1


async def test_a_stream_that_fails_does_not_look_whole(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = await prefilled(client, TEXT)
    original = PrefilledPrompt.layer

    def failing(self: PrefilledPrompt, index: int) -> LayerKV:
        if index == 2:
            raise RuntimeError
        return original(self, index)

    monkeypatch.setattr(PrefilledPrompt, "layer", failing)
    async with client.get(f"/v1/kv/{found['handle']}") as response:
        assert response.status == 200
        with pytest.raises(ClientPayloadError):
            await response.read()


# ---- what PUT refuses


async def refused(client: TestClient, engine: SemShare, body: Any) -> tuple[int, str]:
    """Status and code, once it is sure that nothing has stayed behind."""
    free = engine.pool.free_pages
    status, reply = await put(client, body)
    assert engine.pool.free_pages == free
    assert engine.donors() == []
    return status, reply["error"]["code"]


async def test_bodies_that_are_refused(client: TestClient, engine: SemShare) -> None:
    found = await prefilled(client, TEXT)
    body = await kv_of(client, found["handle"])
    flipped = bytearray(body)
    flipped[-1] ^= 1
    for malformed in (b"", body[:100], body[:-1], body + b"x", bytes(flipped)):
        assert await refused(client, engine, malformed) == (400, "invalid_request")
    assert await refused(client, engine, body + bytes(4096)) == (413, "body_too_large")
    assert (await put(client, body, content_type="application/octet-stream"))[0] == 415
    for query in ("?pinned=1", "?namespace=a/b", "?more=1"):
        assert (await put(client, body, query))[0] == 400


async def test_approximate_kv_is_refused(client: TestClient, engine: SemShare) -> None:
    donor = engine.remember(TEXT)
    found = await prefilled(client, SHIFTED, SPAN)
    body = await kv_of(client, found["handle"])
    engine.forget(donor.id)
    assert await refused(client, engine, body) == (422, "kv_mismatch")


async def test_another_models_kv_is_refused(client: TestClient) -> None:
    body = await kv_of(client, (await prefilled(client, TEXT))["handle"])
    other = tiny_engine(seed=1)
    async with running(other) as second:
        assert await refused(second, other, body) == (422, "kv_mismatch")


async def test_wrong_kv_is_refused(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    original = PrefilledPrompt.layer
    monkeypatch.setattr(
        PrefilledPrompt, "layer", lambda self, index: original(self, 3 if index == 2 else index)
    )
    body = await kv_of(client, (await prefilled(client, TEXT))["handle"])
    other = tiny_engine()
    async with running(other) as second:
        assert await refused(second, other, body) == (422, "kv_mismatch")


async def test_the_limit_on_bodies(client: TestClient, engine: SemShare) -> None:
    body = await kv_of(client, (await prefilled(client, TEXT))["handle"])
    async with running(tiny_engine(), max_kv_body_bytes=len(body) - 1) as second:
        status, reply = await put(second, body)
        assert status == 413
        assert "max_kv_body_bytes" in reply["error"]["message"]
    async with running(tiny_engine(), max_kv_body_bytes=len(body)) as second:
        assert (await put(second, body))[0] == 200
