"""What /metrics tells, to whom, and while the model computes."""

from __future__ import annotations

import asyncio

from aiohttp.test_utils import TestClient
from fake_engine import FakeEngine
from prometheus_client.parser import text_string_to_metric_families
from service_helpers import entered, running

from semshare.types import Divergence, StorageUse, TierUse
from semshare_service.auth import hash_key
from semshare_service.routes.operations import METRICS
from semshare_service.tenants import Tenant

KEYS = {name: {"X-API-Key": name} for name in ("a", "b", "root")}
Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


async def scraped(client: TestClient, headers: dict[str, str] | None = None) -> Samples:
    async with client.get("/metrics", headers=headers) as response:
        assert response.status == 200
        assert response.content_type == "text/plain"
        text = await response.text()
    return {
        (sample.name.removeprefix("semshare:"), tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


async def complete(client: TestClient, **headers: str) -> None:
    body = {"prompt": "twelve chars", "max_tokens": 2}
    async with client.post("/v1/completions", json=body, headers=headers) as response:
        assert response.status == 200


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples[name, tuple(sorted(labels.items()))]


async def test_an_answer_is_counted(client: TestClient) -> None:
    await complete(client)  # 12 tokens: 4 of a prefix, 2 of a span; 2 generated; ttft_s is 1.5
    samples = await scraped(client)
    own = {"tenant": ""}
    assert value(samples, "prefix_cache_queries_total", **own) == 12
    assert value(samples, "prefix_cache_hits_total", **own) == 4
    reused = [
        value(samples, "reused_tokens_total", source=source, **own)
        for source in ("prefix", "span", "fuzzy")
    ]
    assert reused == [4, 2, 0]
    assert value(samples, "prompt_tokens_total", **own) == 12
    assert value(samples, "generation_tokens_total", **own) == 2
    assert value(samples, "compute_fraction_bucket", le="0.2", **own) == 0
    assert value(samples, "compute_fraction_bucket", le="0.3", **own) == 1
    assert value(samples, "time_to_first_token_seconds_sum", **own) >= 1.5
    assert value(samples, "request_success_total", finished_reason="length", **own) == 1
    assert value(samples, "kv_pool_bytes", state="used") == 300
    assert value(samples, "kv_pool_bytes", state="free") == 700
    assert value(samples, "donors_evicted_total") == 2
    assert (
        value(samples, "http_requests_total", route="/v1/completions", method="POST", status="200")
        == 1
    )


async def test_storage_is_told_by_tier(engine: FakeEngine) -> None:
    engine.storage = StorageUse(
        (
            TierUse("host", 10, 100, {"bytes_read": 1, "bytes_written": 2, "evictions": 3}),
            TierUse("redis", None, 200, {"quarantined": 6}),
        ),
        waiting=3,
        counters={
            "loads": 7,
            "loaded_tokens": 700,
            "loads_failed:TooLate": 1,
            "loads_without_room": 9,
            "loads_failed:NotStored": 2,
            "loads_failed:TierFull": 4,
            "donors_demoted": 5,
            "unavailable:redis": 11,
            "chunks_read:host": 8,
        },
    )
    async with running(engine) as client:
        samples = await scraped(client)
    told = {
        (name, *(value for _, value in labels)): number
        for (name, labels), number in samples.items()
        if "tier" in name or "donors_" in name or "storage" in name
    }
    assert told == {
        ("tier_bytes", "used", "host"): 10,
        ("tier_bytes", "budget", "host"): 100,
        ("tier_bytes", "budget", "redis"): 200,
        ("storage_jobs_waiting",): 3,
        ("tier_loads_total",): 7,
        ("tier_loaded_tokens_total",): 700,
        ("tier_load_failures_total", "timeout"): 1,
        ("tier_load_failures_total", "not_stored"): 2,
        ("tier_load_failures_total", "tier_full"): 4,
        ("tier_load_failures_total", "pool_exhausted"): 9,
        # What has not happened yet is told too, so that the first time is an increase.
        ("tier_load_failures_total", "tier_unavailable"): 0,
        ("tier_unavailable_total", "host"): 0,
        ("tier_unavailable_total", "redis"): 11,
        ("tier_chunks_read_total", "host"): 8,
        ("tier_chunks_read_total", "redis"): 0,
        ("tier_full_total", "host"): 0,
        ("tier_full_total", "redis"): 0,
        ("tier_quarantined_total", "host"): 0,
        ("tier_quarantined_total", "redis"): 6,
        ("tier_evictions_total", "host"): 3,
        ("tier_evictions_total", "redis"): 0,
        ("tier_read_bytes_total", "host"): 1,
        ("tier_read_bytes_total", "redis"): 0,
        ("tier_written_bytes_total", "host"): 2,
        ("tier_written_bytes_total", "redis"): 0,
        ("donors_demoted_total",): 5,
        ("donors_promoted_total",): 0,
        ("donors_written_total",): 0,
        ("donors_unwritten_total",): 0,
        ("donors_evicted_total",): 2,
    }


async def test_a_service_without_storage_tells_nothing_of_it(client: TestClient) -> None:
    assert not [name for name, _ in await scraped(client) if "tier" in name or "storage" in name]


async def test_paths_and_methods_of_clients_make_no_labels(client: TestClient) -> None:
    for path in ("/a", "/b"):
        async with client.request("PROPFIND", path) as response:
            assert response.status == 404
    samples = await scraped(client)
    label = {"route": "unmatched", "method": "other", "status": "404"}
    assert value(samples, "http_requests_total", **label) == 2
    assert not any("PROPFIND" in str(key) or "/a" in str(key) for key in samples)


async def test_it_answers_while_the_model_computes(client: TestClient, engine: FakeEngine) -> None:
    first = await scraped(client)
    assert value(first, "num_requests_running") == 0
    engine.hold.clear()  # `pool_use` waits too, as behind the real engine's lock
    request = asyncio.create_task(complete(client))
    await entered(engine)
    samples = await scraped(client)
    assert value(samples, "num_requests_running") == 1
    assert value(samples, "donors_evicted_total") == 2  # of the snapshot before
    age = value(samples, "engine_stats_age_seconds")
    assert age > value(first, "engine_stats_age_seconds")
    engine.hold.set()
    await request


async def test_a_tenant_sees_its_own_only_and_an_operator_all(engine: FakeEngine) -> None:
    tenants = {name: {"keys": [hash_key(name)], "operator": name == "root"} for name in KEYS}
    async with running(engine, tenants=tenants) as client:
        for name in ("a", "b"):
            await complete(client, **KEYS[name])
        assert client.app is not None
        client.app[METRICS].observe_divergence(Tenant("b"), "span", Divergence(0.02, 1.0, 8))
        of_a = await scraped(client, KEYS["a"])
        assert {dict(labels)["tenant"] for _, labels in of_a} == {"a"}
        samples = await scraped(client, KEYS["root"])
        assert value(samples, "prompt_tokens_total", tenant="a") == 12
        assert value(samples, "prompt_tokens_total", tenant="b") == 12
        bucket = {"tenant": "b", "mode": "span"}
        assert value(samples, "measured_divergence_bucket", le="0.01", **bucket) == 0
        assert value(samples, "measured_divergence_bucket", le="0.03", **bucket) == 1
        assert value(samples, "mode_steps_total", direction="down") == 0
