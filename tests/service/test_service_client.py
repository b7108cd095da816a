"""`Client` and `AsyncClient` against a running service; they do the same."""

from __future__ import annotations

import asyncio
import inspect
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import numpy as np
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from fake_engine import WORDS, FakeEngine
from service_helpers import entered, running, status_where, url_of

from semshare.config import ReusePolicy
from semshare.errors import InvalidPolicy, NotFound, PoolExhausted, PromptTooLong
from semshare.types import DonorInfo, Timings
from semshare_service.app import create_app
from semshare_service.client import (
    NO_RETRIES,
    AsyncClient,
    Client,
    CompletionChoice,
    NamedLogprob,
)
from semshare_service.errors import (
    InvalidParameter,
    QueueFull,
    RequestTimedOut,
    ServiceError,
    ServiceUnavailable,
)
from semshare_service.settings import ServiceSettings

HELLO = [{"role": "user", "content": "hello"}, {"role": "user", "content": "you"}]


class Threaded:
    """`Client` with awaitable methods: each runs in a thread, so that one test fits both."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._client = Client(*arguments, **options)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._client, name)
        return lambda *arguments, **options: asyncio.to_thread(method, *arguments, **options)


@pytest.fixture(params=[AsyncClient, Threaded])
def make(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture(params=["msgpack", "json"])
async def caller(
    request: pytest.FixtureRequest, make: Any, client: TestClient
) -> AsyncIterator[Any]:
    made = make(url_of(client), wire=request.param)
    yield made
    await made.close()


async def test_complete(caller: Any, engine: FakeEngine) -> None:
    policy = ReusePolicy(mode="span", recompute=0.2)
    answer = await caller.complete(
        "twelve chars",
        max_tokens=2,
        temperature=0.5,
        top_p=0.5,
        top_k=2,
        seed=7,
        stop=("x", "y"),
        policy=policy,
        namespace="n",
        model="fake",
    )
    assert (answer.text, answer.finish_reason, answer.model) == ("one two", "length", "fake")
    assert (answer.prompt_tokens, answer.completion_tokens, answer.cached_tokens) == (12, 2, 4)
    assert answer.reuse.tokens == {"fresh": 6, "prefix": 4, "span": 2, "fuzzy": 0}
    assert (answer.reuse.mode, answer.reuse.exact, answer.reuse.fallback) == ("span", False, None)
    run = answer.reuse.spans[2]
    assert (run.start, run.end, run.source, run.donor, run.donor_start) == (6, 8, "span", "d0", 20)
    assert answer.timings == Timings(tokenize_s=0.5, ttft_s=1.5)
    assert answer.queue_s >= 0
    assert (answer.remembered, answer.donor) == ("no", None)
    arguments = engine.calls[0][1]
    assert arguments["policy"] == policy
    assert (arguments["namespace"], arguments["stop"]) == ("n", ("x", "y"))
    assert (arguments["seed"], arguments["top_k"], arguments["top_p"]) == (7, 2, 0.5)


async def test_complete_from_ids(caller: Any, engine: FakeEngine) -> None:
    assert (await caller.complete(np.arange(5))).prompt_tokens == 5
    assert engine.calls[0][1]["prompt"] == [0, 1, 2, 3, 4]


async def test_chat(caller: Any, engine: FakeEngine) -> None:
    answer = await caller.chat(HELLO, stop="x")
    assert (answer.text, answer.finish_reason) == ("".join(WORDS), "stop")
    assert engine.calls[0][1]["prompt"] == HELLO


async def test_choices_with_logprobs(caller: Any, engine: FakeEngine) -> None:
    options: dict[str, Any] = {
        "max_tokens": 1,
        "n": 2,
        "logprobs": 1,
        "min_p": 0.5,
        "logit_bias": {7: 2.0},
        "deadline_s": 60.0,
    }
    answer = await caller.complete("twelve chars", **options)
    assert answer.choices == (
        CompletionChoice(
            "one", "length", (NamedLogprob("one", -1.25, ((" two", -0.5), ("one", -1.25))),)
        ),
        CompletionChoice(
            " two", "length", (NamedLogprob(" two", -1.25, ((" three", -0.5), (" two", -1.25))),)
        ),
    )
    assert (answer.text, answer.completion_tokens) == ("one", 2)
    answer = await caller.chat(HELLO, **options)
    assert answer.choices[1] == CompletionChoice(
        " two", "length", (NamedLogprob(" two", -1.25, ((" three", -0.5),)),)
    )
    for _, arguments in engine.calls:
        assert {name: arguments[name] for name in options} == options
    assert (await caller.chat(HELLO)).choices[0].logprobs == ()


async def test_donors(caller: Any, engine: FakeEngine) -> None:
    donor = await caller.remember("text", namespace="a", pinned=True)
    assert donor == DonorInfo("d0", "a", 4, 400, pinned=True)
    await caller.remember(HELLO, namespace="a")
    await caller.remember(np.arange(3))
    assert [call for name, call in engine.calls if name == "remember"] == [
        "text",
        HELLO,
        [0, 1, 2],
    ]
    assert [found.id for found in await caller.donors(namespace="a")] == ["d0", "d1"]
    assert await caller.forget("d0", namespace="a") is None
    assert [found.id for found in await caller.donors(namespace="a")] == ["d1"]
    assert [found.namespace for found in await caller.donors()] == ["default"]


async def test_a_donor_id_may_hold_anything(caller: Any, engine: FakeEngine) -> None:
    strange = "a/b?c=ä %2F"
    with pytest.raises(NotFound):
        await caller.forget(strange)
    assert engine.calls == [("forget", strange)]


async def test_match(caller: Any, engine: FakeEngine) -> None:
    plan = await caller.match(list(range(12)), policy=ReusePolicy(mode="prefix"), namespace="n")
    assert (plan.prompt_tokens, plan.exact, plan.compute_fraction) == (12, False, 0.5)
    assert plan.tokens == {"fresh": 6, "prefix": 4, "span": 2, "fuzzy": 0}
    assert [run.reason for run in plan.spans][-1] == "edge"
    assert engine.calls[0][1] == {
        "prompt": list(range(12)),
        "policy": ReusePolicy(mode="prefix"),
        "namespace": "n",
    }
    assert (await caller.match("x")).prompt_tokens == 1
    assert engine.calls[1][1]["policy"] is None


async def test_health_and_ready(caller: Any) -> None:
    assert (await caller.health()).status == "ok"
    ready = await caller.ready()
    assert (ready.ready, ready.status, ready.model) == (True, "ready", "fake")
    assert (ready.waiting, ready.queue_limit, ready.running) == (0, 32, False)


async def test_errors_are_the_engines_own(caller: Any, engine: FakeEngine) -> None:
    with pytest.raises(PromptTooLong) as too_long:
        await caller.complete("x" * 2000)
    assert (too_long.value.tokens, too_long.value.limit) == (2000, 1024)
    with pytest.raises(NotFound, match="d9"):
        await caller.forget("d9")
    with pytest.raises(InvalidParameter) as wrong:
        await caller.complete("x", speed=3)
    assert wrong.value.param == "speed"
    with pytest.raises(InvalidPolicy):
        # A policy this client takes for valid and the service does not.
        await caller.complete("x", policy=_policy_of_the_future())
    engine.error = PoolExhausted(3, 2, 10)
    with pytest.raises(PoolExhausted):
        await caller.remember("x")
    engine.error = RuntimeError("internals")
    with pytest.raises(ServiceError, match="unexpected") as unexpected:
        await caller.remember("x")
    assert unexpected.value.status == 500


def _policy_of_the_future() -> ReusePolicy:
    policy = ReusePolicy()
    object.__setattr__(policy, "mode", "telepathy")
    return policy


async def test_a_full_queue(make: Any, engine: FakeEngine) -> None:
    async with running(engine, queue_limit=1) as client:
        caller = make(url_of(client), retries=NO_RETRIES)
        engine.hold.clear()
        first = asyncio.create_task(caller.complete("a"))
        await entered(engine)
        second = asyncio.create_task(caller.complete("b"))
        await status_where(client, lambda status: status.waiting == 1)
        with pytest.raises(QueueFull) as caught:
            await caller.complete("c")
        assert caught.value.retry_after_s is not None
        assert caught.value.retry_after_s >= 1
        engine.hold.set()
        await asyncio.gather(first, second)
        await caller.close()


async def test_a_time_out_of_the_service(make: Any, engine: FakeEngine) -> None:
    async with running(engine, request_timeout_s=0.05) as client:
        engine.hold.clear()
        caller = make(url_of(client))
        with pytest.raises(RequestTimedOut):
            await caller.complete("a")
        await caller.close()


async def test_a_time_out_of_the_client(make: Any, client: TestClient, engine: FakeEngine) -> None:
    engine.hold.clear()
    caller = make(url_of(client), timeout_s=0.05)
    with pytest.raises(ServiceUnavailable, match="timeout_s"):
        await caller.complete("a")
    await caller.close()


async def test_nobody_listens(make: Any) -> None:
    with socket.socket() as taken:  # bound and not listening: connections are refused
        taken.bind(("127.0.0.1", 0))
        caller = make(f"http://127.0.0.1:{taken.getsockname()[1]}/", retries=NO_RETRIES)
        with pytest.raises(ServiceUnavailable, match="semshare serve"):
            await caller.health()
        await caller.close()


async def test_a_model_that_loads_is_an_answer(make: Any, engine: FakeEngine) -> None:
    gate = threading.Event()

    def load() -> FakeEngine:
        assert gate.wait(60)
        return engine

    app = create_app(load, ServiceSettings(shutdown_timeout_s=10))
    async with TestServer(app) as server:
        caller = make(str(server.make_url("/")), retries=NO_RETRIES)
        ready = await caller.ready()
        assert (ready.ready, ready.status) == (False, "loading")
        with pytest.raises(ServiceUnavailable) as caught:
            await caller.complete("x")
        assert (caught.value.status, caught.value.retry_after_s) == (503, 1.0)
        gate.set()
        await caller.close()


@pytest.mark.parametrize(
    ("status", "content_type", "body"),
    [
        (502, "text/html", b"<h1>Bad gateway</h1>"),
        (200, "text/html", b"<h1>Welcome</h1>"),
        (200, "application/json", b"{"),
        (200, "application/json", b'{"status": "ok"}'),
    ],
)
async def test_what_is_no_semshare_service(
    make: Any, status: int, content_type: str, body: bytes
) -> None:
    async def page(_: web.Request) -> web.Response:
        return web.Response(status=status, body=body, content_type=content_type)

    app = web.Application()
    app.router.add_get("/health", page)
    async with TestServer(app) as server:
        caller = make(str(server.make_url("/")))
        with pytest.raises(ServiceError) as caught:
            await caller.health()
        assert caught.value.status == status
        await caller.close()


def test_an_unknown_wire_is_refused() -> None:
    with pytest.raises(ServiceError, match="'msgpack' or 'json'"):
        AsyncClient(wire="xml")


def test_both_clients_have_the_same_methods() -> None:
    public = [
        {name: inspect.signature(method) for name, method in vars(kind).items() if name[0] != "_"}
        for kind in (Client, AsyncClient)
    ]
    assert public[0].keys() == public[1].keys() >= {"complete", "stream", "donors", "close"}
    for name, signature in public[0].items():
        assert signature.parameters == public[1][name].parameters, name
        assert _returned(signature) == _returned(public[1][name]), name
    constructors = [inspect.signature(kind) for kind in (Client, AsyncClient)]
    assert constructors[0] == constructors[1]


def _returned(signature: inspect.Signature) -> str:
    """`AsyncIterator[…]`, `AsyncKVHandle` … stand for the same without `Async`."""
    return str(signature.return_annotation).replace("Async", "")


async def test_the_async_client_is_a_context_manager(client: TestClient) -> None:
    async with AsyncClient(url_of(client)) as caller:
        await caller.health()
    await caller.health()  # opens new connections
    await caller.close()


async def test_the_sync_client_is_a_context_manager_and_ends_its_thread(
    client: TestClient,
) -> None:
    def clients() -> int:
        return sum(one.name == "semshare-client" for one in threading.enumerate())

    def use() -> None:
        before = clients()
        with Client(url_of(client)) as caller:
            assert caller.health().status == "ok"
        assert clients() == before
        caller.close()  # again: nothing
        with pytest.raises(ServiceError, match="closed"):
            caller.health()

    await asyncio.to_thread(use)


async def test_the_sync_client_works_where_a_loop_runs() -> None:
    """As in a notebook: a call from a coroutine's own thread, to a service elsewhere."""
    with _service_in_a_thread() as url, Client(url) as caller:
        assert caller.health().status == "ok"


async def test_closing_the_sync_client_ends_its_requests(
    client: TestClient, engine: FakeEngine
) -> None:
    engine.hold.clear()
    caller = Client(url_of(client))
    request = asyncio.create_task(asyncio.to_thread(caller.complete, "x"))
    await entered(engine)
    await asyncio.to_thread(caller.close)
    with pytest.raises(ServiceError, match="closed while"):
        await request


class _service_in_a_thread:  # noqa: N801 - reads as the context manager it is
    """A service over a fake engine, on an event loop of its own."""

    def __enter__(self) -> str:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._service = running(FakeEngine())
        client = self._run(self._service.__aenter__())
        return url_of(client)

    def __exit__(self, *_: object) -> None:
        self._run(self._service.__aexit__(None, None, None))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _run(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("semshare")]
