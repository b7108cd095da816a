"""What the dashboard shows: recent requests, pieces of prompts, figures."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient
from aiohttp.typedefs import Handler
from dashboard_content import MARKUP, PROMPTS, REPORT, STORAGE, filled, stats_of
from reading_engine import BUDGET, SECONDS_PER_FRESH_TOKEN, ReadingEngine
from service_helpers import entered, running, status_where

from semshare_service.context import TENANT
from semshare_service.pool_watch import PoolWatch, pool_body
from semshare_service.tenants import ANYONE, Tenant


@pytest.fixture
def reading() -> ReadingEngine:
    return ReadingEngine()


@pytest.fixture
async def client(reading: ReadingEngine) -> AsyncIterator[TestClient]:
    async with filled(reading) as started:
        yield started


async def answer_of(client: TestClient, path: str, body: object = None) -> Any:
    method = "GET" if body is None else "POST"
    async with client.request(method, path, json=body) as response:
        assert response.status == 200, await response.text()
        return await response.json()


# ---- recent requests


async def test_requests_are_listed_newest_first_without_their_prompts(client: TestClient) -> None:
    listed = await answer_of(client, "/v1/requests")
    assert listed["object"] == "list"
    assert [request["id"] for request in listed["data"]] == [
        f"request-{number}" for number in reversed(range(len(PROMPTS)))
    ]
    words = len(REPORT.split())
    assert {**listed["data"][3], "ended": 0.0, "queue_s": 0.0} == {
        "id": "request-2",
        "object": "request",
        "route": "completions",
        "namespace": "default",
        "ended": 0.0,
        "prompt_tokens": words + 4,
        "completion_tokens": 4,
        "tokens": {"fresh": 4, "prefix": words, "span": 0, "fuzzy": 0},
        "compute_fraction": 4 / (words + 4),
        "mode": "semantic",
        "exact": True,
        "fallback": None,
        "ttft_s": 4 * SECONDS_PER_FRESH_TOKEN,
        "queue_s": 0.0,
    }
    assert len((await answer_of(client, "/v1/requests?limit=2"))["data"]) == 2
    assert "committee" not in str(listed)


@pytest.mark.parametrize("query", ["limit=0", "limit=1001", "limit=x", "after=3"])
async def test_a_wrong_query_is_refused(client: TestClient, query: str) -> None:
    async with client.get(f"/v1/requests?{query}") as response:
        assert response.status == 400
        assert (await response.json())["error"]["param"] == query.partition("=")[0]


async def test_a_request_is_told_in_pieces_with_the_donors_text(client: TestClient) -> None:
    found = await answer_of(client, "/v1/requests/request-1")
    pieces = found["pieces"]
    assert "".join(piece["text"] for piece in pieces) == PROMPTS[1]
    donor = (await answer_of(client, "/v1/donors"))["data"][0]["id"]
    same = " to review the harbour works. Dredging of the northern channel is complete, and the"
    said = [(piece["source"], piece["text"], piece["donor_text"]) for piece in pieces]
    assert said[:4] == [
        ("prefix", "The committee met on", "The committee met on"),
        ("fuzzy", " Thursday", " Tuesday"),
        ("span", same, same),
        ("fuzzy", " fresh piles", " new pilings"),
    ]
    assert said[-1] == ("fresh", "\n\nIn a line?", None)
    assert {piece["donor"] for piece in pieces} == {donor, None}
    assert pieces[1]["donor_start"] == 4
    assert {piece["reason"] for piece in pieces} == {None}


async def test_a_donor_that_has_gone_leaves_no_text(client: TestClient) -> None:
    first = (await answer_of(client, "/v1/donors"))["data"][0]["id"]
    async with client.delete(f"/v1/donors/{first}") as response:
        assert response.status == 200
    pieces = (await answer_of(client, "/v1/requests/request-1"))["pieces"]
    assert "".join(piece["text"] for piece in pieces) == PROMPTS[1]
    assert pieces[0]["donor"] == first
    assert {piece["donor_text"] for piece in pieces} == {None}


async def test_an_unknown_request_is_not_found(client: TestClient) -> None:
    async with client.get("/v1/requests/request-9") as response:
        assert response.status == 404
        message = (await response.json())["error"]["message"]
    assert message.startswith("no request 'request-9' among the last 256 (recent_requests)")


async def test_none_are_kept_where_the_setting_says_so(reading: ReadingEngine) -> None:
    async with filled(reading, recent_requests=0) as client:
        assert (await answer_of(client, "/v1/requests"))["data"] == []
        counted = (await answer_of(client, "/v1/stats"))["windows"]["all"]["requests"]
    assert counted == len(PROMPTS)


async def test_a_tenant_sees_nothing_of_another(reading: ReadingEngine) -> None:
    reading.storage = STORAGE
    async with filled(reading, tenant_by_header) as client:
        client.session.headers["X-Tenant"] = "other"
        assert (await answer_of(client, "/v1/requests"))["data"] == []
        async with client.get("/v1/requests/request-1") as response:
            assert response.status == 404
        (piece,) = (await answer_of(client, "/v1/inspect", {"text": REPORT}))["pieces"]
        assert (piece["source"], piece["donor_text"]) == ("fresh", None)
        found = await stats_of(client)
        assert found["windows"]["all"]["requests"] == 0
        assert {**found["pool"], "age_s": 0} == {
            "age_s": 0,
            "donors": 0,
            "prefixes": 0,
            "running": None,  # of all tenants together
            "free": None,
        }
        assert (found["donors"], found["evictions"], found["storage"]) == (0, None, None)
        # Its own it does see, by its own names.
        body = {"prompt": "a b", "max_tokens": 1}
        headers = {"X-Request-Id": "request-1"}
        async with client.post("/v1/completions", json=body, headers=headers) as response:
            assert response.status == 200
        own = await answer_of(client, "/v1/requests/request-1")
        assert (own["namespace"], own["pieces"][0]["text"]) == ("default", "a b")


@web.middleware
async def tenant_by_header(request: web.Request, handler: Handler) -> web.StreamResponse:
    request[TENANT] = Tenant(request.headers.get("X-Tenant", "first"))
    return await handler(request)


# ---- dry runs


async def test_inspect_is_match_with_pieces(client: TestClient) -> None:
    body = {"text": PROMPTS[0], "semshare": {"namespace": "default"}}
    plan = await answer_of(client, "/v1/match", body)
    found = await answer_of(client, "/v1/inspect", body)
    pieces = found.pop("pieces")
    assert found == plan
    assert "".join(piece["text"] for piece in pieces) == PROMPTS[0]
    assert [(piece["source"], piece["reason"]) for piece in pieces[:2]] == [
        ("fresh", "unmatched"),
        ("span", None),
    ]
    elsewhere = {**body, "semshare": {"namespace": "elsewhere"}}
    (piece,) = (await answer_of(client, "/v1/inspect", elsewhere))["pieces"]
    assert (piece["source"], piece["text"]) == ("fresh", PROMPTS[0])
    listed = await answer_of(client, "/v1/requests")
    assert len(listed["data"]) == len(PROMPTS)  # a dry run is no request


# ---- figures


async def test_stats_tell_who_holds_the_pool(client: TestClient, reading: ReadingEngine) -> None:
    reading.running_bytes = 1000
    found = await stats_of(client)
    donors = (await answer_of(client, "/v1/donors"))["data"]
    held = sum(donor["bytes"] for donor in donors)
    assert found["pool"].pop("age_s") >= 0
    assert found["pool"] == {
        "donors": held,
        "prefixes": 4000,
        "running": 1000,
        "free": BUDGET - held - 5000,
    }
    assert (found["donors"], found["evictions"]) == (2, 3)
    assert found["storage"] is None  # nothing lies below the pool
    assert found["model"] == "fake"
    assert (found["queue"]["waiting"], found["queue"]["limit"]) == (0, 32)
    assert found["windows"]["1m"]["requests"] <= found["windows"]["all"]["requests"] == len(PROMPTS)


async def test_stats_tell_of_storage_by_tier(reading: ReadingEngine) -> None:
    reading.storage = STORAGE
    async with filled(reading) as client:
        found = (await stats_of(client))["storage"]
    assert found == {
        "tiers": [
            {"name": "host", "used_bytes": 100_000, "budget_bytes": 1 << 20},
            {"name": "disk", "used_bytes": 5 << 30, "budget_bytes": 64 << 30},
            {"name": "redis", "used_bytes": None, "budget_bytes": 8 << 30},
        ],
        "waiting": 2,
    }


async def test_stats_do_not_wait_for_a_busy_model(reading: ReadingEngine) -> None:
    async with running(reading) as client:
        before = await stats_of(client)
        reading.hold.clear()
        while reading.entered.acquire(blocking=False):
            pass
        asking = asyncio.create_task(answer_of(client, "/v1/completions", {"prompt": "a b"}))
        await entered(reading)
        during = [await answer_of(client, "/v1/stats") for _ in range(3)]
        assert during[-1]["queue"]["waiting"] == 0  # looking takes no place in the queue
        ages = [found["pool"].pop("age_s") for found in during]
        assert ages == sorted(ages)
        before["pool"].pop("age_s")
        assert {str(found["pool"]) for found in during} == {str(before["pool"])}
        reading.hold.set()
        await asking
        await status_where(client, lambda status: not status.running and not status.waiting)
        assert (await answer_of(client, "/v1/stats"))["windows"]["all"]["requests"] == 1


async def test_a_model_that_is_loading_has_no_pool_yet() -> None:
    told = await PoolWatch().latest()
    assert pool_body(told, ANYONE) == dict.fromkeys(("pool", "donors", "evictions", "storage"))


# ---- the page


@pytest.mark.parametrize(
    ("path", "content_type"),
    [
        ("/", "text/html"),
        ("/dashboard/app.js", "text/javascript"),
        ("/dashboard/style.css", "text/css"),
        ("/dashboard/icon.svg", "image/svg+xml"),
    ],
)
async def test_the_page_runs_its_own_files_only(
    client: TestClient, path: str, content_type: str
) -> None:
    async with client.get(path) as response:
        assert (response.status, response.content_type) == (200, content_type)
        policy = response.headers["Content-Security-Policy"]
        text = await response.text()
    assert "default-src 'none'; script-src 'self'; style-src 'self'" in policy
    assert "unsafe" not in policy
    assert "https:" not in text
    assert "innerHTML" not in text


@pytest.mark.parametrize("name", ["none.js", "..%2Fapp.py", "%2Fetc%2Fpasswd", ""])
async def test_other_files_are_not_served(client: TestClient, name: str) -> None:
    async with client.get(f"/dashboard/{name}") as response:
        assert response.status == 404
        assert (await response.json())["error"]["type"] == "not_found_error"


async def test_markup_in_a_prompt_is_sent_as_it_is(client: TestClient) -> None:
    pieces = (await answer_of(client, "/v1/requests/request-4"))["pieces"]
    assert MARKUP in "".join(piece["text"] for piece in pieces)
