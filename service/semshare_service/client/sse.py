"""Server-sent events: the data of each, from bytes that come in any pieces."""

from __future__ import annotations

from collections.abc import AsyncIterator

from semshare_service.errors import ServiceError

# An answer's last event holds a run for each change of source in a prompt of up to 131,072 tokens.
MAX_EVENT_BYTES = 64 << 20


async def event_data(chunks: AsyncIterator[bytes]) -> AsyncIterator[str]:
    """The `data` of each event, its lines joined; comments and other fields are passed over.

    Raises `ServiceError` where an event is longer than `MAX_EVENT_BYTES` or is not UTF-8. An event
    that the end of the stream cuts off is none.
    """
    data: list[str] = []
    async for line in _lines(chunks):
        if not line:
            if data:
                yield "\n".join(data)
            data = []
            continue
        field, _, value = line.partition(":")
        if field == "data":
            data.append(value.removeprefix(" "))


async def _lines(chunks: AsyncIterator[bytes]) -> AsyncIterator[str]:
    """Lines that end with LF or CRLF, without their end."""
    parts: list[bytes] = []
    length = 0
    async for chunk in chunks:
        *ended, rest = chunk.split(b"\n")
        for end in ended:
            yield _text(b"".join((*parts, end)))
            parts, length = [], 0
        parts.append(rest)
        length += len(rest)
        if length > MAX_EVENT_BYTES:
            raise ServiceError(
                f"an event of the stream is longer than {MAX_EVENT_BYTES} bytes: is this the "
                "address of a semshare service?"
            )


def _text(line: bytes) -> str:
    try:
        return line.decode("utf-8").removesuffix("\r")
    except UnicodeDecodeError as error:
        raise ServiceError(
            f"an event of the stream is not UTF-8 ({error.reason}): is this the address of a "
            "semshare service?"
        ) from None
