"""Streamed answers: their pieces, the whole at the end, and what happens where they end early."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from itertools import pairwise

import pytest
from contract_app import REUSE, Contract, chat_chunks, completion_chunks, listening
from hypothesis import given
from hypothesis import strategies as st

from semshare.config import ReusePolicy
from semshare.errors import PoolExhausted
from semshare_service.client import (
    AsyncClient,
    Client,
    CompletionChoice,
    NamedLogprob,
    Piece,
    sse,
)
from semshare_service.client.sse import event_data
from semshare_service.errors import ServiceError, ServiceUnavailable, error_body

HELLO = [{"role": "user", "content": "hello"}]
ONE = NamedLogprob("one", -0.5, (("one", -0.5),))


@pytest.fixture
async def contract() -> Contract:
    return Contract()


@pytest.fixture
async def url(contract: Contract) -> AsyncIterator[str]:
    async with listening(contract) as address:
        yield address


async def test_a_completion_in_pieces(contract: Contract, url: str) -> None:
    async with AsyncClient(url) as client:
        stream = client.stream("The ferry", n=2, policy=ReusePolicy(mode="span"), namespace="n")
        with pytest.raises(ServiceError, match="has not ended"):
            stream.result  # noqa: B018 - the property raises
        pieces = [piece async for piece in stream]
        with pytest.raises(ServiceError, match="read once"):
            await anext(aiter(stream))
    assert pieces == [
        Piece("one", 0, None, (ONE,)),
        Piece("uno", 1, "stop", ()),
        Piece(", two", 0, "length", ()),
    ]
    answer = stream.result
    assert answer.choices == (
        CompletionChoice("one, two", "length", (ONE,)),
        CompletionChoice("uno", "stop", ()),
    )
    assert (answer.text, answer.id, answer.model) == ("one, two", "cmpl-1", "fake")
    assert (answer.prompt_tokens, answer.completion_tokens, answer.cached_tokens) == (6, 3, 4)
    assert answer.reuse.tokens == REUSE["tokens"]
    assert (answer.reuse.spans[1].reason, answer.timings.ttft_s) == ("fact", 0.5)
    [seen] = contract.seen
    assert seen.body["stream"] is True
    assert seen.body["stream_options"] == {"include_usage": True}
    assert (seen.body["n"], seen.body["semshare"]["mode"]) == (2, "span")
    assert seen.headers["Content-Type"] == "application/msgpack"


async def test_a_chat_in_pieces(url: str) -> None:
    async with AsyncClient(url, wire="json") as client, client.stream_chat(HELLO) as stream:
        pieces = [(piece.text, piece.finish_reason) async for piece in stream]
    assert pieces == [("Ahoy", None), (" you", None), ("", "stop")]
    assert (stream.result.text, stream.result.finish_reason) == ("Ahoy you", "stop")


async def test_the_sync_client_streams_the_same(url: str) -> None:
    def use() -> None:
        with Client(url) as client:
            stream = client.stream("The ferry")
            assert [piece.text for piece in stream] == ["one", "uno", ", two"]
            assert stream.result.text == "one, two"
            with client.stream_chat(HELLO) as chat:
                assert "".join(piece.text for piece in chat) == "Ahoy you"

    await asyncio.to_thread(use)


async def test_a_stream_leaves_its_connection_to_the_next_call(
    contract: Contract, url: str
) -> None:
    async with AsyncClient(url) as client:
        for _ in range(2):
            async for _ in client.stream("The ferry"):
                pass
        await client.health()
    assert len({seen.connection for seen in contract.seen}) == 1


async def test_closing_early_hangs_up(contract: Contract, url: str) -> None:
    contract.hold = asyncio.Event()
    async with AsyncClient(url) as client:
        async with asyncio.timeout(60), client.stream("The ferry") as stream:
            async for piece in stream:
                assert piece.text == "one"
                break
        async with asyncio.timeout(60):
            await contract.left.wait()
        with pytest.raises(ServiceError, match="has not ended"):
            stream.result  # noqa: B018 - the property raises


async def test_leaving_the_sync_loop_hangs_up(contract: Contract, url: str) -> None:
    contract.hold = asyncio.Event()
    client = Client(url)

    def first() -> str:
        for piece in client.stream("The ferry"):
            return piece.text
        return ""

    assert await asyncio.to_thread(first) == "one"
    async with asyncio.timeout(60):
        await contract.left.wait()
    await asyncio.to_thread(client.close)


async def test_closing_the_client_ends_its_streams(contract: Contract, url: str) -> None:
    contract.hold = asyncio.Event()
    client = Client(url)
    pieces = iter(client.stream("The ferry"))
    assert (await asyncio.to_thread(next, pieces)).text == "one"
    await asyncio.to_thread(client.close)
    async with asyncio.timeout(60):
        await contract.left.wait()
    with pytest.raises(ServiceError, match="closed"):
        next(pieces)


async def test_an_error_in_the_middle_is_raised_after_what_came_before(
    contract: Contract, url: str
) -> None:
    error = error_body(str(PoolExhausted(3, 2, 10)), type_="server_error", code="pool_exhausted")
    contract.events = [json.dumps(completion_chunks()[0]), json.dumps(error)]
    async with AsyncClient(url) as client:
        pieces = aiter(client.stream("The ferry"))
        assert (await anext(pieces)).text == "one"
        with pytest.raises(PoolExhausted):
            await anext(pieces)


async def test_a_connection_that_breaks_in_the_middle(contract: Contract, url: str) -> None:
    contract.drop = True
    async with AsyncClient(url) as client:
        pieces = aiter(client.stream("The ferry"))
        assert (await anext(pieces)).text == "one"
        with pytest.raises(ServiceUnavailable, match="in the middle of an answer"):
            await anext(pieces)
    assert len(contract.seen) == 1  # and is not asked again


@pytest.mark.parametrize(
    ("events", "error", "message"),
    [
        ([json.dumps(chat_chunks()[1])], ServiceUnavailable, "broke off"),
        ([], ServiceUnavailable, "broke off"),
        (["{"], ServiceError, "not of the form"),
        (["[1]"], ServiceError, "a list in place of a chunk"),
        (['{"choices": [{"index": 0}]}'], ServiceError, "not of the form"),
        (["[DONE]"], ServiceError, "not of the form"),  # no answer at all
    ],
)
async def test_streams_that_are_no_answer(
    contract: Contract, url: str, events: list[str], error: type[ServiceError], message: str
) -> None:
    contract.events = events
    async with AsyncClient(url) as client:
        with pytest.raises(error, match=message):
            async for _ in client.stream_chat(HELLO):
                pass


@given(
    st.lists(st.text(st.characters(exclude_characters="\r\n", codec="utf-8")), max_size=5),
    st.sampled_from(["\n", "\r\n"]),
    st.lists(st.integers(0, 200), max_size=8),
)
def test_events_don_t_depend_on_how_the_bytes_are_cut(
    texts: list[str], end: str, cuts: list[int]
) -> None:
    lines = [f": a comment{end}event: x{end}data: {text}{end}data:more{end}{end}" for text in texts]
    stream = ("".join(lines) + f"data: cut off{end}").encode()
    edges = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    parts = [stream[start:stop] for start, stop in pairwise(edges)]
    assert asyncio.run(_events(parts)) == [f"{text}\nmore" for text in texts]


async def test_events_are_bounded_and_text(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ServiceError, match="UTF-8"):
        await _events([b"data: \xff\n\n"])
    monkeypatch.setattr(sse, "MAX_EVENT_BYTES", 10)
    assert await _events([b"data: 1234\n\n"]) == ["1234"]
    with pytest.raises(ServiceError, match="longer than 10 bytes"):
        await _events([b"data: 1", b"2345"])


async def _events(parts: list[bytes]) -> list[str]:
    async def chunks() -> AsyncIterator[bytes]:
        for part in parts:
            yield part

    return [data async for data in event_data(chunks())]
