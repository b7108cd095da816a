"""What the dashboard shows: recent requests, pieces of prompts, figures."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from aiohttp.test_utils import TestClient
from dashboard_content import MARKUP, PROMPTS, REPORT, filled
from hypothesis import given
from hypothesis import strategies as st
from reading_engine import BUDGET, SECONDS_PER_FRESH_TOKEN, ReadingEngine
from service_helpers import entered, running, status_where

from semshare.types import Answer, Choice, Provenance, Timings
from semshare_service.activity import Activity
from semshare_service.observed import Answered
from semshare_service.pieces import prompt_pieces, token_texts
from semshare_service.pool_watch import PoolWatch
from semshare_service.recent import RecentRequests
from semshare_service.tenants import ANYONE, Tenant
from semshare_service.worker import ModelWorker


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


def test_the_oldest_goes_and_tenants_are_apart() -> None:
    recent, other = RecentRequests(2), Tenant("other")
    for name in ("a", "b", "c"):
        recent(event(request_id=name))
    recent(event(request_id="d", tenant=other))
    assert [request.id for request in recent.newest(ANYONE, 10)] == ["c", "b"]
    assert [request.id for request in recent.newest(other, 10)] == ["d"]
    assert recent.find(other, "d").space == "other/default"
    assert recent.newest(Tenant("third"), 10) == []


def test_of_requests_with_one_name_the_newest_is_found() -> None:
    recent = RecentRequests(2)
    recent(event(request_id="a", ended=1.0))
    recent(event(request_id="a", ended=2.0))
    assert recent.find(ANYONE, "a").ended == 2.0


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


# ---- text


class Bytes(ReadingEngine):
    """Each byte is a token."""

    def token_bytes(self, token_id: int) -> bytes:
        return bytes([token_id])


def byte_ids(text: str) -> np.ndarray:
    return np.frombuffer(text.encode(), np.uint8).astype(np.int32)


def test_a_character_stands_whole_at_its_last_token() -> None:
    assert token_texts(Bytes(), byte_ids("aé€")) == ["a", "", "é", "", "", "€"]
    assert token_texts(Bytes(), byte_ids("€")[:2]) == ["", "�"]
    assert token_texts(Bytes(), byte_ids("")) == []


@given(st.text(st.characters(codec="utf-8")), st.data())
def test_pieces_join_to_the_prompt_wherever_they_are_cut(text: str, data: st.DataObject) -> None:
    ids = byte_ids(text)
    cuts = data.draw(st.sets(st.integers(1, max(len(ids) - 1, 1)))) if len(ids) > 1 else set()
    edges = [0, *sorted(cuts), len(ids)]
    runs = [
        {"start": start, "end": end, "donor": None, "donor_start": None}
        for start, end in pairwise(edges)
    ]
    pieces = prompt_pieces(Bytes(), "default", ids, runs)
    assert "".join(piece["text"] for piece in pieces) == text


# ---- figures

NOW = 1_000_000 * 60.0  # a whole minute


def event(
    *,
    fresh: int = 1,
    prefix: int = 0,
    ended: float = NOW,
    ttft_s: float = 0.5,
    tenant: Tenant = ANYONE,
    request_id: str = "r",
    fallback: str | None = None,
) -> Answered:
    source = np.array([1] * prefix + [0] * fresh, np.uint8)
    nowhere = np.full(len(source), -1, np.int32)
    provenance = Provenance(
        source=source,
        donors=(),
        donor=nowhere,
        donor_position=nowhere,
        compute_fraction=fresh / len(source),
        exact=True,
        mode="prefix",
        fallback=fallback,
    )
    answer = Answer(
        text="",
        token_ids=[],
        prompt_tokens=len(source),
        finish_reason="stop",
        provenance=provenance,
        timings=Timings(ttft_s=ttft_s),
        choices=(Choice("", [], "stop", ()),),
    )
    return Answered(request_id, "chat", tenant, "default", "p", None, answer, 0.0, ended)


def test_windows_end_now() -> None:
    activity = Activity()
    for ago, tokens in ((4000, 1), (601, 10), (590, 100), (61, 1000), (30, 10_000)):
        activity(event(fresh=tokens, ended=NOW - ago))
    windows = activity.body(ANYONE, NOW)["windows"]
    fresh = {name: window["tokens"]["fresh"] for name, window in windows.items()}
    assert fresh == {"1m": 10_000, "10m": 11_100, "all": 11_111}
    assert windows["10m"]["requests"] == 3


def test_the_series_has_sixty_minutes_of_the_clock() -> None:
    activity = Activity()
    for ago, tokens in ((3541, 1), (3539, 10), (60, 100), (1, 1000), (0, 10_000)):
        activity(event(prefix=tokens, ended=NOW - ago))
    series = activity.body(ANYONE, NOW + 59)["series"]
    assert [minute["start"] for minute in series] == [NOW - 60 * ago for ago in range(59, -1, -1)]
    assert series[0]["tokens"] == {"fresh": 1, "prefix": 10, "span": 0, "fuzzy": 0}
    assert series[0]["requests"] == 1
    assert series[58]["tokens"]["prefix"] == 1100
    assert series[59]["tokens"]["prefix"] == 10_000
    assert sum(minute["requests"] for minute in series) == 4


def test_times_with_and_without_reuse_are_apart_and_of_the_last_hour() -> None:
    activity = Activity()
    activity(event(ttft_s=99, ended=NOW - 3601))
    for ttft_s in (1.0, 2.0, 3.0):
        activity(event(ttft_s=ttft_s))
    activity(event(prefix=3, ttft_s=0.25))
    assert activity.body(ANYONE, NOW)["ttft"] == {
        "reused": {"requests": 1, "p50_s": 0.25, "p95_s": 0.25, "prompt_tokens_p50": 4.0},
        "computed": {
            "requests": 3,
            "p50_s": 2.0,
            "p95_s": pytest.approx(2.9),
            "prompt_tokens_p50": 1.0,
        },
    }


def test_figures_are_the_tenants_own() -> None:
    activity, other = Activity(), Tenant("other")
    activity(event(fallback="prefill: ArithmeticError"))
    mine, theirs = activity.body(ANYONE, NOW), activity.body(other, NOW)
    assert mine["fallbacks"] == {"prefill: ArithmeticError": 1}
    assert theirs["fallbacks"] == {}
    assert theirs["windows"]["all"]["requests"] == 0
    assert theirs["ttft"]["computed"]["p50_s"] is None


async def test_stats_tell_who_holds_the_pool(client: TestClient, reading: ReadingEngine) -> None:
    reading.running_bytes = 1000
    found = await answer_of(client, "/v1/stats")
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
    assert found["model"] == "fake"
    assert found["queue"] == {"waiting": 0, "limit": 32, "running": False}
    assert found["windows"]["1m"]["requests"] <= found["windows"]["all"]["requests"] == len(PROMPTS)


async def test_stats_do_not_wait_for_a_busy_model(reading: ReadingEngine) -> None:
    async with running(reading) as client:
        before = await answer_of(client, "/v1/stats")
        reading.hold.clear()
        while reading.entered.acquire(blocking=False):
            pass
        asking = asyncio.create_task(answer_of(client, "/v1/completions", {"prompt": "a b"}))
        await entered(reading)
        during = [await answer_of(client, "/v1/stats") for _ in range(3)]
        assert during[-1]["queue"]["waiting"] == 1  # one question, however often one looks
        ages = [found["pool"].pop("age_s") for found in during]
        assert ages == sorted(ages)
        before["pool"].pop("age_s")
        assert {str(found["pool"]) for found in during} == {str(before["pool"])}
        reading.hold.set()
        await asking
        await status_where(client, lambda status: not status.running and not status.waiting)
        assert (await answer_of(client, "/v1/stats"))["windows"]["all"]["requests"] == 1


async def test_a_model_that_is_loading_has_no_pool_yet() -> None:
    worker = ModelWorker(ReadingEngine, queue_limit=1, concurrency=1)  # never started
    told = await PoolWatch(worker).body(ANYONE)
    assert told == {"pool": None, "donors": None, "evictions": None}


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
