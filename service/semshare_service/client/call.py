"""One request to the service, and the reading of its reply."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from semshare.errors import SemShareError
from semshare_service.errors import ServiceError, error_from_reply
from semshare_service.wire import MediaType, decode, request_media_type

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """One request and the reading of its answer.

    path:          with the query.
    parse:         what the decoded body of an answer stands for.
    body:          fields to send.
    upload:        bytes to send instead, as a stream; they can be read once.
    accept:        the form of the answer, where it is not that of the fields.
    answers:       statuses whose body `parse` reads.
    is_repeatable: whether doing it twice is the same as doing it once.
    """

    method: str
    path: str
    parse: Callable[[Mapping[str, Any]], T]
    body: dict[str, Any] | None = None
    upload: AsyncIterator[bytes] | None = None
    accept: str | None = None
    answers: tuple[int, ...] = (200,)
    is_repeatable: bool = False


@dataclass(frozen=True, slots=True)
class Reply:
    """A response that has been read to its end."""

    status: int
    content_type: str | None
    retry_after: str | None  # of the header
    body: bytes

    @property
    def retry_after_s(self) -> float | None:
        """Seconds; None where the header is missing, or a date, which the service never sends."""
        given = self.retry_after
        return float(given) if given is not None and given.isdecimal() else None


def read_reply(call: Call[T], reply: Reply) -> T:
    """What `call` returns, or the exception that the service's answer stands for."""
    value = _decoded(reply)
    if not isinstance(value, Mapping) or "error" in value:
        raise error_of(reply)
    try:
        return call.parse(value)
    except (KeyError, TypeError, IndexError) as error:
        raise ServiceError(
            f"the answer of {call.path.partition('?')[0]} is not of the form this client "
            f"reads ({error}): use a client of the service's version",
            status=reply.status,
        ) from None


def error_of(reply: Reply) -> SemShareError:
    """The exception that a reply which is no answer stands for."""
    return error_from_reply(reply.status, _decoded(reply), retry_after_s=reply.retry_after_s)


def media_type(name: str) -> MediaType:
    """`"json"` or `"msgpack"` as the form it names."""
    try:
        return MediaType[name.upper()]
    except KeyError:
        raise ServiceError(f"wire is {name!r}: choose 'msgpack' or 'json'") from None


def _decoded(reply: Reply) -> object:
    try:
        form = request_media_type(reply.content_type)
        return decode(reply.body, form, max_values=math.inf)
    except SemShareError:
        return None  # not ours: `error_from_reply` says so
