"""JSON and msgpack on the wire, decoded within bounds.

Both carry the same values: maps with string keys, arrays, strings, numbers, booleans and null.
What a decoder can be made to build is bounded by the body's size, `MAX_DEPTH` and `MAX_ITEMS`.
"""

from __future__ import annotations

import json
import re
from enum import Enum
from typing import Any, NoReturn

import msgpack
import orjson

from semshare.errors import InvalidRequest
from semshare_service.errors import NotAcceptable, UnsupportedMediaType

MAX_DEPTH = 16  # containers within containers; requests need five
# Elements of one array. msgpack's decoder allocates what a header announces before it has read
# the elements, so headers nested in each other would otherwise multiply a small body.
MAX_ITEMS = 1 << 17
MAX_VALUES = MAX_ITEMS + (1 << 13)  # of one body, keys included: one long array and what is beside

# The end is optional, so that a body of quotes is read once and not again from each of them.
_JSON_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)


class MediaType(Enum):
    """The forms a body may have."""

    JSON = "application/json"
    MSGPACK = "application/msgpack"


_NAMES = {
    "application/json": MediaType.JSON,
    "application/msgpack": MediaType.MSGPACK,
    "application/x-msgpack": MediaType.MSGPACK,
    "application/vnd.msgpack": MediaType.MSGPACK,
}
# A client that wants events says so in the body; the headers only show that it can read them.
_LEFT_TO_US = frozenset(("*/*", "application/*", "text/event-stream"))


def request_media_type(content_type: str | None) -> MediaType:
    """The form a `Content-Type` header names; parameters are ignored.

    A body without one is refused too: a browser may send such a body to any address without
    asking, and a JSON one only after asking.
    """
    name = (content_type or "").split(";")[0].strip().lower()
    if name not in _NAMES:
        raise UnsupportedMediaType(
            f"the body's Content-Type is {name or 'missing'}: send application/json or "
            "application/msgpack"
        )
    return _NAMES[name]


def response_media_type(accept: str | None, default: MediaType) -> MediaType:
    """The form the `Accept` header prefers; `default` where it leaves the choice to us."""
    if not accept or not accept.strip():
        return default
    best: MediaType | None = None
    best_quality = 0.0
    for entry in accept.split(","):
        name, _, parameters = entry.partition(";")
        name = name.strip().lower()
        offered = default if name in _LEFT_TO_US else _NAMES.get(name)
        quality = _quality(parameters)
        if offered is not None and quality > best_quality:
            best, best_quality = offered, quality
    if best is None:
        raise NotAcceptable(
            "the Accept header excludes application/json and application/msgpack: accept one"
        )
    return best


def _quality(parameters: str) -> float:
    for parameter in parameters.split(";"):
        name, _, value = parameter.partition("=")
        if name.strip().lower() == "q":
            try:
                return float(value)
            except ValueError:
                return 0.0
    return 1.0


def encode(value: object, media_type: MediaType) -> bytes:
    """`value` as bytes. JSON has no way to write NaN and infinities: null stands for them."""
    if media_type is MediaType.JSON:
        return orjson.dumps(value)
    packed: bytes = msgpack.packb(value, use_bin_type=True)
    return packed


def decode(body: bytes, media_type: MediaType, *, max_values: float = MAX_VALUES) -> Any:
    """The value `body` holds; `InvalidRequest` where it is malformed or out of bounds.

    max_values: a request's; an answer may hold as many as the request made it.
    """
    if media_type is MediaType.JSON:
        _refuse_above(_json_values(body, max_values), max_values)
        value = _decode_json(body)
    else:
        value = _decode_msgpack(body, max_values)
    _check(value, max_values)
    return value


def _json_values(body: bytes, max_values: float) -> int:
    """A number of values that a JSON body holds at least; it may be twice as many.

    Decoding is one call that lets no other thread run, also where it makes millions of lists.
    """
    marks = _marks(body)
    # Strings may hold marks too: they are left out only where it matters, since it takes longer.
    return marks if marks <= max_values else _marks(_JSON_STRING.sub(b"", body))


def _marks(body: bytes) -> int:
    # Each container is a value, and so is each thing after a comma or a colon.
    return max(body.count(b"[") + body.count(b"{"), body.count(b",") + body.count(b":"))


def _decode_json(body: bytes) -> Any:
    try:
        return _JSON.decode(body.decode("utf-8"))
    except RecursionError:
        raise _too_deep() from None
    except ValueError as error:  # also UnicodeDecodeError and json.JSONDecodeError
        # JSONDecodeError.msg leaves the document out; the others say no more than where.
        detail = getattr(error, "msg", None) or getattr(error, "reason", None) or "bad number"
        raise InvalidRequest(f"the body is not JSON: {detail}") from None


def _decode_msgpack(body: bytes, max_values: float) -> Any:
    values = 0

    def counted(container: Any) -> Any:
        # As they come, because decoding lets no other thread run meanwhile.
        nonlocal values
        values += len(container)
        _refuse_above(values, max_values)
        return container

    try:
        return msgpack.unpackb(
            body,
            raw=False,
            strict_map_key=True,
            list_hook=counted,
            object_hook=counted,
            max_array_len=min(len(body), MAX_ITEMS),
            max_map_len=min(len(body), MAX_ITEMS),
            max_ext_len=0,
        )
    except InvalidRequest:
        raise
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
        raise InvalidRequest(
            f"the body is not msgpack within the limits: {type(error).__name__}"
        ) from None


def _refuse_constant(name: str) -> NoReturn:
    raise json.JSONDecodeError(f"{name} is not a JSON number", name, 0)


def _refuse_above(values: int, max_values: float) -> None:
    if values > max_values:
        raise InvalidRequest(f"the body holds over {max_values} values: send a smaller one")


_JSON = json.JSONDecoder(parse_constant=_refuse_constant)


def _check(value: object, max_values: float) -> None:
    """Walk the value without recursion and hold it to what both forms can carry."""
    level: list[object] = [value]
    total = 0
    for _ in range(MAX_DEPTH + 1):
        total += len(level)
        _refuse_above(total, max_values)
        deeper: list[object] = []
        for item in level:
            if isinstance(item, dict):
                if not all(isinstance(key, str) for key in item):
                    raise InvalidRequest("a map has a key that is not a string")
                deeper.extend(item)
                deeper.extend(item.values())
            elif isinstance(item, list):
                if len(item) > MAX_ITEMS:
                    raise InvalidRequest(f"an array has over {MAX_ITEMS} elements")
                deeper.extend(item)
            elif isinstance(item, str):
                _check_text(item)
            elif item is not None and not isinstance(item, (bool, int, float)):
                raise InvalidRequest(
                    f"the body holds a {type(item).__name__}: send text, numbers, booleans, null, "
                    "arrays and maps"
                )
        if not deeper:
            return
        level = deeper
    raise _too_deep()


def _check_text(text: str) -> None:
    # JSON can write half of a surrogate pair, which no tokenizer can read.
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise InvalidRequest("a string holds half of a surrogate pair: send valid text") from None


def _too_deep() -> InvalidRequest:
    return InvalidRequest(f"the body nests deeper than {MAX_DEPTH} levels")
