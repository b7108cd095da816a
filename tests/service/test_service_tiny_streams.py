"""Streams over a real engine: their text, and the KV that is free again when a client has left."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from aiohttp import ClientResponse
from aiohttp.test_utils import TestClient
from service_helpers import running, status_where
from tiny import tiny_engine

from semshare import ReusePolicy, SemShare

OFF = {"mode": "off"}  # nothing is kept of a prompt, so that all used KV is a request's
LONG = "A prompt that takes many steps beside another answer. " * 40


async def begun(client: TestClient, prompt: str, **fields: Any) -> ClientResponse:
    """A stream whose first event has come. It would go on for long."""
    body = {"prompt": prompt, "stream": True, "max_tokens": 2000, "semshare": OFF, **fields}
    response = await client.post("/v1/completions", json=body)
    assert response.status == 200
    assert (await response.content.readuntil(b"\n\n")).startswith(b"data: ")
    return response


@pytest.fixture
def endless() -> dict[str, Any]:
    """Never the end of the answer."""
    return {"logit_bias": {"0": -100}}


@pytest.mark.parametrize("n", [1, 3])
async def test_the_pieces_are_the_whole_answer(n: int) -> None:
    expected = tiny_engine().generate(
        "hello", n=n, max_tokens=12, temperature=0.9, seed=5, policy=ReusePolicy(mode="off")
    )
    body = {"prompt": "hello", "n": n, "max_tokens": 12, "temperature": 0.9, "seed": 5}
    async with running(tiny_engine()) as client:
        request = {**body, "stream": True, "semshare": OFF}
        async with client.post("/v1/completions", json=request) as response:
            lines = (await response.text()).split("\n\n")
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]
    texts = [""] * n
    for chunk in chunks:
        for choice in chunk["choices"]:
            texts[choice["index"]] += choice["text"]
    assert texts == [choice.text for choice in expected.choices]


async def test_a_client_that_leaves_frees_its_kv(endless: dict[str, Any]) -> None:
    engine: SemShare = tiny_engine()
    async with running(engine) as client:
        response = await begun(client, "hello", n=2, **endless)
        assert engine.pool.used_bytes > 0
        response.close()
        await status_where(client, lambda status: not status.running)
        assert engine.pool.used_bytes == 0


async def test_a_client_that_leaves_before_its_first_piece_frees_its_kv(
    endless: dict[str, Any],
) -> None:
    """Its prompt waits inside the scheduler, for the end of an answer that has no end yet."""
    engine: SemShare = tiny_engine(max_answers=1)
    scheduler = engine._session.scheduler
    async with running(engine, concurrency=2) as client:
        first = await begun(client, "hello", **endless)
        body = {"prompt": LONG, "stream": True, "semshare": OFF}
        gone = asyncio.create_task(client.post("/v1/completions", json=body))
        await status_where(client, lambda _: scheduler.waiting == 1)
        gone.cancel()  # closes its connection
        await status_where(client, lambda _: scheduler.waiting == 0)
        assert len(scheduler.active) == 1
        first.close()
        await status_where(client, lambda status: not status.running)
        assert engine.pool.used_bytes == 0
