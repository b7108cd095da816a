"""The official `openai` package talks to the service unchanged."""

from __future__ import annotations

import asyncio
from typing import Any

import openai
import pytest
from aiohttp.test_utils import TestClient
from fake_engine import WORDS, FakeEngine
from service_helpers import entered, running, status_where, url_of


def package_for(client: TestClient) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(
        base_url=f"{url_of(client)}/v1", api_key="unused", max_retries=0, timeout=60
    )


async def test_completions(client: TestClient, engine: FakeEngine) -> None:
    async with package_for(client) as package:
        answer = await package.completions.create(
            model="fake",
            prompt="twelve chars",
            max_tokens=2,
            temperature=0,
            n=1,
            user="me",
            extra_body={"semshare": {"mode": "span"}},
        )
    assert answer.choices[0].text == "one two"
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.cached_tokens == 4
    assert answer.model_extra is not None
    assert answer.model_extra["semshare"]["mode"] == "span"


async def test_chat(client: TestClient, engine: FakeEngine) -> None:
    messages: list[Any] = [{"role": "user", "content": "hello"}]
    async with package_for(client) as package:
        answer = await package.chat.completions.create(
            model="fake", messages=messages, max_completion_tokens=9, seed=3, stop=["\n"]
        )
        message = answer.choices[0].message
        assert (message.role, message.content) == ("assistant", "".join(WORDS))
        # The package's own message object goes back as part of the next request.
        again = await package.chat.completions.create(
            model="fake", messages=[*messages, message, {"role": "user", "content": "more"}]
        )
    assert again.choices[0].finish_reason == "stop"
    assert engine.calls[1][1]["prompt"][1] == {"role": "assistant", "content": "".join(WORDS)}


async def test_models(client: TestClient) -> None:
    async with package_for(client) as package:
        assert [model.id async for model in package.models.list()] == ["fake"]


async def test_errors(client: TestClient, engine: FakeEngine) -> None:
    async with package_for(client) as package:
        with pytest.raises(openai.BadRequestError) as long:
            await package.completions.create(model="fake", prompt="x" * 2000)
        assert long.value.code == "context_length_exceeded"
        with pytest.raises(openai.BadRequestError) as streaming:
            await package.completions.create(model="fake", prompt="x", stream=True)
        assert streaming.value.param == "stream"
        with pytest.raises(openai.NotFoundError) as other:
            await package.completions.create(model="gpt-4", prompt="x")
        assert other.value.code == "model_not_found"
        engine.error = RuntimeError("internals")
        with pytest.raises(openai.InternalServerError):
            await package.completions.create(model="fake", prompt="x")


async def test_a_full_queue_is_a_rate_limit(engine: FakeEngine) -> None:
    async with running(engine, queue_limit=1) as client, package_for(client) as package:
        engine.hold.clear()
        held = [asyncio.create_task(package.completions.create(model="fake", prompt="a"))]
        await entered(engine)
        held.append(asyncio.create_task(package.completions.create(model="fake", prompt="b")))
        await status_where(client, lambda status: status.waiting == 1)
        with pytest.raises(openai.RateLimitError) as caught:
            await package.completions.create(model="fake", prompt="c")
        assert int(caught.value.response.headers["Retry-After"]) >= 1
        engine.hold.set()
        await asyncio.gather(*held)
