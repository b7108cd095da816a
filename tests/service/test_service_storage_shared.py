"""Services that share a Redis: what one remembers the others find, each tenant its own."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest
from aiohttp.test_utils import TestClient
from isolation_cases import INDEXES, TENANTS, Asker, Askers, completions
from kv.tiers.redis_servers import RedisServer
from tiny_service import load_tiny_models, started


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path)
    server.start()
    try:
        yield server
    finally:
        server.kill()


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    load_tiny_models(monkeypatch)


def sharing(redis: RedisServer) -> AbstractAsyncContextManager[TestClient]:
    return started(storage_redis_url=redis.url, tenants=TENANTS)


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Ask again until it is so: others are told behind requests."""
    async with asyncio.timeout(60):
        while not await condition():
            pass


async def test_what_one_service_remembers_another_finds(redis: RedisServer) -> None:
    async with sharing(redis) as one, sharing(redis) as two:
        donor = await Asker(one, "acme").remember()
        acme, other, boss = (Asker(two, key) for key in TENANTS)

        async def is_listed() -> bool:
            return await acme.listed() == [donor]

        await until(is_listed)
        assert await other.listed() == await boss.listed() == []
        for name, (prompt, policy) in INDEXES.items():
            assert await other.reused(prompt, policy) == 0, name
        await completions(Askers(None, acme, other, boss, donor))  # type: ignore[arg-type]
        (tier,) = (await boss.told("GET", "/v1/stats"))[1]["storage"]["tiers"]
        assert tier["name"] == "redis"
        assert tier["used_bytes"] > 0
        # What is deleted in one is gone in all.
        assert (await acme.told("DELETE", f"/v1/donors/{donor}"))[0] == 200

        async def is_gone() -> bool:
            return await Asker(one, "acme").listed() == []

        await until(is_gone)


async def test_a_server_that_dies_costs_no_request(redis: RedisServer) -> None:
    async with sharing(redis) as client:
        acme, _, boss = (Asker(client, key) for key in TENANTS)
        donor = await acme.remember()
    async with sharing(redis) as client:
        acme, _, boss = (Asker(client, key) for key in TENANTS)
        assert await acme.listed() == [donor]
        redis.kill()
        for prompt, policy in INDEXES.values():
            body = {"prompt": prompt, "max_tokens": 1, "semshare": policy}
            status, answer = await acme.told("POST", "/v1/completions", body)
            assert (status, answer["semshare"]["fallback"]) == (200, None)

        async def is_told() -> bool:
            text = (await boss.bytes_of("GET", "/metrics"))[1].decode()
            (calls,) = re.findall(r'tier_unavailable_total{tier="redis"} (\S+)', text)
            return float(calls) > 0 and 'tier_bytes{state="used"' not in text

        await until(is_told)
        (tier,) = (await boss.told("GET", "/v1/stats"))[1]["storage"]["tiers"]
        assert tier["used_bytes"] is None


async def test_a_server_that_is_away_at_the_start_is_used_once_it_is_there(
    redis: RedisServer,
) -> None:
    redis.kill()
    async with sharing(redis) as client:
        acme = Asker(client, "acme")
        await acme.remember()
        redis.start()

        async def is_written() -> bool:
            await acme.listed()
            return bool(redis.chunks())

        await until(is_written)
