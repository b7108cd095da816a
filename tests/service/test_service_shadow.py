"""Which answers are scored again, when, and what is told of it."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from aiohttp.test_utils import TestClient
from fake_engine import FakeEngine
from service_helpers import entered, running, status_where, url_of

from semshare import (
    Answer,
    Choice,
    Divergence,
    ModeDivergence,
    Provenance,
    ReusePolicy,
    Timings,
    Verification,
)
from semshare.planning.monitor import CLEAN_BEFORE_UP, DivergenceMonitor, modes_down_from
from semshare.types import Prompt, TokenSource
from semshare_service.client import AsyncClient
from semshare_service.context import SERVICE
from semshare_service.observed import Answered
from semshare_service.shadow import MAX_WAITING, Shadow
from semshare_service.tenants import Tenant

TENANT = Tenant("acme")
SPAN = ReusePolicy(mode="span")
MIXED = (TokenSource.PREFIX, TokenSource.SPAN, TokenSource.FRESH)
EXACT = (TokenSource.PREFIX, TokenSource.FRESH)
LONG = "long enough for a span"  # of the fake engine


def answered(
    policy: ReusePolicy | None = None,
    *,
    in_force: str | None = None,
    source: Sequence[TokenSource] = MIXED,
    prompt: str = "a secret prompt",
    answer: Sequence[int] = (1, 2, 3),
) -> Answered:
    nothing = np.full(len(source), -1, np.int32)
    provenance = Provenance(
        source=np.array(source, np.uint8),
        donors=(),
        donor=nothing,
        donor_position=nothing,
        compute_fraction=0.5,
        exact=False,
        mode=in_force or (policy or ReusePolicy()).mode,
    )
    choice = Choice("", list(answer), "stop", ())
    return Answered(
        request_id="r",
        route="chat",
        tenant=TENANT,
        namespace="n",
        prompt=prompt,
        policy=policy,
        answer=Answer("", list(answer), 3, "stop", provenance, Timings(), (choice,)),
        queue_s=0.0,
        ended=0.0,
    )


class Scorer(FakeEngine):
    """Measures what it is told to, and steps as the engine does."""

    def __init__(self, bound: float | None = None) -> None:
        super().__init__()
        self.kl = {"semantic": 0.0, "span": 0.0}
        self.approximate = True
        self.monitor = DivergenceMonitor(bound)

    def verify_answer(
        self,
        prompt: Prompt,
        answer: Sequence[int],
        *,
        policy: ReusePolicy | None = None,
        namespace: str = "default",
        between: Callable[[], None] = lambda: None,
    ) -> Verification:
        super().verify_answer(prompt, answer, policy=policy, namespace=namespace, between=between)
        assert policy is not None
        scored = []
        for mode in modes_down_from(policy.mode):
            divergence = Divergence(self.kl[mode], 1.0, len(answer))
            provenance = replace(answered(in_force=mode).answer.provenance, mode=mode)
            if not self.approximate:
                provenance = replace(provenance, exact=True)
            counts = self.monitor.observe(namespace, provenance, divergence)
            scored.append(ModeDivergence(mode, divergence, counts))
            bound = self.monitor.bound_of(policy)
            if bound is None or divergence.kl <= bound:
                break
        return Verification(tuple(scored), self.monitor.mode_for(policy, namespace))


def never() -> bool:
    return False


def always(
    shadow: Shadow, engine: Scorer, times: int = 1, policy: ReusePolicy | None = None
) -> None:
    for _ in range(times):
        assert shadow.offer(answered(policy))
        shadow.run_one(engine, never)


def test_a_share_of_what_reused_approximately_is_drawn() -> None:
    draws = iter([0.0, 0.24, 0.25, 0.9])
    shadow = Shadow(0.25, draw=lambda: next(draws))
    assert [shadow.offer(answered()) for _ in range(4)] == [True, True, False, False]
    assert (shadow.counts().sampled, shadow.counts().waiting) == (2, 2)


def test_exact_answers_are_drawn_only_where_their_mode_is_stepped_down() -> None:
    shadow = Shadow(1.0)
    assert not shadow.offer(answered(source=EXACT))
    assert not shadow.offer(answered(ReusePolicy(mode="prefix"), source=EXACT))
    assert shadow.offer(answered(source=EXACT, in_force="prefix"))
    assert shadow.offer(answered(SPAN, source=EXACT, in_force="prefix"))


def test_without_a_share_nothing_is_drawn() -> None:
    shadow = Shadow(0.0, draw=lambda: 0.0)
    assert not shadow.offer(answered())
    assert not shadow.is_on
    assert not shadow.has_work()


def test_what_finds_too_many_waiting_is_dropped_and_counted() -> None:
    shadow = Shadow(1.0)
    offered = [shadow.offer(answered(prompt=str(number))) for number in range(MAX_WAITING + 2)]
    assert offered == [True] * MAX_WAITING + [False] * 2
    counts = shadow.counts()
    assert (counts.sampled, counts.dropped, counts.waiting) == (MAX_WAITING + 2, 2, MAX_WAITING)
    engine = Scorer()
    shadow.run_one(engine, never)
    assert engine.calls[0][1]["prompt"] == "0"  # the oldest comes first
    assert shadow.offer(answered())


def test_reuse_alone_is_scored_over_the_beginning_of_the_answer() -> None:
    shadow, engine = Shadow(1.0), Scorer()
    told: list[tuple[Tenant, str, float]] = []
    shadow.on_divergence.append(lambda *found: told.append((*found[:2], found[2].kl)))
    engine.kl["span"] = 0.2
    shadow.offer(answered(replace(SPAN, retention=0.5), answer=range(100)))
    shadow.run_one(engine, never)
    assert engine.calls == [
        (
            "verify_answer",
            {
                "prompt": "a secret prompt",
                "answer": tuple(range(64)),
                "policy": SPAN,
                "namespace": "acme/n",
            },
        )
    ]
    assert told == [(TENANT, "span", 0.2)]
    assert shadow.counts().measured == 1


def test_what_reuses_nothing_any_more_is_no_measurement() -> None:
    shadow, engine = Shadow(1.0), Scorer(bound=0.5)
    engine.approximate, engine.kl["semantic"] = False, 9.0
    told: list[object] = []
    shadow.on_divergence.append(lambda *found: told.append(found))
    always(shadow, engine)
    assert told == []
    assert (shadow.counts().unchanged, shadow.counts().steps_down) == (1, 0)


def test_a_request_comes_first_and_the_answer_waits_again() -> None:
    shadow, engine = Shadow(1.0), Scorer()
    for prompt in ("first", "second"):
        shadow.offer(answered(prompt=prompt))
    shadow.run_one(engine, lambda: True)
    assert (shadow.counts().interrupted, shadow.counts().waiting) == (1, 2)
    shadow.run_one(engine, never)
    assert [arguments["prompt"] for _, arguments in engine.calls] == ["first", "first"]


def test_a_failure_is_counted_and_logged_without_the_prompt(
    caplog: pytest.LogCaptureFixture,
) -> None:
    shadow, engine = Shadow(1.0), Scorer()
    engine.error = RuntimeError("a secret prompt")
    always(shadow, engine)
    assert (shadow.counts().failed, shadow.counts().waiting) == (1, 0)
    assert "could not be scored again" in caplog.text
    assert "secret" not in caplog.text


def test_a_step_is_told_once_and_so_is_the_way_back(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    shadow, engine = Shadow(1.0), Scorer(bound=0.5)
    engine.kl |= {"semantic": 0.75, "span": 0.25}
    always(shadow, engine, times=3)
    assert caplog.messages == [
        "reuse steps down from semantic to span in namespace 'acme/n': KL 0.75 nats in mode "
        "semantic, KL 0.25 nats in mode span"
    ]
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    engine.kl["span"] = 3.0  # the mean of four is above the bound
    always(shadow, engine)
    assert "from span to prefix" in caplog.messages[1]
    engine.kl |= {"semantic": 0.5, "span": 0.5}
    always(shadow, engine, times=CLEAN_BEFORE_UP - 1)
    assert len(caplog.messages) == 2
    always(shadow, engine)
    assert "reuse steps up from prefix to semantic" in caplog.messages[2]
    assert caplog.records[2].levelname == "INFO"
    assert (shadow.counts().steps_down, shadow.counts().steps_up) == (2, 1)


def test_policies_with_other_bounds_step_by_themselves() -> None:
    shadow, engine = Shadow(1.0), Scorer()
    engine.kl["semantic"] = 0.3
    always(shadow, engine, policy=ReusePolicy(max_divergence=0.5))
    assert shadow.counts().steps_down == 0
    always(shadow, engine, policy=ReusePolicy(max_divergence=0.2))
    assert shadow.counts().steps_down == 1


# --------------------------------------------------------------- in the worker


def shadow_of(client: TestClient) -> Shadow:
    assert client.app is not None
    return client.app[SERVICE].shadow


async def test_scoring_waits_until_no_request_runs(engine: FakeEngine) -> None:
    async with (
        running(engine, shadow_share=1.0, concurrency=2) as server,
        AsyncClient(url_of(server)) as client,
    ):
        engine.hold.clear()
        held = [asyncio.create_task(client.complete(text)) for text in (LONG, LONG)]
        for _ in held:
            await entered(engine)
        engine.hold.set()
        await asyncio.gather(*held)
        await status_where(server, lambda _: shadow_of(server).counts().measured == 2)
    names = [name for name, _ in engine.calls]
    assert names == ["stream", "stream", "verify_answer", "verify_answer"]


class Pausing(FakeEngine):
    """Waits inside of the first scoring."""

    def __init__(self) -> None:
        super().__init__()
        self.scoring, self.resume = threading.Event(), threading.Event()

    def verify_answer(self, *arguments: Any, **options: Any) -> Verification:
        self.scoring.set()
        assert self.resume.wait(timeout=60)
        options["between"]()
        return super().verify_answer(*arguments, **options)


async def test_scoring_gives_way_to_a_request_and_starts_again() -> None:
    engine = Pausing()
    async with (
        running(engine, shadow_share=1.0, concurrency=2) as server,
        AsyncClient(url_of(server)) as client,
    ):
        await client.complete(LONG)
        await entered(engine)
        assert await asyncio.to_thread(engine.scoring.wait, 60)
        engine.hold.clear()
        second = asyncio.create_task(client.complete(LONG))
        await entered(engine)  # although the first is being scored
        engine.resume.set()
        await status_where(server, lambda _: shadow_of(server).counts().interrupted == 1)
        engine.hold.set()
        await second
        await status_where(server, lambda _: shadow_of(server).counts().measured == 2)
        assert shadow_of(server).counts().waiting == 0


async def test_a_bound_is_taken_where_divergence_is_measured(engine: FakeEngine) -> None:
    bounded = ReusePolicy(max_divergence=0.5)
    async with (
        running(engine, shadow_share=0.5) as server,
        AsyncClient(url_of(server)) as client,
    ):
        await client.complete("x", policy=bounded)
        await client.match("x", policy=bounded)
    assert [arguments["policy"] for _, arguments in engine.calls[:1]] == [bounded]
