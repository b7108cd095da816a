"""A case for every route of the service: a tenant finds its own, and nothing of another's."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from aiohttp.test_utils import TestClient
from prompts import answerable, reworded, words

from semshare import SemShare
from semshare_service.auth import hash_key
from semshare_service.kv_wire import CONTENT_TYPE

PAPER = words(12, 4) + words(200, 1)
MOVED = answerable(words(20, 2) + PAPER)
SPAN = {"mode": "span", "recompute": 0.0}
# By index: a prompt that it alone finds the donor for.
INDEXES: dict[str, tuple[str, dict[str, Any]]] = {
    "prefix": (answerable(PAPER), {"mode": "prefix"}),
    "span": (MOVED, SPAN),
    "fuzzy": (
        answerable(words(20, 2) + reworded(PAPER, 3)),
        {"mode": "semantic", "min_similarity": 0.0, "min_span": 1 << 20, "recompute": 0.0},
    ),
}
TENANTS = {
    "acme": {"keys": [hash_key("acme")]},
    "other": {"keys": [hash_key("other")]},
    "boss": {"keys": [hash_key("boss")], "operator": True},
}


@dataclass(frozen=True, slots=True)
class Asker:
    """One tenant, by its key."""

    client: TestClient
    key: str

    async def told(self, method: str, path: str, body: object = None) -> tuple[int, Any]:
        headers = {"X-API-Key": self.key}
        async with self.client.request(method, path, json=body, headers=headers) as response:
            return response.status, await response.json()

    async def bytes_of(self, method: str, path: str, kv: bytes = b"") -> tuple[int, bytes]:
        """For what is not JSON; `kv` is sent as such."""
        headers = {"X-API-Key": self.key} | ({"Content-Type": CONTENT_TYPE} if kv else {})
        async with self.client.request(method, path, data=kv or None, headers=headers) as response:
            return response.status, await response.read()

    async def answered(self, prompt: str) -> str:
        """The id of a request that has been answered."""
        body = {"prompt": prompt, "max_tokens": 1, "semshare": SPAN}
        headers = {"X-API-Key": self.key}
        async with self.client.post("/v1/completions", json=body, headers=headers) as response:
            assert response.status == 200
            return response.headers["X-Request-Id"]

    async def remember(self, text: str = PAPER) -> str:
        status, donor = await self.told("PUT", "/v1/donors", {"text": text})
        assert (status, donor["namespace"]) == (200, "default")
        return str(donor["id"])

    async def reused(self, prompt: str, policy: dict[str, Any]) -> int:
        """Tokens of a prompt that would be reused."""
        status, plan = await self.told("POST", "/v1/match", {"text": prompt, "semshare": policy})
        assert status == 200
        return int(plan["prompt_tokens"]) - int(plan["tokens"]["fresh"])

    async def listed(self) -> list[str]:
        donors = (await self.told("GET", "/v1/donors"))[1]["data"]
        assert all(donor["namespace"] == "default" for donor in donors)
        return [donor["id"] for donor in donors]


@dataclass(frozen=True, slots=True)
class Askers:
    """`acme` has remembered `PAPER`, as `donor`; the others have nothing."""

    engine: SemShare
    acme: Asker
    other: Asker
    boss: Asker
    donor: str


async def tells_nothing_of_tenants(askers: Askers, path: str) -> None:
    mine, theirs = [await one.told("GET", path) for one in (askers.acme, askers.other)]
    assert mine == theirs
    assert "acme" not in str(theirs)


async def completions(askers: Askers) -> None:
    for name, (prompt, policy) in INDEXES.items():
        for asker, hits in ((askers.other, False), (askers.acme, True)):
            body = {"prompt": prompt, "max_tokens": 1, "semshare": policy}
            status, answer = await asker.told("POST", "/v1/completions", body)
            assert status == 200
            tokens = answer["semshare"]["tokens"]
            assert (tokens["fresh"] < len(PAPER) // 2) == hits, name
            assert (askers.donor in str(answer)) == hits


async def chat(askers: Askers) -> None:
    messages = [{"role": "user", "content": MOVED}]
    for asker, hits in ((askers.other, False), (askers.acme, True)):
        body = {"messages": messages, "max_tokens": 1, "semshare": SPAN}
        answer = (await asker.told("POST", "/v1/chat/completions", body))[1]
        assert (answer["semshare"]["tokens"]["span"] > len(PAPER) // 2) == hits
        assert (askers.donor in str(answer)) == hits


async def put_donor(askers: Askers) -> None:
    same = await askers.other.remember()
    assert same != askers.donor
    assert await askers.other.listed() == [same]
    assert await askers.acme.listed() == [askers.donor]


async def list_donors(askers: Askers) -> None:
    assert await askers.acme.listed() == [askers.donor]
    assert await askers.other.listed() == []
    status, _ = await askers.other.told("GET", f"/v1/donors?after={askers.donor}")
    assert status == 404


def of_its_own(
    method: str, body: object = None, after: bool = True
) -> Callable[[Askers], Awaitable[None]]:
    """A case for a route of one donor; `after`: whether it is still there afterwards."""

    async def case(askers: Askers) -> None:
        path = f"/v1/donors/{askers.donor}"
        before = (await askers.acme.told("GET", path))[1]
        for stranger in (askers.other, askers.boss):
            status, reply = await stranger.told(method, path, body)
            assert (status, reply["error"]["code"]) == (404, "not_found")
            assert "acme" not in str(reply)
        assert (await askers.acme.told("GET", path))[1] == before
        assert (await askers.acme.told(method, path, body))[0] == 200
        assert (askers.donor in await askers.acme.listed()) == after

    return case


async def publish(askers: Askers) -> None:
    path = f"/v1/donors/{askers.donor}/publish?tenant=acme"
    for asker in (askers.acme, askers.other):
        assert (await asker.told("POST", path))[0] == 403
    for prompt, policy in INDEXES.values():
        assert await askers.other.reused(prompt, policy) == 0
    assert (await askers.boss.told("POST", path))[1]["published"]
    for prompt, policy in INDEXES.values():
        assert await askers.other.reused(prompt, policy) > len(PAPER) // 2
    # Found is not owned: nobody else may look at it, change it or drop it.
    assert await askers.other.listed() == []
    for method, body in (("GET", None), ("PATCH", {"pinned": True}), ("DELETE", None)):
        assert (await askers.other.told(method, f"/v1/donors/{askers.donor}", body))[0] == 404


async def match(askers: Askers) -> None:
    for name, (prompt, policy) in INDEXES.items():
        assert await askers.acme.reused(prompt, policy) > len(PAPER) // 2, name
        assert await askers.other.reused(prompt, policy) == 0, name


async def page(askers: Askers) -> None:
    for path in ("/", "/dashboard/app.js"):
        await same_for_all(askers, path)


async def same_for_all(askers: Askers, path: str) -> None:
    seen = [await asker.bytes_of("GET", path) for asker in (askers.acme, askers.other)]
    assert seen[0] == seen[1]
    assert seen[0][0] == 200


async def stats(askers: Askers) -> None:
    await askers.acme.answered(MOVED)
    mine, theirs = [
        (await asker.told("GET", "/v1/stats"))[1] for asker in (askers.acme, askers.other)
    ]
    assert (mine["windows"]["all"]["requests"], theirs["windows"]["all"]["requests"]) == (1, 0)
    assert (mine["donors"], theirs["donors"]) == (1, 0)
    assert "acme" not in str(theirs)


async def metrics(askers: Askers) -> None:
    await askers.acme.answered(MOVED)
    for asker, tenants in ((askers.acme, {b"acme"}), (askers.other, set())):
        status, text = await asker.bytes_of("GET", "/metrics")
        assert status == 200
        assert set(re.findall(rb'tenant="(.*?)"', text)) == tenants
    assert b'tenant="acme"' in (await askers.boss.bytes_of("GET", "/metrics"))[1]


async def recent_requests(askers: Askers) -> None:
    name = await askers.acme.answered(MOVED)
    listed = [
        [one["id"] for one in (await asker.told("GET", "/v1/requests"))[1]["data"]]
        for asker in (askers.acme, askers.other)
    ]
    assert listed == [[name], []]


async def recent_request(askers: Askers) -> None:
    name = await askers.acme.answered(MOVED)
    for asker, status in ((askers.acme, 200), (askers.other, 404), (askers.boss, 404)):
        told = await asker.told("GET", f"/v1/requests/{name}")
        assert told[0] == status
        assert ("pieces" in told[1]) == (status == 200)


async def inspect(askers: Askers) -> None:
    for asker, hits in ((askers.acme, True), (askers.other, False)):
        body = {"text": MOVED, "semshare": SPAN}
        found = (await asker.told("POST", "/v1/inspect", body))[1]
        assert (found["tokens"]["span"] > len(PAPER) // 2) == hits
        assert any(piece["donor_text"] for piece in found["pieces"]) == hits


async def prefill(askers: Askers) -> None:
    for asker, hits in ((askers.other, False), (askers.acme, True)):
        found = (await asker.told("POST", "/v1/prefill", {"text": MOVED, "semshare": SPAN}))[1]
        assert (found["semshare"]["tokens"]["span"] > len(PAPER) // 2) == hits


def of_its_own_handle(method: str) -> Callable[[Askers], Awaitable[None]]:
    """A case for a route of one handle."""

    async def case(askers: Askers) -> None:
        held = (await askers.acme.told("POST", "/v1/prefill", {"text": MOVED}))[1]
        path = f"/v1/kv/{held['handle']}"
        for stranger in (askers.other, askers.boss):
            assert (await stranger.told(method, path))[0] == 404
        assert (await askers.acme.bytes_of(method, path))[0] == 200

    return case


async def bring_kv(askers: Askers) -> None:
    body = {"text": "another prompt", "semshare": {"mode": "off"}}
    held = (await askers.acme.told("POST", "/v1/prefill", body))[1]
    _, kv = await askers.acme.bytes_of("GET", f"/v1/kv/{held['handle']}")
    status, brought = await askers.other.bytes_of("PUT", "/v1/kv", kv)
    assert status == 200, brought
    assert len(await askers.other.listed()) == 1
    assert await askers.acme.listed() == [askers.donor]
    prompt = {"text": answerable("another prompt"), "semshare": {"mode": "prefix"}}
    found = (await askers.other.told("POST", "/v1/match", prompt))[1]
    assert found["tokens"]["prefix"] > 0


async def refused_alike(askers: Askers) -> None:
    told = [await one.told("POST", "/v1/embeddings", {}) for one in (askers.acme, askers.other)]
    assert told[0] == told[1]
    assert told[0][0] == 404


CASES: dict[tuple[str, str], Callable[[Askers], Awaitable[None]]] = {
    ("GET", "/health"): lambda askers: tells_nothing_of_tenants(askers, "/health"),
    ("GET", "/ready"): lambda askers: tells_nothing_of_tenants(askers, "/ready"),
    ("GET", "/v1/models"): lambda askers: tells_nothing_of_tenants(askers, "/v1/models"),
    ("POST", "/v1/completions"): completions,
    ("POST", "/v1/chat/completions"): chat,
    ("PUT", "/v1/donors"): put_donor,
    ("GET", "/v1/donors"): list_donors,
    ("GET", "/v1/donors/{id}"): of_its_own("GET"),
    ("PATCH", "/v1/donors/{id}"): of_its_own("PATCH", {"pinned": True}),
    ("DELETE", "/v1/donors/{id}"): of_its_own("DELETE", after=False),
    ("POST", "/v1/donors/{id}/publish"): publish,
    ("POST", "/v1/match"): match,
    ("GET", "/v1/models/{id}"): lambda askers: tells_nothing_of_tenants(askers, "/v1/models/x"),
    ("POST", "/v1/embeddings"): refused_alike,
    ("POST", "/v1/prefill"): prefill,
    ("GET", "/v1/kv/{handle}"): of_its_own_handle("GET"),
    ("DELETE", "/v1/kv/{handle}"): of_its_own_handle("DELETE"),
    ("PUT", "/v1/kv"): bring_kv,
    ("GET", "/"): page,
    ("GET", "/dashboard/{name}"): page,
    ("GET", "/openapi.json"): lambda askers: same_for_all(askers, "/openapi.json"),
    ("GET", "/reference"): lambda askers: same_for_all(askers, "/reference"),
    ("GET", "/v1/stats"): stats,
    ("GET", "/metrics"): metrics,
    ("GET", "/v1/requests"): recent_requests,
    ("GET", "/v1/requests/{id}"): recent_request,
    ("POST", "/v1/inspect"): inspect,
}
