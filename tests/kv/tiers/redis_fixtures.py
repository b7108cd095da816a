"""Fixtures and helpers of the Redis tier's tests; conftest.py makes the fixtures known."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from redis_servers import RedisServer, start_cluster

from semshare.errors import StorageError
from semshare.kv.tiers.redis import RedisTier
from semshare.kv.tiers.redis_settings import RedisTimeouts
from semshare.kv.tiers.tier import DonorRecord

QUICK = RedisTimeouts(
    connect=0.3, command=0.4, read=0.8, write=2.0, listing=2.0, pause=0.05, longest_pause=0.2
)
MakeRedis = Callable[..., RedisTier]
SPARE_S = 1.5  # what a busy machine may take beyond a bound
HEALS_S = 10.0


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """One server, for tests that leave it as it is."""
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.kill()


@pytest.fixture(scope="session")
def redis_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a cluster of three nodes, for tests that leave it as it is."""
    servers = start_cluster(tmp_path_factory.mktemp("cluster"))
    yield f"redis+cluster://127.0.0.1:{servers[0].port}"
    for server in servers:
        server.kill()


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[RedisServer]:
    """A server that the test may do with as it likes."""
    server = RedisServer(tmp_path / "server")
    server.start()
    yield server
    server.kill()


@pytest.fixture
def open_tier() -> Iterator[MakeRedis]:
    """Opens tiers that are closed after the test; they share a model of the test's own."""
    opened: list[RedisTier] = []
    model = secrets.token_hex(8)

    def make(url: str, budget_bytes: int = 1 << 24, **options: Any) -> RedisTier:
        options = {"fingerprint": model, "chunk_bytes": 4096, "timeouts": QUICK, **options}
        opened.append(RedisTier(url, budget_bytes=budget_bytes, **options))
        return opened[-1]

    yield make
    for tier in opened:
        tier.close()


class Told:
    """A watcher that keeps what it was told."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.there: dict[str, DonorRecord] = {}
        self.log: list[tuple[str, str]] = []

    def appeared(self, record: DonorRecord) -> None:
        with self.changed:
            self.there[record.id] = record
            self.log.append(("appeared", record.id))
            self.changed.notify_all()

    def vanished(self, donor: str) -> None:
        with self.changed:
            self.there.pop(donor, None)
            self.log.append(("vanished", donor))
            self.changed.notify_all()

    def forgotten(self, donor: str) -> None:
        with self.changed:
            self.there.pop(donor, None)
            self.log.append(("forgotten", donor))
            self.changed.notify_all()

    def wait_for(self, condition: Callable[[], bool], seconds: float = 10.0) -> float:
        """Seconds until `condition` held."""
        start = time.monotonic()
        with self.changed:
            assert self.changed.wait_for(condition, seconds), self.log
        return time.monotonic() - start


def until_it_works(call: Callable[[], object], seconds: float = HEALS_S) -> None:
    """The fault is gone: the tier must find out by itself, and soon."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            call()
            return
        except StorageError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)
