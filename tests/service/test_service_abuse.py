"""Clients that mean harm or are broken: a clear refusal, bounded memory, and the service lives."""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
import math
import re
import threading
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any

import aiohttp
import msgpack
import pytest
from fake_engine import FakeEngine
from hypothesis import given, settings
from hypothesis import strategies as st
from service_helpers import entered

from semshare_service.app import create_app
from semshare_service.serve import serve
from semshare_service.settings import ServiceSettings
from semshare_service.wire import MediaType, decode

MAX_BODY = 1 << 16
BODY_METHODS = ("POST", "PUT", "PATCH")
# All that there are, so that a new route is abused like the others.
ROUTES = sorted(
    (route.method, route.resource.canonical.replace("{", "").replace("}", ""))
    for route in create_app(FakeEngine(), ServiceSettings()).router.routes()
    if route.method in BODY_METHODS and route.resource is not None
)


@asynccontextmanager
async def serving(engine: FakeEngine, **values: Any) -> AsyncIterator[str]:
    """The whole service, as `semshare serve` binds it; its address."""
    address: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    chosen = ServiceSettings(
        port=0, shutdown_timeout_s=10, **{"max_body_bytes": MAX_BODY, "concurrency": 1, **values}
    )
    task = asyncio.create_task(serve(chosen, load=lambda: engine, on_listening=address.set_result))
    try:
        yield await address
    finally:
        engine.hold.set()
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


@pytest.fixture
async def address(engine: FakeEngine) -> AsyncIterator[str]:
    async with serving(engine) as bound:
        yield bound


async def test_health_is_answered_while_a_large_body_is_decoded(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoding, may_end = threading.Event(), threading.Event()

    def slow(body: bytes, form: MediaType) -> Any:
        decoding.set()
        assert may_end.wait(60)
        return decode(body, form)

    monkeypatch.setattr("semshare_service.exchange.decode", slow)
    monkeypatch.setattr("semshare_service.exchange._LARGE", 100)
    async with aiohttp.ClientSession(address) as session:
        body = {"prompt": "x" * 200}
        asked = asyncio.create_task(session.post("/v1/completions", json=body))
        assert await asyncio.to_thread(decoding.wait, 60)
        async with session.get("/health") as response:
            assert response.status == 200
        assert not asked.done()
        may_end.set()
        async with await asked as response:
            assert response.status == 200


async def connected(address: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, port = address.removeprefix("http://").split(":")
    return await asyncio.open_connection(host, int(port))


async def spoken(address: str, said: bytes) -> bytes:
    """What comes back until the service hangs up, or has heard that we have nothing more to say."""
    reader, writer = await connected(address)
    try:
        writer.write(said)
        return await heard(reader)
    finally:
        writer.close()


async def heard(reader: asyncio.StreamReader) -> bytes:
    """All until the other side hangs up, however it does."""
    found = b""
    async with asyncio.timeout(60):
        with suppress(ConnectionError):
            while part := await reader.read(1 << 16):
                found += part
    return found


async def assert_alive(address: str) -> None:
    told = await spoken(
        address, b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    )
    assert statuses(told) == [200]


def statuses(told: bytes) -> list[int]:
    """Of the responses, in their order."""
    return [int(digits) for digits in re.findall(rb"HTTP/1\.[01] (\d{3}) ", told)]


def refused(told: bytes) -> bool:
    """Every response is a 4xx."""
    return bool(statuses(told)) and all(400 <= status < 500 for status in statuses(told))


# ------------------------------------------------------------------ the head

BROKEN_HEADS = {
    "zeros": b"\0" * 5000 + b"\r\n\r\n",
    "a TLS hello": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(300) + b"\r\n\r\n",
    "no path": b"GET\r\n\r\n",
    "no such version": b"GET / HTTP/9.9\r\n\r\n",
    "a method of one's own": b"OBEY /health HTTP/1.1\r\nConnection: close\r\n\r\n",
    "an endless line": b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n",
    "an endless field": b"GET /health HTTP/1.1\r\nX: " + b"a" * 100_000 + b"\r\n\r\n",
    "endless fields": b"GET /health HTTP/1.1\r\n" + b"X: y\r\n" * 5000 + b"\r\n",
    "a field without a colon": b"GET /health HTTP/1.1\r\nnothing\r\n\r\n",
    "a field with a zero": b"GET /health HTTP/1.1\r\nX: a\0b\r\n\r\n",
    "two lengths": b"PUT /v1/donors HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n{}",
    "a negative length": b"PUT /v1/donors HTTP/1.1\r\nContent-Length: -1\r\n\r\n{}",
    "a length that is no number": b"PUT /v1/donors HTTP/1.1\r\nContent-Length: ten\r\n\r\n{}",
    "a length and chunks": b"PUT /v1/donors HTTP/1.1\r\nContent-Length: 2\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
}


@pytest.mark.parametrize("head", BROKEN_HEADS.values(), ids=list(BROKEN_HEADS))
async def test_a_broken_head_is_refused(
    address: str, head: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    assert refused(await spoken(address, head))
    await assert_alive(address)
    # One line that repeats nothing of what was sent, which may be a key or a prompt.
    told = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert [record.getMessage() for record in told if "127.0.0.1" not in record.message] == []
    assert not any(record.exc_info for record in told)


@pytest.mark.parametrize(
    "path",
    [
        "/../../etc/passwd",
        "/v1/donors/../../../etc/passwd",
        "/v1/donors/%2e%2e%2f%2e%2e%2fetc%2fpasswd",
        "/v1/donors/%00",
        "/v1/donors/%ff%fe",
        "/v1//donors",
        "/health/",
        "/v1/models/" + "a" * 8000,
        "/v1/donors?namespace=../x",
        "/v1/donors?namespace=" + "a" * 5000,
    ],
)
@pytest.mark.parametrize("method", ["GET", "DELETE"])
async def test_a_path_leads_nowhere_else(address: str, method: str, path: str) -> None:
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    assert refused(await spoken(address, head.encode()))
    await assert_alive(address)


async def test_what_follows_a_request_on_its_connection_is_read_alone(address: str) -> None:
    good = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
    told = await spoken(address, good + good + b"\xff\xfe garbage \r\n\r\n" + good)
    *before, last = statuses(told)
    assert last == 400
    assert set(before) <= {200}
    # Many at once, and gone before the first answer is read.
    _, writer = await connected(address)
    writer.write(good * 2000)
    writer.transport.abort()
    await assert_alive(address)


# ------------------------------------------------------------------ the body

JSON, MSGPACK = "application/json", "application/msgpack"
BROKEN_BODIES: dict[str, tuple[str, bytes]] = {
    "nothing": (JSON, b""),
    "half a map": (JSON, b'{"text": "a'),
    "deep arrays": (JSON, b"[" * 30_000),
    "deep maps": (JSON, b'{"a":' * 12_000),
    "a deep field": (JSON, b'{"semshare":' + b"[" * 5000 + b"]" * 5000 + b"}"),
    "not UTF-8": (JSON, b'{"text": "\xff\xfe"}'),
    "half a surrogate pair": (JSON, b'{"text": "\\ud800", "prompt": "\\ud800"}'),
    "NaN": (JSON, b'{"prompt": "x", "temperature": NaN}'),
    "an infinity in digits": (JSON, b'{"prompt": "x", "text": "x", "temperature": 1e999}'),
    "digits without end": (JSON, b'{"prompt": "x", "seed": ' + b"9" * 60_000 + b"}"),
    "a list": (JSON, b"[1, 2]"),
    "an array of 4 G": (MSGPACK, b"\xdd\xff\xff\xff\xff"),
    "a map of 4 G": (MSGPACK, b"\xdf\xff\xff\xff\xff"),
    "text of 4 GB": (MSGPACK, b"\xdb\xff\xff\xff\xff"),
    "bytes of 4 GB": (MSGPACK, b"\xc6\xff\xff\xff\xff"),
    "an extension of 4 GB": (MSGPACK, b"\xc9\xff\xff\xff\xff\x01"),
    "a timestamp": (MSGPACK, msgpack.packb({"text": msgpack.Timestamp(1)})),
    "bytes for text": (MSGPACK, msgpack.packb({"text": b"x", "prompt": b"x"})),
    "numbers as keys": (MSGPACK, msgpack.packb({1: "x"})),
    "msgpack's NaN": (MSGPACK, msgpack.packb({"prompt": "x", "temperature": math.nan})),
    "text that is not UTF-8": (MSGPACK, b"\x81\xa4text\xa2\xff\xfe"),
    "nested headers": (MSGPACK, b"\xdd\x00\x01\x00\x00" * 12_000),
    "a map within a map": (MSGPACK, b"\x81\xa1a" * 20_000),
    "another form": ("text/plain", b"hello"),
    "a form of a browser": ("application/x-www-form-urlencoded", b"text=x"),
    "too much": (JSON, b'{"text": "' + b"x" * MAX_BODY + b'"}'),
}


@pytest.mark.parametrize(("method", "path"), ROUTES)
async def test_a_broken_body_is_refused_in_the_one_form(
    address: str, method: str, path: str
) -> None:
    async with aiohttp.ClientSession(address) as session:
        for name, (content_type, body) in BROKEN_BODIES.items():
            headers = {"Content-Type": content_type, "Accept": JSON}
            async with session.request(method, path, data=body, headers=headers) as response:
                assert 400 <= response.status < 500, name
                error = (await response.json())["error"]
                assert error.keys() == {"message", "type", "param", "code"}, name
                assert len(error["message"]) < 1000, name
            async with session.get("/health") as response:
                assert response.status == 200


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "gzip, gzip", "nonsense"])
async def test_packed_bodies_are_unpacked_within_the_limit(address: str, encoding: str) -> None:
    bomb = gzip.compress(bytes(64 << 20))
    assert len(bomb) < MAX_BODY * 2
    headers = {"Content-Type": JSON, "Content-Encoding": encoding}
    tracemalloc.start()
    try:
        async with aiohttp.ClientSession(address) as session:
            with suppress(aiohttp.ClientConnectionError):  # it may hang up while we send
                async with session.put("/v1/donors", data=bomb, headers=headers) as response:
                    assert 400 <= response.status < 500
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 32 << 20
    await assert_alive(address)


async def test_headers_of_containers_allocate_no_more_than_they_hold(address: str) -> None:
    bodies = [body for kind, body in BROKEN_BODIES.values() if kind == MSGPACK]
    tracemalloc.start()
    try:
        async with aiohttp.ClientSession(address) as session:
            for body in bodies:
                headers = {"Content-Type": MSGPACK}
                async with session.put("/v1/donors", data=body, headers=headers) as response:
                    assert response.status == 400
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 32 << 20


# ------------------------------------------------------------- arbitrary values

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["span", "user", "x", "default", "../x", "\0"]),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=6), inner, max_size=4)
    ),
    max_leaves=12,
)
FIELDS = (
    *("prompt", "text", "messages", "ids", "namespace", "pinned", "semshare", "model", "n", "stop"),
    *("max_tokens", "temperature", "top_p", "top_k", "min_p", "logit_bias", "seed", "logprobs"),
    *("top_logprobs", "deadline_s", "stream", "stream_options", "ttl_s", "role", "content"),
    *("mode", "recompute", "max_divergence", "min_span", "retention", "repair", "selection"),
)
MESSAGES = st.lists(
    st.dictionaries(st.sampled_from(["role", "content", "name"]), VALUES, max_size=3), max_size=3
)
BODIES = st.one_of(
    VALUES,
    st.dictionaries(st.one_of(st.sampled_from(FIELDS), st.text(max_size=6)), VALUES, max_size=6),
    # A prompt that is right, so that the other fields are reached.
    st.dictionaries(st.sampled_from(FIELDS[4:]), VALUES, max_size=4).map(
        lambda fields: {"prompt": "x", **fields}
    ),
    st.builds(
        lambda messages, policy: {"messages": messages, "semshare": policy},
        MESSAGES,
        st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=3),
    ),
)
FORMS = st.sampled_from([(JSON, json.dumps), (MSGPACK, msgpack.packb)])
PACKED = st.one_of(
    st.builds(lambda form, body: (form[0], form[1](body)), FORMS, BODIES),
    st.tuples(st.sampled_from([JSON, MSGPACK]), st.binary(max_size=60)),
)


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_whatever_is_sent_is_no_fault_of_ours(method: str, path: str) -> None:
    # Not an async test, which hypothesis can't run: one loop for all examples.
    with asyncio.Runner() as runner:
        stack = AsyncExitStack()
        address = runner.run(stack.enter_async_context(serving(FakeEngine())))
        session = runner.run(stack.enter_async_context(opened(address)))

        async def send(content_type: str, body: str | bytes) -> None:
            headers = {"Content-Type": content_type, "Accept": JSON}
            async with session.request(method, path, data=body, headers=headers) as response:
                told = await response.text()
                assert response.status < 500 or response.status == 503, told
            async with session.get("/health") as response:
                assert response.status == 200

        @settings(max_examples=60, deadline=None)
        @given(PACKED)
        def check(packed: tuple[str, str | bytes]) -> None:
            runner.run(send(*packed))

        try:
            check()
        finally:
            runner.run(stack.aclose())


@asynccontextmanager
async def opened(address: str) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(address) as session:
        while True:  # until the model is loaded
            async with session.get("/ready") as response:
                if response.status == 200:
                    break
        yield session


# ------------------------------------------------------------- slow and idle ones


async def dripped(address: str, first: bytes) -> bytes:
    """Say `first`, then go on byte by byte until the service hangs up; what it said."""
    reader, writer = await connected(address)
    told = b""
    try:
        writer.write(first)
        async with asyncio.timeout(60):
            while not reader.at_eof():
                with suppress(ConnectionError):
                    writer.write(b"a")
                    await writer.drain()
                    with suppress(TimeoutError):
                        told += await asyncio.wait_for(reader.read(1 << 16), timeout=0.01)
    finally:
        writer.close()
    return told


async def test_a_head_that_drips_in_is_cut_off(engine: FakeEngine) -> None:
    async with serving(engine, read_timeout_s=0.3) as address:
        assert await dripped(address, b"GET /health HTTP/1.1\r\nX: ") == b""
        # Also behind a request that was answered.
        head = b"GET /health HTTP/1.1\r\nHost: localhost\r\n"
        told = await dripped(address, head + b"\r\n" + head + b"X: ")
        assert statuses(told) == [200]
        await assert_alive(address)


async def test_a_connection_that_says_nothing_is_cut_off(engine: FakeEngine) -> None:
    async with serving(engine, read_timeout_s=0.3) as address:
        assert await spoken(address, b"") == b""


async def test_a_body_that_drips_in_is_refused(engine: FakeEngine) -> None:
    head = (
        b"PUT /v1/donors HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        b"Content-Type: application/json\r\nContent-Length: 60000\r\n\r\n{"
    )
    async with serving(engine, read_timeout_s=0.3) as address:
        told = await dripped(address, head)
        assert statuses(told) == [408]
        assert b'"code":"body_too_slow"' in told
        await assert_alive(address)
    assert engine.calls == []


async def test_idle_connections_make_way(engine: FakeEngine) -> None:
    async with serving(engine, max_connections=8) as address:
        idle = []
        for _ in range(40):
            idle.append(await connected(address))
            idle[-1][1].write(b"GET /health HT")
            await assert_alive(address)
        assert [await heard(reader) for reader, _ in idle[:30]] == [b""] * 30
        for _, writer in idle:
            writer.close()


async def test_connections_with_a_request_in_progress_are_kept(engine: FakeEngine) -> None:
    body = b'{"prompt": "x"}'
    ask = (
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
    ) + body
    async with serving(engine, max_connections=4, concurrency=4) as address:
        async with opened(address):
            pass
        engine.hold.clear()
        asked = [asyncio.create_task(spoken(address, ask)) for _ in range(4)]
        for _ in asked:
            await entered(engine)
        told = await spoken(address, ask)
        assert statuses(told) == [503]
        assert b"max_connections" in told
        engine.hold.set()
        for answer in asked:
            assert statuses(await answer) == [200]
        await assert_alive(address)
