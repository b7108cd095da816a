"""A streamed answer: its pieces as they come, and the whole of it at the end."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import Any, Self

from semshare_service.client.loop_thread import LoopThread
from semshare_service.client.results import (
    Completion,
    CompletionChoice,
    Piece,
    assemble_completion,
    parse_pieces,
)
from semshare_service.client.sse import event_data
from semshare_service.errors import ServiceError, ServiceUnavailable, error_from_reply

OpenBytes = Callable[[], AbstractAsyncContextManager[AsyncIterator[bytes]]]
_DONE = "[DONE]"


class AsyncAnswerStream:
    """`async for piece in stream`, then `stream.result`. The request is sent at the first piece.

    Leaving early hangs up, and the service stops computing: at the end of `async with`, by
    `close`, or soon after a `break`. A stream can be read once.
    """

    def __init__(self, open_bytes: OpenBytes) -> None:
        self._open_bytes = open_bytes
        self._connection = AsyncExitStack()
        self._is_read = False
        self._result: Completion | None = None

    @property
    def result(self) -> Completion:
        """The whole answer with its provenance; `ServiceError` before the last piece was read."""
        if self._result is None:
            raise ServiceError("the answer has not ended: read the stream's pieces to the last")
        return self._result

    # A generator that nothing refers to but the loop over it, so that a `break` closes it.
    async def __aiter__(self) -> AsyncIterator[Piece]:
        if self._is_read:
            raise ServiceError("a stream can be read once: ask for another one")
        self._is_read = True
        answer = _Answer()
        async with self._connection:
            chunks = await self._connection.enter_async_context(self._open_bytes())
            async for data in event_data(chunks):
                if data == _DONE:
                    self._result = answer.whole()
                    break
                for piece in answer.add(_chunk(data)):
                    yield piece
            async for _ in chunks:  # to the end, so that the connection can be used again
                pass
        if self._result is None:
            raise ServiceUnavailable("the stream broke off before the answer's end: ask again")

    async def close(self) -> None:
        """Hang up. Harmless where the answer has ended."""
        self._is_read = True
        await self._connection.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


class AnswerStream:
    """`AsyncAnswerStream` without `async`: `for piece in stream`, then `stream.result`."""

    def __init__(self, stream: AsyncAnswerStream, thread: LoopThread) -> None:
        self._stream = stream
        self._thread = thread

    @property
    def result(self) -> Completion:
        """The whole answer with its provenance; `ServiceError` before the last piece was read."""
        return self._stream.result

    def __iter__(self) -> Iterator[Piece]:
        return self._thread.iterate(aiter(self._stream))

    def close(self) -> None:
        """Hang up. Harmless where the answer has ended."""
        self._thread.run(self._stream.close())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Answer:
    """What the chunks of a stream come to."""

    def __init__(self) -> None:
        self._fields: dict[str, Any] = {}  # `id`, `model`, `usage`, `semshare`: the last of each
        self._pieces: dict[int, list[Piece]] = {}  # by continuation

    def add(self, chunk: Mapping[str, Any]) -> list[Piece]:
        """The chunk's pieces."""
        try:
            pieces = parse_pieces(chunk)
        except (KeyError, TypeError, AttributeError) as error:
            raise _unreadable(error) from None
        for piece in pieces:
            self._pieces.setdefault(piece.index, []).append(piece)
        # `usage` is null in all chunks but the last.
        self._fields |= {name: value for name, value in chunk.items() if value is not None}
        return pieces

    def whole(self) -> Completion:
        """The answer, once all chunks have been added."""
        try:
            choices = [_joined(self._pieces[index]) for index in sorted(self._pieces)]
            return assemble_completion(self._fields, choices)
        except (KeyError, TypeError, IndexError) as error:
            raise _unreadable(error) from None


def _joined(pieces: list[Piece]) -> CompletionChoice:
    reasons = [piece.finish_reason for piece in pieces if piece.finish_reason is not None]
    return CompletionChoice(
        text="".join(piece.text for piece in pieces),
        finish_reason=reasons[-1],
        logprobs=tuple(logprob for piece in pieces for logprob in piece.logprobs),
    )


def _chunk(data: str) -> Mapping[str, Any]:
    """One chunk, or the error that the service ended the stream with."""
    try:
        chunk = json.loads(data)
    except ValueError as error:
        raise _unreadable(error) from None
    if not isinstance(chunk, Mapping):
        raise _unreadable(TypeError(f"a {type(chunk).__name__} in place of a chunk"))
    if "error" in chunk:
        raise error_from_reply(200, chunk)
    return chunk


def _unreadable(error: Exception) -> ServiceError:
    return ServiceError(
        f"the stream is not of the form this client reads ({error}): use a client of the "
        "service's version",
        status=200,
    )
