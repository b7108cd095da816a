"""The service over a real engine: a tiny random model in place of the bundled one."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

import pytest
from aiohttp.test_utils import TestClient
from service_helpers import running, status_where, url_of
from tiny import CONTEXT, tiny_engine

from semshare import Divergence, ReusePolicy, SemShare
from semshare.engine.executor import Executor, ForwardResult
from semshare.engine.rows import DecodeRows, Rows
from semshare.errors import InvalidRequest, NotFound, PoolExhausted, PromptTooLong
from semshare_service.client import AsyncClient
from semshare_service.context import SERVICE
from semshare_service.tenants import ANYONE, Tenant

TEXT = "A donor's text, long enough that its tokens are worth reusing somewhere else. " * 3
SHIFTED = f"Another instruction comes first. {TEXT} And what of it?"
SPAN = ReusePolicy(mode="span", recompute=0.0)
OFF = ReusePolicy(mode="off")


@pytest.fixture
def real_engine() -> SemShare:
    return tiny_engine()


async def test_a_donor_serves_shifted_text(real_engine: SemShare) -> None:
    async with running(real_engine) as server, AsyncClient(url_of(server)) as client:
        donor = await client.remember(TEXT, pinned=True)
        assert donor.tokens == len(TEXT)
        assert list(await client.donors()) == [donor]
        plan = await client.match(SHIFTED, policy=SPAN)
        answer = await client.complete(SHIFTED, policy=SPAN, max_tokens=4)
        assert answer.reuse.tokens == plan.tokens
        assert answer.reuse.tokens["span"] > len(TEXT) // 2
        assert answer.reuse.compute_fraction == pytest.approx(plan.compute_fraction)
        assert answer.cached_tokens == answer.reuse.tokens["prefix"] == 0
        assert not answer.reuse.exact
        assert {run.donor for run in answer.reuse.spans} == {None, donor.id}
        assert answer.timings.ttft_s > 0
        await client.forget(donor.id)
        with pytest.raises(NotFound):
            await client.forget(donor.id)
        again = await client.match(SHIFTED, policy=SPAN)
        assert again.tokens["span"] == 0


async def test_the_planned_fraction_is_what_deviation_selection_runs(real_engine: SemShare) -> None:
    policy = ReusePolicy(mode="span", selection="deviation", recompute=0.3, only_unmatched=False)
    async with running(real_engine) as server, AsyncClient(url_of(server)) as client:
        await client.remember(TEXT)
        plan = await client.match(SHIFTED, policy=policy)
        answer = await client.complete(SHIFTED, policy=policy, max_tokens=1)
    assert plan.tokens["span"] > 0
    assert answer.reuse.compute_fraction == pytest.approx(plan.compute_fraction)
    without = plan.tokens["fresh"] / plan.prompt_tokens
    assert plan.compute_fraction > without + 0.1


async def test_requests_at_the_same_time_are_answered_in_one_batch(
    real_engine: SemShare, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = [f"{TEXT} Question {number}?" for number in range(6)]
    expected = [real_engine.generate(p, max_tokens=24, policy=OFF).text for p in prompts]
    rows: list[int] = []
    original = Executor.run

    def counting(executor: Executor, several: Sequence[Rows]) -> list[ForwardResult]:
        rows.append(sum(len(one.ids) for one in several if isinstance(one, DecodeRows)))
        return original(executor, several)

    monkeypatch.setattr(Executor, "run", counting)
    async with running(real_engine, concurrency=6) as server, AsyncClient(url_of(server)) as client:
        answers = await asyncio.gather(*(client.complete(p, max_tokens=24) for p in prompts))
    assert [answer.text for answer in answers] == expected
    assert max(rows) > 1


async def test_answers_are_the_engines_own(real_engine: SemShare) -> None:
    messages = [{"role": "user", "content": "hello"}]
    chat = tiny_engine().generate(messages, max_tokens=6, policy=OFF)
    text = tiny_engine().generate("hello", max_tokens=6, temperature=0.9, seed=5, policy=OFF)
    async with running(real_engine) as server, AsyncClient(url_of(server)) as client:
        answer = await client.chat(messages, max_tokens=6, policy=OFF)
        assert (answer.text, answer.prompt_tokens) == (chat.text, chat.prompt_tokens)
        answer = await client.complete("hello", max_tokens=6, temperature=0.9, seed=5, policy=OFF)
        assert (answer.text, answer.completion_tokens) == (text.text, len(text.token_ids))


async def test_logprobs_are_the_engines_own(real_engine: SemShare) -> None:
    own = tiny_engine().generate("hello", max_tokens=6, policy=OFF, logprobs=2)
    async with running(real_engine) as server, AsyncClient(url_of(server)) as client:
        text = await client.complete("hello", max_tokens=6, policy=OFF, logprobs=2)
        banned = own.token_ids[0]
        other = await client.complete(
            "hello", max_tokens=1, policy=OFF, logprobs=0, logit_bias={banned: -100.0}
        )
        with pytest.raises(InvalidRequest, match="logit_bias names token 1000"):
            await client.complete("hello", logit_bias={1000: 1.0})
    told = [found.logprob for found in text.choices[0].logprobs]
    assert told == [found.logprob for found in own.choices[0].logprobs]
    # Greedy, so that each token is the first of the likeliest.
    assert [found.top[0][1] for found in text.choices[0].logprobs] == told
    assert other.choices[0].logprobs[0].logprob < told[0]


async def test_a_repeated_prompt_is_cached_without_loss(real_engine: SemShare) -> None:
    async with running(real_engine) as server, AsyncClient(url_of(server)) as client:
        first = await client.complete(TEXT, max_tokens=2, policy=ReusePolicy(mode="prefix"))
        second = await client.complete(TEXT, max_tokens=2, policy=ReusePolicy(mode="prefix"))
    assert first.cached_tokens == 0
    assert second.cached_tokens > len(TEXT) // 2
    assert second.reuse.exact
    assert second.text == first.text


async def test_a_pending_prompt_becomes_a_donor_when_idle(real_engine: SemShare) -> None:
    async with running(real_engine) as server, AsyncClient(url_of(server)) as client:
        await client.remember(TEXT)
        policy = ReusePolicy(mode="span", recompute=0.0, remember=True)
        answer = await client.complete(SHIFTED, policy=policy, max_tokens=2)
        assert (answer.remembered, answer.donor) == ("pending", None)
        await status_where(server, lambda _: real_engine.stats()["donors"] == 2)
        answer = await client.complete("An exact prompt", policy=policy, max_tokens=2)
        assert answer.remembered == "done"
        assert answer.donor is not None
        assert answer.donor.tokens == len("An exact prompt")


async def test_a_measured_divergence_above_the_bound_steps_reuse_down() -> None:
    async with (
        running(tiny_engine(max_divergence=1e-9), shadow_share=1.0) as server,
        AsyncClient(url_of(server)) as client,
    ):
        assert server.app is not None
        shadow = server.app[SERVICE].shadow
        told: list[tuple[Tenant, str, Divergence]] = []
        shadow.on_divergence.append(lambda *found: told.append(found))
        await client.remember(TEXT)
        first = await client.complete(SHIFTED, policy=SPAN, max_tokens=4)
        assert (first.reuse.mode, first.reuse.exact) == ("span", False)
        await status_where(server, lambda _: shadow.counts().measured == 1)
        (found,) = told
        assert found[:2] == (ANYONE, "span")
        assert found[2].kl > 1e-9
        second = await client.complete(SHIFTED, policy=SPAN, max_tokens=4)
        assert (second.reuse.mode, second.reuse.exact) == ("prefix", True)
        assert shadow.counts().steps_down == 1


async def test_namespaces_are_apart(real_engine: SemShare) -> None:
    async with running(real_engine) as server, AsyncClient(url_of(server)) as client:
        await client.remember(TEXT, namespace="a")
        assert not (await client.donors(namespace="b")).donors
        plan = await client.match(SHIFTED, policy=SPAN, namespace="b")
        assert plan.tokens["fresh"] == plan.prompt_tokens


async def test_errors_of_a_real_engine(caplog: pytest.LogCaptureFixture) -> None:
    small = tiny_engine(kv_budget_bytes=256 * 1024)
    with caplog.at_level(logging.DEBUG):
        async with running(small) as server, AsyncClient(url_of(server)) as client:
            with pytest.raises(PromptTooLong) as long:
                await client.complete("x" * 5000)
            assert (long.value.tokens, long.value.limit) == (5000, CONTEXT)
            with pytest.raises(PoolExhausted):
                await client.complete("x" * 4000)
            for prompt in ("", [300]):
                with pytest.raises(InvalidRequest):
                    await client.complete(prompt)
            assert (await client.complete("still here", max_tokens=1)).completion_tokens == 1
    assert "xxxx" not in caplog.text


async def test_a_stop_string_ends_the_answer(server_with_tiny_engine: TestClient) -> None:
    async with AsyncClient(url_of(server_with_tiny_engine)) as client:
        whole = await client.complete("hello", max_tokens=8, policy=OFF)
        assert len(whole.text) >= 2
        cut = await client.complete("hello", max_tokens=8, policy=OFF, stop=whole.text[1])
    assert cut.text == whole.text.split(whole.text[1])[0]
    assert cut.finish_reason == "stop"


@pytest.fixture
async def server_with_tiny_engine(real_engine: SemShare):  # type: ignore[no-untyped-def]
    async with running(real_engine) as server:
        yield server
