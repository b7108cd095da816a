"""A node of a cluster that is lost, with a replica and without."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from redis_fixtures import QUICK, SPARE_S, MakeRedis, until_it_works
from redis_servers import add_replica, start_cluster
from tier_conformance import blobs_of, names, record_of, whole

from semshare.errors import StorageError, TierUnavailable
from semshare.kv.tiers.redis import RedisTier


def test_a_lost_node_costs_its_own_donors_only(tmp_path: Path, open_tier: MakeRedis) -> None:
    servers = start_cluster(tmp_path)
    try:
        tier = open_tier("redis+cluster://" + ",".join(f"127.0.0.1:{s.port}" for s in servers))
        blobs = blobs_of(0, 20_000)
        donors = {f"donor-{number}" for number in range(24)}

        def put_all() -> None:
            for donor in donors:
                tier.put(record_of(donor, blobs), blobs)

        def readable() -> set[str]:
            found = set()
            for donor in sorted(donors):
                start = time.monotonic()
                try:
                    assert whole(tier, donor, 0, 20_000) == blobs[0]
                    found.add(donor)
                except StorageError:
                    pass
                assert time.monotonic() - start < QUICK.read + SPARE_S
            return found

        put_all()
        ledger = tier._servers.server_of(tier._keys.sums).address
        holder = next(one for one in servers if ledger.endswith(f":{one.port}"))
        lost = next(one for one in servers if one is not holder)

        lost.kill()
        left = readable()
        assert 0 < len(left) < len(donors)
        assert names(tier) == left
        lost.start()  # empty
        until_it_works(put_all)
        assert readable() == donors == names(tier)

        # The ledger's own node: what is known is read all the same, nothing is put.
        holder.kill()
        left = readable()
        assert 0 < len(left) < len(donors)
        assert_put_fails_in_time(tier)
        holder.start()
        until_it_works(put_all)
        assert readable() == donors == names(tier)
        assert tier.used_bytes < len(donors) * 21_000
        assert tier.counts["orphans"] > 0
        assert sum(len(server.chunks()) for server in servers) == len(donors) * 5
    finally:
        for server in servers:
            server.kill()


def test_a_replica_takes_over_with_all_it_has(tmp_path: Path, open_tier: MakeRedis) -> None:
    servers = start_cluster(tmp_path)
    try:
        tier = open_tier(f"redis+cluster://127.0.0.1:{servers[0].port}")
        blobs = blobs_of(0, 20_000)
        ledger = tier._servers.server_of(tier._keys.sums).address
        holder = next(one for one in servers if ledger.endswith(f":{one.port}"))
        servers.append(add_replica(holder, tmp_path / "replica"))
        donors = {f"donor-{number}" for number in range(12)}
        for donor in donors:
            tier.put(record_of(donor, blobs), blobs)
        holder.client.execute_command("WAIT", 1, 5000)
        holder.kill()
        until_it_works(lambda: tier.put(record_of("new", blobs), blobs), seconds=30)
        assert names(tier) == {*donors, "new"}
        for donor in donors:
            assert whole(tier, donor, 0, 20_000) == blobs[0]
        assert tier.counts["orphans"] == 0
        assert tier.counts["rebuilt"] == 1
    finally:
        for server in servers:
            server.kill()


def assert_put_fails_in_time(tier: RedisTier) -> None:
    blobs = blobs_of(1, 10)
    start = time.monotonic()
    with pytest.raises(TierUnavailable):
        tier.put(record_of("new", blobs), blobs)
    assert time.monotonic() - start < QUICK.write + SPARE_S
