"""A server that is down, slow, restarted empty, full, or cut off."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
from proxy import Proxy
from redis_fixtures import QUICK, SPARE_S, MakeRedis, Told, until_it_works
from redis_servers import RedisServer
from tier_conformance import blobs_of, names, record_of, whole

from semshare.errors import NotStored, TierUnavailable
from semshare.kv.tiers.redis import RedisTier
from semshare.kv.tiers.tier import Tier


@pytest.fixture
def proxy(own_server: RedisServer) -> Iterator[Proxy]:
    with Proxy(own_server.port).running() as running:
        yield running


def calls_of(tier: Tier) -> dict[str, tuple[float, Callable[[], object]]]:
    """Every call that asks the server, with its bound in seconds."""
    blobs = blobs_of(9, 50_000)
    record = record_of("other", blobs)
    return {
        "put": (QUICK.write, lambda: tier.put(record, blobs)),
        "read": (QUICK.read, lambda: whole(tier, "a", 0, 50_000)),
        "used": (QUICK.command, lambda: tier.used("a")),
        "update": (QUICK.command, lambda: tier.update(record_of("a", blobs))),
        "remove": (QUICK.command, lambda: tier.remove("other")),
        "quarantine": (QUICK.command, lambda: tier.quarantine("other", "for a test")),
        "records": (QUICK.listing, lambda: list(tier.records())),
        "used_bytes": (QUICK.command, lambda: tier.used_bytes),
    }


def assert_all_fail_in_time(tier: RedisTier) -> None:
    for name, (bound_s, call) in calls_of(tier).items():
        before = tier.counts["errors"]
        start = time.monotonic()
        with pytest.raises(TierUnavailable):
            call()
        assert time.monotonic() - start < bound_s + SPARE_S, name
        assert tier.counts["errors"] == before + 1, name


def test_a_server_that_is_down_fails_every_call_at_once_and_heals(
    own_server: RedisServer, open_tier: MakeRedis
) -> None:
    tier = open_tier(own_server.url)
    blobs = blobs_of(0, 50_000)
    tier.put(record_of("a", blobs), blobs)
    own_server.kill()
    start = time.monotonic()
    assert_all_fail_in_time(tier)
    assert time.monotonic() - start < 1.0 + SPARE_S
    own_server.start()
    # Restarted, it has lost everything, which is noticed and made good.
    until_it_works(lambda: tier.used("a"))
    with pytest.raises(NotStored):
        whole(tier, "a", 0, 50_000)
    until_it_works(lambda: tier.put(record_of("a", blobs), blobs))
    assert whole(tier, "a", 0, 50_000) == blobs[0]


def test_a_server_that_says_nothing_is_waited_for_within_the_bounds(
    own_server: RedisServer, proxy: Proxy, open_tier: MakeRedis
) -> None:
    tier = open_tier(proxy.url)
    blobs = blobs_of(0, 50_000)
    tier.put(record_of("a", blobs), blobs)
    proxy.silent = True
    assert_all_fail_in_time(tier)
    # After failures in a row no call waits at all.
    start = time.monotonic()
    for _ in range(50):
        with pytest.raises(TierUnavailable):
            tier.used("a")
    assert time.monotonic() - start < 50 * QUICK.command / 2
    proxy.silent = False
    until_it_works(lambda: tier.used("a"))
    assert whole(tier, "a", 0, 50_000) == blobs[0]


def test_bytes_that_trickle_in_are_not_waited_for_for_ever(
    own_server: RedisServer, proxy: Proxy, open_tier: MakeRedis
) -> None:
    tier = open_tier(proxy.url, chunk_bytes=1 << 20)
    blobs = blobs_of(0, 500_000)
    tier.put(record_of("a", blobs), blobs)
    # Each wait is short, all of them together take 50 s.
    proxy.delay_s, proxy.piece = 0.1, 1000
    start = time.monotonic()
    with pytest.raises(TierUnavailable):
        whole(tier, "a", 0, 500_000)
    assert time.monotonic() - start < QUICK.read + SPARE_S
    proxy.delay_s, proxy.piece = 0.0, 1 << 16
    until_it_works(lambda: tier.used("a"))
    assert whole(tier, "a", 0, 500_000) == blobs[0]


def test_a_little_latency_is_no_fault(
    own_server: RedisServer, proxy: Proxy, open_tier: MakeRedis
) -> None:
    tier = open_tier(proxy.url)
    proxy.delay_s = 0.02
    blobs = blobs_of(0, 50_000)
    tier.put(record_of("a", blobs), blobs)
    assert whole(tier, "a", 0, 50_000) == blobs[0]
    assert tier.counts["errors"] == 0


def test_a_connection_cut_in_mid_value_gives_no_part_of_it(
    own_server: RedisServer, proxy: Proxy, open_tier: MakeRedis
) -> None:
    tier = open_tier(proxy.url, chunk_bytes=1 << 20)
    blobs = blobs_of(0, 700_000)
    tier.put(record_of("a", blobs), blobs)
    for cut in (1, 1000, 350_000, 699_999):
        proxy.cut_after = cut
        with pytest.raises(TierUnavailable):
            whole(tier, "a", 0, 700_000)
        until_it_works(lambda: tier.used("a"))
        assert whole(tier, "a", 0, 700_000) == blobs[0]
    assert tier.counts["lost"] == 0


def test_a_put_that_is_cut_off_leaves_nothing_and_takes_no_room(
    own_server: RedisServer, proxy: Proxy, open_tier: MakeRedis
) -> None:
    tier = open_tier(proxy.url)
    blobs = blobs_of(0, 200_000)
    tier.put(record_of("warm", blobs_of(1, 10)), blobs_of(1, 10))
    used = tier.used_bytes
    for cut in (0, 20, 60, 150):
        proxy.cut_after = cut
        with pytest.raises(TierUnavailable):
            tier.put(record_of("a", blobs), blobs)
        proxy.cut_after = None
        until_it_works(lambda: tier.used("a"))
        # What could not be said in the cut is said by the next one that needs room.
        assert names(tier) == {"warm"}
        until_it_works(lambda: tier.put(record_of("b", blobs), blobs))
        tier.remove("b")
    assert tier.used_bytes == used
    assert len(own_server.chunks()) == 1


def test_a_writer_that_died_gives_its_room_back_when_its_lease_ends(
    own_server: RedisServer, open_tier: MakeRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = replace(QUICK, lease=0.5)
    dying = open_tier(own_server.url, 250_000, timeouts=quick)
    blobs = blobs_of(0, 150_000)

    class Died(Exception):
        pass

    def die(*_: object, **__: object) -> bool:
        raise Died

    monkeypatch.setattr(dying._values, "publish", die)
    with pytest.raises(Died):
        dying.put(record_of("a", blobs), blobs)
    assert dying.used_bytes > 150_000
    other = open_tier(own_server.url, 250_000, timeouts=quick)
    until_it_works(lambda: other.put(record_of("b", blobs), blobs))
    assert names(other) == {"b"}
    assert 150_000 < other.used_bytes < 200_000
    # Its chunks went too: by themselves, or deleted with the lease.
    assert len(own_server.chunks()) == -(-150_000 // 4096)


def test_a_ledger_that_was_lost_leaves_no_values_that_nobody_counts(
    own_server: RedisServer, open_tier: MakeRedis
) -> None:
    tier = open_tier(own_server.url)
    blobs = blobs_of(0, 50_000)
    for donor in "abc":
        tier.put(record_of(donor, blobs), blobs)
    client = own_server.client
    client.delete(*[key for key in client.keys("*") if key.count(b".") == 0])
    assert list(tier.records()) == []
    tier.put(record_of("d", blobs), blobs)
    assert tier.counts["orphans"] == 3 * (13 + 1)
    assert len(own_server.chunks()) == 13
    assert names(tier) == {"d"}


def test_a_server_that_is_full_for_reasons_of_its_own_still_gives_out(
    own_server: RedisServer, open_tier: MakeRedis
) -> None:
    tier = open_tier(own_server.url)
    blobs = blobs_of(0, 50_000)
    tier.put(record_of("a", blobs), blobs)
    own_server.client.config_set("maxmemory", "1mb")
    own_server.client.config_set("maxmemory-policy", "noeviction")
    for _ in range(3):
        with pytest.raises(TierUnavailable, match="maxmemory"):
            tier.put(record_of("b", blobs), blobs)
        assert whole(tier, "a", 0, 50_000) == blobs[0]
    own_server.client.config_set("maxmemory", "0")
    tier.put(record_of("b", blobs), blobs)


def test_a_watcher_is_told_what_a_restart_lost_and_what_came_after(
    own_server: RedisServer, open_tier: MakeRedis
) -> None:
    one, two = open_tier(own_server.url), open_tier(own_server.url)
    blobs = blobs_of(0, 5_000)
    one.put(record_of("a", blobs), blobs)
    assert names(two) == {"a"}
    told = Told()
    two.watch(told)
    own_server.kill()
    own_server.start()
    told.wait_for(lambda: ("vanished", "a") in told.log)
    until_it_works(lambda: one.put(record_of("b", blobs), blobs))
    told.wait_for(lambda: "b" in told.there)
    assert set(told.there) == {"b"}
