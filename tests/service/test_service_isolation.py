"""Every route and every index: a tenant finds its own, and nothing of another's.

A new route without a case here fails the first test.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import pytest
from aiohttp.test_utils import TestClient
from fake_engine import FakeEngine
from prompts import answerable, reworded, words
from service_helpers import running, status_where
from tiny import tiny_engine

from semshare import SemShare
from semshare_service.app import create_app
from semshare_service.auth import hash_key
from semshare_service.settings import ServiceSettings

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


@pytest.fixture
async def askers() -> AsyncIterator[Askers]:
    engine = tiny_engine(page_size=8)
    async with running(engine, tenants=TENANTS) as client:
        acme, other, boss = (Asker(client, key) for key in TENANTS)
        yield Askers(engine, acme, other, boss, await acme.remember())


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
}


def test_every_route_has_a_case() -> None:
    app = create_app(FakeEngine(), ServiceSettings())
    routes = {
        (route.method, route.resource.canonical)
        for route in app.router.routes()
        if route.resource is not None and route.method != "HEAD"  # which is GET without a body
    }
    assert routes == set(CASES)


@pytest.mark.parametrize("route", CASES, ids=" ".join)
async def test_a_tenant_finds_its_own_and_nothing_of_others(
    askers: Askers, route: tuple[str, str]
) -> None:
    await CASES[route](askers)


async def test_a_pending_prompt_becomes_a_donor_of_who_asked(askers: Askers) -> None:
    body = {"prompt": MOVED, "max_tokens": 1, "semshare": SPAN | {"remember": True}}
    answer = (await askers.acme.told("POST", "/v1/completions", body))[1]
    assert answer["semshare"]["remembered"] == "pending"
    await status_where(askers.acme.client, lambda _: askers.engine.stats()["donors"] == 2)
    assert len(await askers.acme.listed()) == 2
    assert await askers.other.listed() == []
    prompt = answerable(MOVED)
    assert await askers.acme.reused(prompt, {"mode": "prefix"}) > len(PAPER)
    assert await askers.other.reused(prompt, {"mode": "prefix"}) == 0


async def test_what_is_remembered_by_a_request_is_told_with_the_tenants_own_names(
    askers: Askers,
) -> None:
    extension = {"mode": "prefix", "remember": True, "namespace": "n"}
    body = {"prompt": "a prompt", "max_tokens": 1, "semshare": extension}
    answer = (await askers.other.told("POST", "/v1/completions", body))[1]
    assert answer["semshare"]["donor"]["namespace"] == "n"
    assert "other" not in str(answer)


@pytest.mark.parametrize("namespace", ["acme/default", "/default", "../acme/default", "acme%2Fd"])
async def test_no_namespace_leads_to_another_tenant(askers: Askers, namespace: str) -> None:
    for asker in (askers.other, askers.boss):
        body = {"text": MOVED, "semshare": SPAN | {"namespace": namespace}}
        assert (await asker.told("POST", "/v1/match", body))[0] == 400
        assert (await asker.told("GET", f"/v1/donors?namespace={namespace}"))[0] == 400
