"""What is counted and kept of answered requests, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from semshare.types import Answer, Choice, Provenance, Timings
from semshare_service.activity import Activity
from semshare_service.observed import Answered
from semshare_service.recent import RecentRequests
from semshare_service.tenants import ANYONE, Tenant

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
