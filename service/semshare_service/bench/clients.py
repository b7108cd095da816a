"""Clients of a load test: chats that stream, each over a connection of its own, and a prober."""

from __future__ import annotations

import asyncio
import http.client
import json
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from semshare_service.replies import Body

_TIMEOUT_S = 600.0  # of one answer: with many clients and a real model it waits for long
_DEFAULT_WAIT_S = 1.0  # where a 429 does not say when to come back
_PROBE_EVERY_S = 0.05
_PROBE_TIMEOUT_S = 30.0


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
    async with aiohttp.ClientSession(
        url,
        connector=aiohttp.TCPConnector(limit=0),
        timeout=aiohttp.ClientTimeout(total=_TIMEOUT_S),
    ) as session:

        async def client(number: int) -> None:
            while time.monotonic() < until:
                await _ask(session, bodies[number % len(bodies)], tally, until)
                number += 1

        async with asyncio.TaskGroup() as group:
            for number in range(clients):
                group.create_task(client(number))
    return tally


async def _ask(session: aiohttp.ClientSession, body: Body, tally: Tally, until: float) -> None:
    started = time.monotonic()
    try:
        async with session.post("/v1/chat/completions", json=body) as response:
            if response.status == 429:
                tally.rejected += 1
                wait_s = float(response.headers.get("Retry-After", _DEFAULT_WAIT_S))
                await asyncio.sleep(min(wait_s, max(until - started, 0.0)))
                return
            if response.status != 200:
                raise _Broken(f"HTTP {response.status}: {(await response.text())[:200]}")
            await _read_to_its_end(response)
    except (_Broken, aiohttp.ClientError, TimeoutError) as error:
        tally.errors[str(error) or type(error).__name__] += 1
    else:
        tally.durations.append(time.monotonic() - started)


async def _read_to_its_end(response: aiohttp.ClientResponse) -> None:
    """Read events up to `[DONE]`; `_Broken` where one tells an error or something is missing."""
    finished = False
    async for line in response.content:
        if not line.startswith(b"data: "):
            continue
        data = line.removeprefix(b"data: ").strip()
        if data == b"[DONE]":
            if not finished:
                raise _Broken("the stream ended without a finish_reason")
            return
        event: dict[str, Any] = json.loads(data)
        if "error" in event:
            raise _Broken(str(event["error"].get("message")))
        finished |= any(choice["finish_reason"] for choice in event["choices"])
    raise _Broken("the stream ended without [DONE]")


class HealthProber:
    """Asks for `/health` again and again, beside the load; a context manager.

    In a thread of its own, so that it measures the service and not the clients' event loop.

    Args:
        url: of the service.

    Attributes:
        latencies: of each answer, in seconds; the time-out's where none came.

    """

    def __init__(self, url: str) -> None:
        self.latencies: list[float] = []
        self._netloc = urlsplit(url).netloc
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._probe, name="health", daemon=True)

    def __enter__(self) -> HealthProber:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _probe(self) -> None:
        connection = http.client.HTTPConnection(self._netloc, timeout=_PROBE_TIMEOUT_S)
        while True:
            started = time.perf_counter()
            try:
                connection.request("GET", "/health")
                answered = connection.getresponse()
                answered.read()
                is_well = answered.status == 200
            except (OSError, http.client.HTTPException):
                connection.close()
                is_well = False
            self.latencies.append(time.perf_counter() - started if is_well else _PROBE_TIMEOUT_S)
            if self._stop.wait(_PROBE_EVERY_S):
                break
        connection.close()
