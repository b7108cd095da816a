"""Clients of a load test: chats that stream, each over a connection of its own, and a prober."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from semshare_service.bench.connection import Connection
from semshare_service.replies import Body

_TIMEOUT_S = 600.0  # of one answer: with many clients and a real model it waits for long
_DEFAULT_WAIT_S = 1.0  # where a 429 does not say when to come back


class _Broken(Exception):
    """A stream that is not one of the service's, or ends with an error."""


@dataclass(slots=True)
class Tally:
    """What became of the requests. `durations` are of whole answers, in seconds."""

    rejected: int = 0
    durations: list[float] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)

    @property
    def requests(self) -> int:
        """All that were sent."""
        return len(self.durations) + self.rejected + self.errors.total()


async def run_clients(url: str, bodies: Sequence[Body], *, clients: int, seconds: float) -> Tally:
    """Let so many clients ask one thing after the other, for so long; then wait for the answers.

    Args:
        url: of the service, without a slash at its end.
        bodies: of requests to `/v1/chat/completions` that stream; each client begins elsewhere.
        clients: each has one request at a time, and waits as long as a 429 tells it to.
        seconds: no request begins later.

    """
    tally = Tally()
    until = time.monotonic() + seconds
    written = [json.dumps(body).encode() for body in bodies]

    async def client(number: int) -> None:
        connection = Connection(url)
        while time.monotonic() < until:
            await _ask(connection, written[number % len(written)], tally, until)
            number += 1
        connection.close()

    async with asyncio.TaskGroup() as group:
        for number in range(clients):
            group.create_task(client(number))
    return tally


async def _ask(connection: Connection, body: bytes, tally: Tally, until: float) -> None:
    started = time.monotonic()
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            response = await connection.post("/v1/chat/completions", body)
        ended = time.monotonic()
        if response.status == 429:
            tally.rejected += 1
            wait_s = float(response.headers.get("retry-after", _DEFAULT_WAIT_S))
            await asyncio.sleep(min(wait_s, max(until - started, 0.0)))
            return
        if response.status != 200:
            raise _Broken(f"HTTP {response.status}: {response.body[:200].decode()}")
        check_stream(response.body)
    except (_Broken, OSError) as error:
        connection.close()
        tally.errors[str(error) or type(error).__name__] += 1
    else:
        tally.durations.append(ended - started)


def check_stream(stream: bytes) -> None:
    """`_Broken` where the events of a whole answer tell an error, or something is missing.

    It looks from the end and no further than it has to: server and clients share the processor.
    """
    *events, last = stream.removesuffix(b"\n\n").split(b"\n\n")
    if last != b"data: [DONE]":
        raise _Broken(_error_of(last) or "the stream ended without [DONE]")
    for event in reversed(events):
        choices = _value_of(event)["choices"]
        if choices:  # usage comes after them
            if choices[0]["finish_reason"] is None:
                break
            return
    raise _Broken("the stream ended without a finish_reason")


def _error_of(event: bytes) -> str | None:
    return None if b'"error"' not in event else str(_value_of(event)["error"]["message"])


def _value_of(event: bytes) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(event.removeprefix(b"data: "))
    return value


@asynccontextmanager
async def probing_health(url: str) -> AsyncIterator[list[float]]:
    """Ask for `/health` again and again, at least once, while the block runs.

    In a process of its own (`probe`), so that it measures the service and not the clients' loop.

    Args:
        url: of the service.

    Returns:
        What holds, once the block has ended, the seconds of each answer, or `probe.TIMEOUT_S`.

    """
    latencies: list[float] = []
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "semshare_service.bench.probe", url),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        yield latencies
    finally:
        told, _ = await process.communicate(b"")  # closes its standard input, so that it ends
        latencies.extend(json.loads(told))
