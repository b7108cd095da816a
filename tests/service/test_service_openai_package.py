"""The official `openai` package talks to the service unchanged."""

from __future__ import annotations

import asyncio
from typing import Any

import openai
import pytest
from aiohttp.test_utils import TestClient
from fake_engine import WORDS, FakeEngine
from service_helpers import entered, running, status_where, url_of, worker_of


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


async def test_several_completions_with_logprobs(client: TestClient, engine: FakeEngine) -> None:
    async with package_for(client) as package:
        answer = await package.completions.create(
            model="fake",
            prompt="x",
            n=2,
            max_tokens=2,
            logprobs=1,
            logit_bias={"7": -100},
            extra_body={"min_p": 0.1, "deadline_s": 30},
        )
    assert [(choice.index, choice.text) for choice in answer.choices] == [
        (0, "one two"),
        (1, " two three"),
    ]
    found = answer.choices[1].logprobs
    assert found is not None
    assert (found.tokens, found.token_logprobs) == ([" two", " three"], [-1.25, -1.25])
    assert found.top_logprobs == [
        {" three": -0.5, " two": -1.25},
        {" four": -0.5, " three": -1.25},
    ]
    assert found.text_offset == [0, 4]
    arguments = engine.calls[0][1]
    assert (arguments["logit_bias"], arguments["min_p"]) == ({7: -100.0}, 0.1)
    assert (arguments["n"], arguments["deadline_s"]) == (2, 30.0)


async def test_chat_with_logprobs(client: TestClient) -> None:
    messages: list[Any] = [{"role": "user", "content": "hello"}]
    async with package_for(client) as package:
        answer = await package.chat.completions.create(
            model="fake", messages=messages, n=2, max_tokens=1, logprobs=True, top_logprobs=2
        )
    found = answer.choices[1].logprobs
    assert found is not None
    assert found.content is not None
    (token,) = found.content
    assert (token.token, token.logprob, bytes(token.bytes or [])) == (" two", -1.25, b" two")
    assert [(other.token, other.logprob) for other in token.top_logprobs] == [
        (" three", -0.5),
        (" two", -1.25),
    ]


async def test_models(client: TestClient) -> None:
    async with package_for(client) as package:
        assert [model.id async for model in package.models.list()] == ["fake"]


async def test_errors(client: TestClient, engine: FakeEngine) -> None:
    async with package_for(client) as package:
        with pytest.raises(openai.BadRequestError) as long:
            await package.completions.create(model="fake", prompt="x" * 2000)
        assert long.value.code == "context_length_exceeded"
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


async def test_a_streamed_chat_with_usage(client: TestClient) -> None:
    messages: list[Any] = [{"role": "user", "content": "hello"}]
    texts = ["", ""]
    async with package_for(client) as package:
        stream = await package.chat.completions.create(
            model="fake",
            messages=messages,
            n=2,
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = [chunk async for chunk in stream]
    for chunk in chunks:
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts == ["one two three four", " two three four"]
    assert chunks[0].choices[0].delta.role == "assistant"
    usage = chunks[-1].usage
    assert usage is not None
    assert (usage.prompt_tokens, usage.completion_tokens) == (5, 7)
    assert usage.prompt_tokens_details is not None
    assert usage.prompt_tokens_details.cached_tokens == 4


async def test_the_synchronous_package_streams(client: TestClient) -> None:
    def complete() -> tuple[str, list[str | None]]:
        with openai.OpenAI(
            base_url=f"{url_of(client)}/v1", api_key="unused", max_retries=0, timeout=60
        ) as package:
            chunks = list(package.completions.create(model="fake", prompt="x", stream=True))
        choices = [chunk.choices[0] for chunk in chunks]
        return "".join(choice.text for choice in choices), [
            choice.finish_reason for choice in choices
        ]

    text, reasons = await asyncio.to_thread(complete)
    assert text == "".join(WORDS)
    assert reasons == [None] * 4 + ["stop"]


async def test_errors_of_streams_are_the_packages_own(
    client: TestClient, engine: FakeEngine
) -> None:
    async with package_for(client) as package:
        with pytest.raises(openai.BadRequestError) as long:
            await package.completions.create(model="fake", prompt="x" * 2000, stream=True)
        assert long.value.code == "context_length_exceeded"
        engine.hold_rest.clear()
        stream = await package.completions.create(model="fake", prompt="x", stream=True)
        assert (await anext(stream)).choices[0].text == "one"
        worker_of(client).drain()
        worker_of(client).give_up_running()
        with pytest.raises(openai.APIError, match="stopped before") as stopped:
            await anext(stream)
        assert stopped.value.code == "unavailable"


async def test_embeddings_and_one_model(client: TestClient) -> None:
    async with package_for(client) as package:
        assert (await package.models.retrieve("fake")).owned_by == "semshare"
        with pytest.raises(openai.NotFoundError) as refused:
            await package.embeddings.create(model="fake", input="x")
        assert refused.value.code == "not_offered"
