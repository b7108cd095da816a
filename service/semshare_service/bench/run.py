"""The service under load, and what it adds to a request.

semshare bench service --json
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
import numpy as np

from semshare.evaluation import prompts
from semshare.evaluation.progress import Step, progress_bar
from semshare.evaluation.texts import Split, paraphrase_pairs
from semshare_service.bench.clients import Tally, probing_health, run_clients
from semshare_service.bench.stub import StubEngine
from semshare_service.errors import ServiceUnavailable
from semshare_service.replies import Body
from semshare_service.settings import ServiceSettings

ANSWER_TOKENS = 16
OVERHEAD_CLIENTS = 8
STUB_TOKEN_S = 0.005
_OVERHEAD_SECONDS = 10.0  # at most; some hundred requests
_LOADING_S = 600.0


@dataclass(slots=True)
class _Server:
    """A running service; `slots_leaked` is known once it has ended."""

    url: str
    slots_leaked: int = 0


def run_service(
    *,
    clients: int = 200,
    seconds: float = 60.0,
    model: str = "smollm2",
    split: Split = "test",
    progress: bool = True,
) -> dict[str, Any]:
    """Measure the service in three parts, each over a server process of its own.

    `stub`, `model`: so many clients stream answers to rewritten prompts, over an engine that only
    takes its time and over the real one, while `/health` is asked for. `overhead`: 8 clients over
    the stub, against 8 threads that call the same stub in this process.

    Args:
        clients: at the same time, in the two loads.
        seconds: that each load lasts; the last answers come later.
        model: name, folder or hub id.
        split: of the rewritten passages.
        progress: a bar on standard error.

    Returns:
        The record described in `docs/evaluation.md`, JSON-ready.

    """
    return asyncio.run(_measure(clients, seconds, model, split, progress))


async def _measure(
    clients: int, seconds: float, model: str, split: Split, progress: bool
) -> dict[str, Any]:
    with progress_bar("service", 3, enabled=progress) as (note, advance):
        loads = []
        for name, token_s in (("stub", STUB_TOKEN_S), ("model", None)):
            note(name)
            loads.append({"engine": name, **await _load(clients, seconds, model, token_s, split)})
            advance(name)
        overhead = await _overhead(min(seconds, _OVERHEAD_SECONDS), split, note)
        advance("overhead")
    from semshare.evaluation.environment import machine, versions  # noqa: PLC0415 - loads torch

    return {
        "benchmark": "service",
        "clients": clients,
        "seconds": seconds,
        **{name: sum(load[name] for load in loads) for name in _COUNTED},
        **overhead,
        "health_p99_ms": max(load["health_p99_ms"] for load in loads),
        "loads": loads,
        "model": model,
        "machine": machine(),
        "versions": versions(),
    }


_COUNTED = ("requests", "errors", "rejected_429", "slots_leaked")


async def _load(
    clients: int, seconds: float, model: str, token_s: float | None, split: Split
) -> dict[str, Any]:
    settings = ServiceSettings(port=0, model=model, log_level="error")
    async with _serving(settings, token_s) as server:
        if token_s is None:
            await _remember(server.url, split)
        async with probing_health(server.url) as latencies:
            tally = await run_clients(
                server.url, request_bodies(split), clients=clients, seconds=seconds
            )
    return {
        **_counted(tally),
        "answer_p50_ms": _percentile_ms(tally.durations, 50),
        "health_p99_ms": _percentile_ms(latencies, 99),
        "slots_leaked": server.slots_leaked,
    }


def _counted(tally: Tally) -> dict[str, Any]:
    return {
        "requests": tally.requests,
        "errors": tally.errors.total(),
        "rejected_429": tally.rejected,
        "error_messages": dict(tally.errors.most_common(5)),
    }


async def _overhead(seconds: float, split: Split, note: Step) -> dict[str, float | None]:
    """By how much requests took longer than the median call in process."""
    bodies = request_bodies(split)
    note("in process")
    in_process = await asyncio.to_thread(_call_stub, bodies, seconds / 2)
    note("over HTTP")
    settings = ServiceSettings(port=0, log_level="error", concurrency=OVERHEAD_CLIENTS)
    async with _serving(settings, STUB_TOKEN_S) as server:
        tally = await run_clients(server.url, bodies, clients=OVERHEAD_CLIENTS, seconds=seconds)
    note("in process")  # once more: what else the machine does may have changed meanwhile
    in_process += await asyncio.to_thread(_call_stub, bodies, seconds / 2)
    typical = float(np.median(in_process))
    added = [duration - typical for duration in tally.durations]
    return {
        "overhead_p50_ms": _percentile_ms(added, 50),
        "overhead_p99_ms": _percentile_ms(added, 99),
    }


def _call_stub(bodies: Sequence[Body], seconds: float) -> list[float]:
    """Durations of whole answers in as many threads as there are clients."""
    stub = StubEngine(STUB_TOKEN_S)
    until = time.monotonic() + seconds

    def client(number: int) -> list[float]:
        durations: list[float] = []
        while time.monotonic() < until:
            started = time.monotonic()
            messages = bodies[(number + len(durations)) % len(bodies)]["messages"]
            for _ in stub.stream(messages, max_tokens=ANSWER_TOKENS):
                pass
            durations.append(time.monotonic() - started)
        return durations

    with ThreadPoolExecutor(OVERHEAD_CLIENTS) as threads:
        return [one for found in threads.map(client, range(OVERHEAD_CLIENTS)) for one in found]


def request_bodies(split: Split) -> list[Body]:
    """Questions about rewritten passages, whose originals are the donors."""
    return [
        {
            "messages": prompts.user(prompts.OPENING, pair.rewrite, question),
            "max_tokens": ANSWER_TOKENS,
            "stream": True,
        }
        for pair in paraphrase_pairs(split)
        for question in prompts.QUESTION.values()
    ]


async def _remember(url: str, split: Split) -> None:
    async with aiohttp.ClientSession(url, raise_for_status=True) as session:
        for pair in paraphrase_pairs(split):
            donor = {"messages": prompts.user(prompts.SUMMARIZE["challenge"], pair.source)}
            async with session.put("/v1/donors", json=donor):
                pass


@asynccontextmanager
async def _serving(settings: ServiceSettings, token_s: float | None) -> AsyncIterator[_Server]:
    """The service in a process of its own, its model loaded; see `server`."""
    arguments = [settings.model_dump_json(), *([] if token_s is None else [str(token_s)])]
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "semshare_service.bench.server",
        *arguments,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        server = _Server(**await _line(process))
        await _ready(server.url)
        yield server
        process.terminate()
        server.slots_leaked = (await _line(process))["slots_leaked"]
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


async def _line(process: asyncio.subprocess.Process) -> dict[str, Any]:
    assert process.stdout is not None  # noqa: S101 - a pipe was asked for
    line = await process.stdout.readline()
    if not line:
        raise ServiceUnavailable(
            "the service's process ended before it should: what it says is above"
        )
    record: dict[str, Any] = json.loads(line)
    return record


async def _ready(url: str) -> None:
    async with asyncio.timeout(_LOADING_S), aiohttp.ClientSession(url) as session:
        while True:
            async with session.get("/ready") as response:
                if response.status == 200:
                    return
            await asyncio.sleep(0.1)


def _percentile_ms(seconds: Sequence[float], percent: float) -> float | None:
    """In milliseconds; None where there is nothing to tell."""
    return round(float(np.percentile(seconds, percent)) * 1000, 3) if len(seconds) else None
