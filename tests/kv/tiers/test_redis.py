"""The Redis tier over one server and over a cluster of three nodes."""

from __future__ import annotations

import ssl
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import trustme
from proxy import Proxy
from redis_fixtures import QUICK, MakeRedis
from redis_servers import RedisServer
from tier_conformance import (
    SLACK,
    MakeTier,
    TierConformance,
    assert_same,
    blobs_of,
    names,
    record_of,
    whole,
)

from semshare.errors import InvalidRequest, NotStored, TierFull, TierUnavailable
from semshare.kv.tiers.tier import ByteRange


class TestOneServer(TierConformance):
    @pytest.fixture
    def make_tier(self, redis_server: RedisServer, open_tier: MakeRedis) -> MakeTier:
        return lambda budget: open_tier(redis_server.url, budget)


class TestCluster(TierConformance):
    @pytest.fixture
    def make_tier(self, redis_cluster: str, open_tier: MakeRedis) -> MakeTier:
        return lambda budget: open_tier(redis_cluster, budget)


@pytest.fixture
def url(redis_server: RedisServer) -> str:
    return redis_server.url


def test_what_was_used_least_lately_goes_first(url: str, open_tier: MakeRedis) -> None:
    tier = open_tier(url, 3 * 100_000 + 10_000)
    blobs = blobs_of(0, 100_000)
    for donor in "abc":
        tier.put(record_of(donor, blobs), blobs)
    tier.used("a")
    tier.put(record_of("d", blobs), blobs)
    assert names(tier) == {"a", "c", "d"}
    assert tier.counts["evictions"] == 1


def test_two_processes_share_one_budget(url: str, open_tier: MakeRedis) -> None:
    one, two = (open_tier(url, 4 * 100_000 + SLACK) for _ in range(2))
    blobs = blobs_of(0, 100_000)
    one.put(record_of("pinned", blobs, pinned=True), blobs)
    for donor in "abcdef":
        (one if donor in "ace" else two).put(record_of(donor, blobs), blobs)
    assert names(one) == names(two) == {"pinned", "d", "e", "f"}
    assert one.used_bytes == two.used_bytes <= one.budget_bytes
    large = blobs_of(1, 370_000)
    with pytest.raises(TierFull, match="unpin"):
        two.put(record_of("large", large), large)
    assert names(two) == {"pinned", "d", "e", "f"}


def test_a_donor_of_another_process_is_read_without_being_listed(
    url: str, open_tier: MakeRedis
) -> None:
    one, two = open_tier(url), open_tier(url)
    blobs = blobs_of(0, 10_000)
    one.put(record_of("a", blobs), blobs)
    assert whole(two, "a", 0, 10_000) == blobs[0]
    # Replaced, it is not there once, since a reader's record is of the one before.
    again = blobs_of(1, 9_000)
    one.put(record_of("a", again), again)
    with pytest.raises(NotStored):
        whole(two, "a", 0, 9_000)
    assert whole(two, "a", 0, 9_000) == again[0]


def test_a_donor_that_lost_a_chunk_is_dropped_and_its_bytes_are_free(
    redis_server: RedisServer, open_tier: MakeRedis
) -> None:
    tier = open_tier(redis_server.url, fingerprint="loses chunks")
    blobs = blobs_of(0, 10_000, 10_000)
    for donor in "ab":
        tier.put(record_of(donor, blobs), blobs)
    for donor in "ab":
        (key,) = redis_server.client.keys(f"semshare:1:{{loses%20chunks.*.{donor}}}:*:1.2")
        redis_server.client.delete(key)
    assert whole(tier, "a", 0, 10_000) == blobs[0]
    with pytest.raises(NotStored):
        whole(tier, "a", 1, 10_000)
    assert list(tier.records()) == []  # b's loss shows without reading its blobs
    assert tier.counts["lost"] == 2
    assert tier.used_bytes == 0
    assert redis_server.client.keys("semshare:1:{loses%20chunks.*") == []


def test_records_that_are_none_are_dropped_and_counted(
    redis_server: RedisServer, open_tier: MakeRedis
) -> None:
    tier = open_tier(redis_server.url, fingerprint="forged")
    blobs = blobs_of(0, 10)
    for donor in "abcd":
        tier.put(record_of(donor, blobs), blobs)
    client = redis_server.client
    keys = {donor: client.keys(f"semshare:1:{{forged.*.{donor}}}:*:record")[0] for donor in "abcd"}
    client.setrange(keys["a"], 30, b"\xff")
    client.set(keys["b"], client.get(keys["c"]))  # another donor's
    assert names(tier) == {"c", "d"}
    assert tier.counts["quarantined"] == 2
    assert whole(tier, "d", 0, 10) == blobs[0]
    with pytest.raises(NotStored):
        whole(tier, "b", 0, 10)


def test_servers_let_values_expire_with_their_donor(
    redis_server: RedisServer, open_tier: MakeRedis
) -> None:
    tier = open_tier(redis_server.url, fingerprint="expires")
    blobs = blobs_of(0, 10_000)
    client = redis_server.client

    def lifetimes() -> set[bool]:
        keys = client.keys("semshare:1:{expires.*")
        assert len(keys) == 4
        return {client.pttl(key) > 0 for key in keys}

    record = record_of("a", blobs, expires_at=time.time() + 1000)
    tier.put(record, blobs)
    assert lifetimes() == {True}
    tier.update(replace(record, expires_at=float("inf")))
    assert lifetimes() == {False}
    tier.update(record)
    assert lifetimes() == {True}
    tier.update(replace(record, expires_at=time.time() - 1))
    assert client.keys("semshare:1:{expires.*") == []
    assert list(tier.records()) == []
    assert tier.used_bytes == 0


def test_no_namespace_reaches_another_ones_keys(
    redis_server: RedisServer, open_tier: MakeRedis
) -> None:
    tier = open_tier(redis_server.url, fingerprint="tenants")
    odd = ["a", "a.b", "b", "a}:x", "{a}", "", " ", "a\0b", "*", "ä", "a:b", "%61"]
    given = {}
    for number, (namespace, donor) in enumerate(pairwise([*odd, *odd])):
        blobs = blobs_of(number, 100)
        given[donor] = record_of(donor or "empty", blobs, namespace=namespace), blobs
    for record, blobs in given.values():
        tier.put(record, blobs)
    for record, blobs in given.values():
        assert whole(tier, record.id, 0, 100) == blobs[0]
    found = {record.id: record for record in tier.records()}
    for record, _ in given.values():
        assert_same(found[record.id], record)
    keys = redis_server.client.keys("semshare:1:{tenants.*}:*:record")
    assert len({key.split(b"}")[0] for key in keys}) == len(given)


def test_models_do_not_see_each_other(url: str, open_tier: MakeRedis) -> None:
    one, two = open_tier(url, fingerprint="one"), open_tier(url, fingerprint="one.two")
    blobs = blobs_of(0, 100)
    one.put(record_of("a", blobs), blobs)
    assert list(two.records()) == []
    assert two.used_bytes == 0
    with pytest.raises(NotStored):
        whole(two, "a", 0, 100)


def test_values_are_chunks_of_a_bounded_size(
    redis_server: RedisServer, open_tier: MakeRedis
) -> None:
    tier = open_tier(redis_server.url, fingerprint="chunks", chunk_bytes=1000)
    blobs = blobs_of(0, 3500, 1000, 999)
    tier.put(record_of("a", blobs), blobs)
    client = redis_server.client
    sizes = sorted(client.strlen(k) for k in client.keys("semshare:1:{chunks.*}:*:*.*"))
    assert sizes == [500, 999, 1000, 1000, 1000, 1000]
    # Every range there is, over the borders of chunks.
    cuts = [0, 1, 999, 1000, 1001, 2000, 3499, 3500]
    ranges = [ByteRange(a, b) for a in cuts for b in cuts if a <= b]
    found = tier.read("a", 0, ranges)
    assert found == [blobs[0][one.start : one.stop] for one in ranges]


def test_history_recorded_later_fits_in_what_was_counted(url: str, open_tier: MakeRedis) -> None:
    tier = open_tier(url)
    blobs = blobs_of(0, 10)
    record = record_of("a", blobs, ids=np.arange(3000, dtype=np.int32))
    tier.put(record, blobs)
    assert tier.used_bytes > 2 * 4 * 3000


def test_the_password_is_in_no_message(open_tier: MakeRedis) -> None:
    for url in ("http://u:secret@h", "redis://u:secret@h:x", "secret"):
        with pytest.raises(InvalidRequest) as problem:
            open_tier(url)
        assert "secret" not in str(problem.value)
    tier = open_tier("redis://u:secret@127.0.0.1:1")
    with pytest.raises(Exception, match=r"127\.0\.0\.1:1") as refused:
        tier.remove("a")
    assert "secret" not in f"{refused.value!r} {refused.value.__cause__!r} {tier!r}"


def test_a_password_and_a_database_come_from_the_url(
    own_server: RedisServer, open_tier: MakeRedis
) -> None:
    own_server.client.config_set("requirepass", "s3:cr/t")
    tier = open_tier(f"redis://:s3%3Acr%2Ft@127.0.0.1:{own_server.port}/2")
    blobs = blobs_of(0, 10)
    tier.put(record_of("a", blobs), blobs)
    assert names(tier) == {"a"}
    wrong = open_tier(own_server.url)
    with pytest.raises(Exception, match=r"127\.0\.0\.1"):
        list(wrong.records())


def test_a_closed_tier_opens_no_connection(url: str, open_tier: MakeRedis) -> None:
    tier = open_tier(url)
    assert tier.used_bytes == 0
    tier.close()
    with pytest.raises(TierUnavailable, match="closed"):
        list(tier.records())


def test_a_ledger_that_others_have_written_to_breaks_nothing(
    redis_server: RedisServer, open_tier: MakeRedis
) -> None:
    tier = open_tier(redis_server.url, fingerprint="written to")
    blobs = blobs_of(0, 100)
    tier.put(record_of("a", blobs), blobs)
    client = redis_server.client
    for number, entry in enumerate(["", "nonsense", f"1 0 9 g n 1 {1 << 50}", "\xff"]):
        client.hset("semshare:1:{written%20to}:donors", f"b{number}", entry)
    assert names(tier) == {"a"}
    with pytest.raises(NotStored):
        whole(tier, "b2", 0, 1)
    client.hset("semshare:1:{written%20to}:leases", "g", "1 0 d x nonsense")
    with pytest.raises(TierUnavailable, match="delete the keys"):
        tier.put(record_of("c", blobs), blobs)


def test_tls_is_spoken_and_its_certificate_checked(
    redis_server: RedisServer, open_tier: MakeRedis, tmp_path: Path
) -> None:
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    blobs = blobs_of(0, 300_000)
    with Proxy(redis_server.port, context).running() as proxy:
        trusted = f"rediss://127.0.0.1:{proxy.port}?ssl_ca_certs={tmp_path}/ca.pem"
        tier = open_tier(trusted, chunk_bytes=1 << 20)
        tier.put(record_of("a", blobs), blobs)
        assert whole(tier, "a", 0, 300_000) == blobs[0]
        proxy.delay_s, proxy.piece = 0.1, 1000
        start = time.monotonic()
        with pytest.raises(TierUnavailable):
            whole(tier, "a", 0, 300_000)
        assert time.monotonic() - start < QUICK.read + 1.5
        proxy.delay_s = 0.0
        stranger = open_tier(f"rediss://127.0.0.1:{proxy.port}")
        with pytest.raises(TierUnavailable, match="certificate"):
            list(stranger.records())


def test_a_cluster_whose_slots_have_moved_is_learned_anew(
    redis_cluster: str, open_tier: MakeRedis
) -> None:
    tier = open_tier(redis_cluster)
    blobs = blobs_of(0, 10_000)
    donors = [f"donor-{number}" for number in range(6)]
    tier.put(record_of(donors[0], blobs), blobs)
    for donor in donors:
        # What the tier believes is wrong for every slot: it is told so, and asks.
        owners = tier._servers._owners
        addresses = [address for _, address in owners]
        turned = addresses[1:] + addresses[:1]
        tier._servers._owners = [(end, to) for (end, _), to in zip(owners, turned, strict=True)]
        tier.put(record_of(donor, blobs), blobs)
        assert whole(tier, donor, 0, 10_000) == blobs[0]
    assert names(tier) == set(donors)
    assert tier.counts["errors"] == 0
