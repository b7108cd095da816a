"""What one process does is told to the others, within a second and whatever happens meanwhile."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from proxy import Proxy
from redis_fixtures import QUICK, MakeRedis, Told
from redis_servers import RedisServer
from tier_conformance import assert_same, blobs_of, names, record_of, whole

from semshare.kv.tiers.tier import DonorRecord

SOON_S = 1.0


@pytest.fixture(params=["one server", "cluster"])
def url(request: pytest.FixtureRequest) -> Iterator[str]:
    if request.param == "cluster":
        yield request.getfixturevalue("redis_cluster")
    else:
        yield request.getfixturevalue("redis_server").url


def test_others_are_told_within_a_second_and_oneself_of_what_went_for_room(
    url: str, open_tier: MakeRedis
) -> None:
    tiers = [open_tier(url, 450_000) for _ in range(3)]
    told = [Told() for _ in tiers]
    for tier, watcher in zip(tiers, told, strict=True):
        tier.watch(watcher)
    blobs = blobs_of(0, 100_000)
    record = record_of("a", blobs)
    tiers[0].put(record, blobs)
    for watcher in told[1:]:
        assert watcher.wait_for(lambda watcher=watcher: "a" in watcher.there) < SOON_S
        assert_same(watcher.there["a"], record)
    assert whole(tiers[1], "a", 0, 100_000) == blobs[0]

    changed = replace(record, published=True)
    tiers[1].update(changed)
    for watcher in (told[0], told[2]):
        assert (
            watcher.wait_for(
                lambda watcher=watcher: "a" in watcher.there and watcher.there["a"].published
            )
            < SOON_S
        )
    tiers[2].remove("a")
    for watcher in told[:2]:
        assert watcher.wait_for(lambda watcher=watcher: "a" not in watcher.there) < SOON_S
    assert told[0].log == [("appeared", "a"), ("forgotten", "a")]
    assert told[1].log == [("appeared", "a"), ("forgotten", "a")]

    # What goes for want of room is told to all, once: to who made it go before its put is over.
    told[0].log.clear()
    for donor in "bcdef":
        tiers[0].put(record_of(donor, blobs), blobs)
    assert told[0].log == [("vanished", "b")]
    told[1].wait_for(lambda: set(told[1].there) == set("cdef"))
    assert told[0].log == [("vanished", "b")]


def test_only_what_comes_from_now_on_is_told(url: str, open_tier: MakeRedis) -> None:
    one, two, three = (open_tier(url) for _ in range(3))
    blobs = blobs_of(0, 100)
    one.put(record_of("before", blobs), blobs)
    assert names(three) == {"before"}
    one.put(record_of("between", blobs), blobs)  # after three's listing, before it watches
    told_two, told_three = Told(), Told()
    two.watch(told_two)
    three.watch(told_three)
    one.put(record_of("after", blobs), blobs)
    told_two.wait_for(lambda: "after" in told_two.there)
    told_three.wait_for(lambda: "after" in told_three.there)
    assert set(told_two.there) == {"after"}
    assert set(told_three.there) == {"between", "after"}


def test_reading_and_listing_take_nothing_from_what_is_told(url: str, open_tier: MakeRedis) -> None:
    one, two = open_tier(url), open_tier(url)
    told, also = Told(), Told()
    two.watch(told)
    two.watch(also)
    blobs = blobs_of(0, 100)
    for number in range(20):
        donor = f"donor-{number}"
        one.put(record_of(donor, blobs), blobs)
        assert whole(two, donor, 0, 100) == blobs[0]
        assert donor in names(two)
    for watcher in (told, also):
        watcher.wait_for(lambda watcher=watcher: len(watcher.there) == 20)


def test_events_that_were_trimmed_are_made_up_for(
    own_server: RedisServer, open_tier: MakeRedis
) -> None:
    with Proxy(own_server.port).running() as proxy:
        one = open_tier(own_server.url, events_kept=10)
        two = open_tier(proxy.url, events_kept=10)
        blobs = blobs_of(0, 100)
        one.put(record_of("goes", blobs), blobs)
        one.put(record_of("changes", blobs), blobs)
        assert names(two) == {"goes", "changes"}
        told = Told()
        two.watch(told)
        proxy.silent = True
        wait_for_errors(two)
        for number in range(300):
            one.put(record_of(f"donor-{number}", blobs), blobs)
        one.remove("goes")
        one.update(record_of("changes", blobs, published=True))
        events = own_server.client.keys("*:events")
        assert own_server.client.xlen(events[0]) < 300
        proxy.silent = False
        told.wait_for(lambda: len(told.there) == 301 and ("vanished", "goes") in told.log)
        assert told.there["changes"].published
        assert two.counts["listings"] >= 3


def wait_for_errors(tier: object) -> None:
    """Until the watching thread has given up on its connection."""
    deadline = time.monotonic() + 10
    servers = tier._servers  # type: ignore[attr-defined]
    (server,) = servers.primaries()
    while server.breaker._failures == 0:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_an_event_stream_that_is_lost_is_noticed(
    own_server: RedisServer, open_tier: MakeRedis
) -> None:
    one, two = open_tier(own_server.url), open_tier(own_server.url)
    told = Told()
    two.watch(told)
    blobs = blobs_of(0, 100)
    one.put(record_of("a", blobs), blobs)
    told.wait_for(lambda: set(told.there) == {"a"})
    own_server.client.flushall()
    assert told.wait_for(lambda: told.there == {}) < SOON_S + QUICK.command
    one.put(record_of("b", blobs), blobs)
    told.wait_for(lambda: set(told.there) == {"b"})


def test_a_watcher_that_fails_is_told_the_rest(
    redis_server: RedisServer, open_tier: MakeRedis, caplog: pytest.LogCaptureFixture
) -> None:
    one, two = open_tier(redis_server.url), open_tier(redis_server.url)

    class Failing(Told):
        def appeared(self, record: DonorRecord) -> None:
            if record.id == "a":
                raise ValueError("a watcher's own trouble")
            super().appeared(record)

    told = Failing()
    two.watch(told)
    blobs = blobs_of(0, 100)
    one.put(record_of("a", blobs), blobs)
    one.put(record_of("b", blobs), blobs)
    told.wait_for(lambda: "b" in told.there)
    assert two.counts["errors"] >= 1


def test_a_watched_tier_closes_soon_and_leaves_no_thread(
    redis_server: RedisServer, open_tier: MakeRedis
) -> None:
    before = set(threading.enumerate())
    tier = open_tier(redis_server.url)
    tier.watch(Told())
    assert set(threading.enumerate()) - before
    start = time.monotonic()
    tier.close()
    assert time.monotonic() - start < SOON_S
    assert not [one for one in set(threading.enumerate()) - before if "redis" in one.name]


OTHER_PROCESS = """
import sys
from tier_conformance import blobs_of, record_of
from semshare.kv.tiers.redis import RedisTier

url, fingerprint, first, count, budget = sys.argv[1:]
tier = RedisTier(url, fingerprint=fingerprint, budget_bytes=int(budget), chunk_bytes=4096)
print("ready", flush=True)
sys.stdin.readline()
most = 0
for number in range(int(first), int(first) + int(count)):
    blobs = blobs_of(number, 40_000, 3_000)
    tier.put(record_of(f"donor-{number}", blobs), blobs)
    most = max(most, tier.used_bytes)
print(most, flush=True)
sys.stdin.readline()
tier.close()
"""


class Other:
    """A process with a tier of its own that puts some donors when it is told to."""

    def __init__(self, url: str, fingerprint: str, *numbers: int) -> None:
        here = str(Path(__file__).parent)
        paths = os.pathsep.join([here, *sys.path])
        self._process = subprocess.Popen(  # noqa: S603 - this very interpreter
            [sys.executable, "-c", OTHER_PROCESS, url, fingerprint, *map(str, numbers)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": paths},
        )

    def line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def go_on(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()

    def end(self) -> None:
        self._process.communicate("\n", timeout=30)


def test_processes_find_each_others_donors_and_keep_one_budget(
    redis_cluster: str, open_tier: MakeRedis
) -> None:
    budget = 10 * 44_000
    tier = open_tier(redis_cluster, budget, fingerprint="processes")
    told = Told()
    tier.watch(told)
    others = [Other(redis_cluster, "processes", first, 20, budget) for first in (0, 100)]
    try:
        assert [other.line() for other in others] == ["ready", "ready"]
        for other in others:
            other.go_on()
        assert all(int(other.line()) <= budget for other in others)
        there = names(tier)
        assert told.wait_for(lambda: set(told.there) == there) < SOON_S
        assert 8 <= len(there) <= 10
        assert {donor for _, donor in told.log} >= {"donor-19", "donor-119"}
        for donor in there:
            number = int(donor.removeprefix("donor-"))
            assert [whole(tier, donor, 0, 40_000), whole(tier, donor, 1, 3_000)] == blobs_of(
                number, 40_000, 3_000
            )
        assert tier.used_bytes <= budget
    finally:
        for other in others:
            other.end()
