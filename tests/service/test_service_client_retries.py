"""What the clients send again, after how long, and what they never send twice."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from contract_app import Contract, listening
from hypothesis import given
from hypothesis import strategies as st

from semshare_service.client import NO_RETRIES, AsyncClient, RetryPolicy
from semshare_service.errors import QueueFull, ServiceUnavailable

BUSY = (429, {"Retry-After": "2"})
LOADING = (503, {"Retry-After": "1"})
POOL_FULL: tuple[int, dict[str, str]] = (503, {})
DROPPED = None


@dataclass
class Waits:
    """Stands in for sleeping: keeps the seconds, and lets the clock go on by them."""

    seconds: list[float] = field(default_factory=list)

    async def sleep(self, seconds: float) -> None:
        self.seconds.append(seconds)

    def clock(self) -> float:
        return sum(self.seconds)

    def policy(self, **fields: Any) -> RetryPolicy:
        """Draws the middle of each range."""
        found = RetryPolicy(draw=lambda: 0.5, sleep=self.sleep, clock=self.clock)
        return replace(found, **fields)


@pytest.fixture
def waits() -> Waits:
    return Waits()


@pytest.fixture
async def contract() -> Contract:
    return Contract()


@pytest.fixture
async def url(contract: Contract) -> AsyncIterator[str]:
    async with listening(contract) as address:
        yield address


async def _streamed(client: AsyncClient) -> str:
    stream = client.stream("x")
    return "".join([piece.text async for piece in stream if piece.index == 0])


CALLS: dict[str, Callable[[AsyncClient], Awaitable[Any]]] = {
    "complete": lambda client: client.complete("x"),
    "stream": _streamed,
    "donors": lambda client: client.donors(),
    "remember": lambda client: client.remember("x"),
    "match": lambda client: client.match("x"),
    "prefill": lambda client: client.prefill("x"),
    "metrics": lambda client: client.metrics(),
}


@pytest.mark.parametrize("name", CALLS)
async def test_what_the_service_refused_is_sent_again(
    contract: Contract, url: str, waits: Waits, name: str
) -> None:
    contract.refusals.extend([BUSY, LOADING, BUSY])
    async with AsyncClient(url, retries=waits.policy()) as client:
        assert await CALLS[name](client)
    assert len(contract.seen) == 4
    # Retry-After and half of 0.25, 0.5 and 1 s.
    assert waits.seconds == [2.125, 1.25, 2.5]


@pytest.mark.parametrize("name", CALLS)
async def test_a_refusal_without_retry_after_is_an_answer(
    contract: Contract, url: str, waits: Waits, name: str
) -> None:
    contract.refusals.append(POOL_FULL)
    async with AsyncClient(url, retries=waits.policy()) as client:
        with pytest.raises(ServiceUnavailable):
            await CALLS[name](client)
    assert (len(contract.seen), waits.seconds) == (1, [])


async def test_tries_are_bounded(contract: Contract, url: str, waits: Waits) -> None:
    contract.refusals.extend([BUSY] * 9)
    async with AsyncClient(url, retries=waits.policy(tries=3)) as client:
        with pytest.raises(QueueFull) as caught:
            await client.complete("x")
    assert caught.value.retry_after_s == 2.0
    assert (len(contract.seen), len(waits.seconds)) == (3, 2)


async def test_their_total_time_is_bounded(contract: Contract, url: str, waits: Waits) -> None:
    contract.refusals.extend([BUSY] * 9)
    async with AsyncClient(url, retries=waits.policy(tries=9, total_s=4.5)) as client:
        with pytest.raises(QueueFull):
            await client.complete("x")
    # 2.125 s, then 2.25 s would end at 4.375 s, then 2.5 s too late.
    assert waits.seconds == [2.125, 2.25]


@pytest.mark.parametrize("name", ["complete", "stream", "prefill"])
async def test_a_generation_that_may_have_begun_is_not_sent_again(
    contract: Contract, url: str, waits: Waits, name: str
) -> None:
    contract.refusals.extend([DROPPED] * 9)
    async with AsyncClient(url, retries=waits.policy()) as client:
        with pytest.raises(ServiceUnavailable, match="can't be reached"):
            await CALLS[name](client)
    assert (len(contract.seen), waits.seconds) == (1, [])


@pytest.mark.parametrize("name", ["donors", "remember", "match", "metrics"])
async def test_a_call_that_can_be_repeated_is_sent_again_when_its_connection_breaks(
    contract: Contract, url: str, waits: Waits, name: str
) -> None:
    contract.refusals.extend([DROPPED] * 3)
    async with AsyncClient(url, retries=waits.policy()) as client:
        assert await CALLS[name](client)
    assert len(contract.seen) == 4


@pytest.mark.parametrize("name", CALLS)
async def test_no_connection_no_harm(waits: Waits, name: str) -> None:
    with socket.socket() as taken:  # bound and not listening: connections are refused
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        async with AsyncClient(url, retries=waits.policy()) as client:
            with pytest.raises(ServiceUnavailable, match="semshare serve"):
                await CALLS[name](client)
    assert waits.seconds == [0.125, 0.25, 0.5]


async def test_an_upload_is_sent_once(contract: Contract, url: str, waits: Waits) -> None:
    contract.refusals.extend([BUSY, DROPPED])  # the bytes may be gone
    async with AsyncClient(url, retries=waits.policy()) as client:
        with pytest.raises(QueueFull):
            await client.upload_kv([b"kv"])
        with pytest.raises(ServiceUnavailable):
            await client.upload_kv([b"kv"])
    assert ([seen.path[:6] for seen in contract.seen], waits.seconds) == (["/v1/kv"] * 2, [])


@given(
    tried=st.integers(1, 20),
    draw=st.floats(0, 1),
    retry_after_s=st.none() | st.floats(0, 100),
    elapsed_s=st.floats(0, 60),
)
def test_waits_are_within_their_bounds(
    tried: int, draw: float, retry_after_s: float | None, elapsed_s: float
) -> None:
    policy = RetryPolicy(tries=10, draw=lambda: draw)
    wait_s = policy.wait_s(tried, elapsed_s, retry_after_s)
    asked_s = retry_after_s or 0.0
    if wait_s is None:
        longest_s = min(0.25 * 2 ** (tried - 1), 8.0)
        assert tried >= 10 or elapsed_s + asked_s + longest_s > 30
    else:
        assert tried < 10
        assert asked_s <= wait_s <= asked_s + 8.0
        assert elapsed_s + wait_s <= 30


def test_no_retries_is_none() -> None:
    assert NO_RETRIES.wait_s(1, 0.0, None) is None
