"""Engines that share a cluster of three servers: what one remembers the others use, and its faults.

What the tier does by itself is tested in `tests/kv/tiers`; here requests are answered over it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from below import push_out, settle, storing_engine
from kv.tiers.redis_servers import RedisServer, start_cluster
from prompts import answerable, words

from semshare import ReusePolicy, SemShare, StorageConfig

SPAN = ReusePolicy(mode="span")
OFF = ReusePolicy(mode="off")
TEXTS = [words(400, seed) for seed in range(8)]
LIMIT = 1e-4  # max abs difference of float32 logits
BOUND_S = 5.0  # of an answer while servers fail; a tiny model's own time is nothing beside it


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[list[RedisServer]]:
    servers = start_cluster(tmp_path)
    try:
        yield servers
    finally:
        for server in servers:
            server.kill()


def over(servers: list[RedisServer]) -> SemShare:
    nodes = ",".join(f"127.0.0.1:{server.port}" for server in servers)
    return storing_engine(storage=StorageConfig(redis_url=f"redis+cluster://{nodes}"))


def prompt(text: str, seed: int) -> str:
    return answerable(words(50, 100 + seed) + text, seed)


def reused(engine: SemShare, text: str, seed: int) -> int:
    return engine.generate(prompt(text, seed), max_tokens=1, policy=SPAN).provenance.reused


def until(condition: Callable[[], bool], seconds: float) -> float:
    """Seconds until it held."""
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < seconds
    return time.monotonic() - started


def test_what_one_engine_remembers_another_uses_within_a_second(
    cluster: list[RedisServer],
) -> None:
    with over(cluster) as one, over(cluster) as two:
        told = [one.remember(text).id for text in TEXTS]
        assert one.flush(30)
        assert until(lambda: {info.id for info in two.donors()} == set(told), 10.0) < 1.0
        for seed, text in enumerate(TEXTS):
            assert reused(two, text, seed) > 300
        two.forget(told[0])
        until(lambda: told[0] not in {info.id for info in one.donors()}, 10.0)
        assert reused(one, TEXTS[0], 20) == 0


def test_a_node_lost_costs_time_and_reuse_and_never_an_answer(
    cluster: list[RedisServer],
) -> None:
    with over(cluster) as engine:
        for text in TEXTS:
            engine.remember(text)
        push_out(engine)
        full = [engine.score(prompt(text, 0), "hello", policy=OFF).logits for text in TEXTS]
        cluster[1].kill()
        used = 0
        for text, expected in zip(TEXTS, full, strict=True):
            started = time.monotonic()
            got = engine.score(prompt(text, 0), "hello", policy=SPAN)
            assert time.monotonic() - started < BOUND_S
            used += got.provenance.reused > 0
            if got.provenance.reused == 0:
                assert (got.logits - expected).abs().max() < LIMIT
        assert 0 < used < len(TEXTS)  # each node has some of them
        settle(engine)
        cluster[1].start()  # empty: what it had is lost
        for seed, text in enumerate(TEXTS):
            engine.remember(text)
            push_out(engine)
            assert until(lambda t=text, s=seed: reused(engine, t, 40 + s) > 0, 30.0) < 30.0
