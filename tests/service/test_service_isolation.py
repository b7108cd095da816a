"""Every route and every index: a tenant finds its own, and nothing of another's.

A new route without a case in `isolation_cases` fails the first test.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from fake_engine import FakeEngine
from isolation_cases import CASES, MOVED, PAPER, SPAN, TENANTS, Asker, Askers
from prompts import answerable
from service_helpers import running, status_where
from tiny import tiny_engine

from semshare_service.app import create_app
from semshare_service.settings import ServiceSettings


@pytest.fixture
async def askers() -> AsyncIterator[Askers]:
    engine = tiny_engine(page_size=8)
    async with running(engine, tenants=TENANTS) as client:
        acme, other, boss = (Asker(client, key) for key in TENANTS)
        yield Askers(engine, acme, other, boss, await acme.remember())


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
