"""The wire: both forms carry the same values, and no body builds more than it may."""

from __future__ import annotations

import json
import math
import struct
import tracemalloc

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from semshare.errors import InvalidRequest
from semshare_service.errors import NotAcceptable, UnsupportedMediaType
from semshare_service.wire import (
    MAX_DEPTH,
    MAX_ITEMS,
    MAX_VALUES,
    MediaType,
    decode,
    encode,
    request_media_type,
    response_media_type,
)

FORMS = list(MediaType)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(texts, inner, max_size=5),
    max_leaves=20,
)


def depth_of(value: object) -> int:
    if isinstance(value, dict):
        return 1 + max((depth_of(item) for item in value.values()), default=0)
    if isinstance(value, list):
        return 1 + max((depth_of(item) for item in value), default=0)
    return 0


@pytest.mark.parametrize("form", FORMS)
@given(value=values.filter(lambda value: depth_of(value) < MAX_DEPTH))
def test_what_is_encoded_is_decoded(form: MediaType, value: object) -> None:
    assert decode(encode(value, form), form) == value


@pytest.mark.parametrize("form", FORMS)
@given(body=st.binary(max_size=200))
def test_any_bytes_are_decoded_or_refused(form: MediaType, body: bytes) -> None:
    try:
        value = decode(body, form)
    except InvalidRequest:
        return
    assert depth_of(value) <= MAX_DEPTH


@given(value=values, cut=st.floats(0, 1, exclude_max=True))
def test_a_truncated_msgpack_body_is_refused(value: object, cut: float) -> None:
    body = encode(value, MediaType.MSGPACK)
    with pytest.raises(InvalidRequest, match="not msgpack"):
        decode(body[: math.floor(cut * len(body))], MediaType.MSGPACK)


@given(value=values, junk=st.binary(min_size=1, max_size=5))
def test_bytes_after_the_value_are_refused(value: object, junk: bytes) -> None:
    with pytest.raises(InvalidRequest):
        decode(encode(value, MediaType.MSGPACK) + junk, MediaType.MSGPACK)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("depth", [MAX_DEPTH, MAX_DEPTH + 1])
def test_depth_is_bounded(form: MediaType, depth: int) -> None:
    value: object = 1
    for _ in range(depth):
        value = [value]
    if depth <= MAX_DEPTH:
        assert decode(encode(value, form), form) == value
    else:
        with pytest.raises(InvalidRequest, match=f"deeper than {MAX_DEPTH}"):
            decode(encode(value, form), form)


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"[" * 100_000 + b"]" * 100_000,
        b'{"a": NaN}',
        b"[Infinity]",
        b"[1e999999, " + b"9" * 5000 + b"]",
        b'"\\ud800"',
        b'{"\\ud800": 1}',
        b'"\xff"',
        b"",
        b"{",
        "{}".encode("utf-16"),
        json.dumps([0] * (MAX_ITEMS + 1)).encode(),
    ],
)
def test_hostile_json_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidRequest):
        decode(body, MediaType.JSON)


@pytest.mark.parametrize(
    "body",
    [
        b"\xdd\xff\xff\xff\xff" * 500,  # arrays of 4 G elements within each other
        b"\xdd" + struct.pack(">I", MAX_ITEMS - 1) + b"\x91" * 500 + b"\xc0",
        b"\xdf\xff\xff\xff\xff",
        b"\xdb\xff\xff\xff\xff",
        b"\x91" * 600 + b"\xc0",
        msgpack.packb({1: 2}),
        msgpack.packb({"a": b"bytes"}),
        msgpack.packb(msgpack.ExtType(5, b"data")),
        msgpack.packb(msgpack.Timestamp(1, 2)),
        msgpack.packb([0] * (MAX_ITEMS + 1)),
        b"\xa2\xff\xfe",  # a string that is not UTF-8
        b"\xa3\xed\xa0\x80",  # half of a surrogate pair
        b"\xc1",  # never used
        b"",
    ],
)
def test_hostile_msgpack_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidRequest):
        decode(body, MediaType.MSGPACK)


def test_errors_do_not_quote_the_body() -> None:
    for form, body in (
        (MediaType.JSON, b'{"text": "my secret" '),
        (MediaType.MSGPACK, msgpack.packb("my secret")[:-1]),
    ):
        with pytest.raises(InvalidRequest) as caught:
            decode(body, form)
        assert "secret" not in str(caught.value)


def test_json_has_no_way_to_write_nan() -> None:
    assert encode([math.nan, math.inf, 1.5], MediaType.JSON) == b"[null,null,1.5]"


@pytest.mark.parametrize(
    ("header", "form"),
    [
        ("application/json", MediaType.JSON),
        ("Application/JSON; charset=utf-8", MediaType.JSON),
        ("application/msgpack", MediaType.MSGPACK),
        ("application/x-msgpack", MediaType.MSGPACK),
        ("application/vnd.msgpack", MediaType.MSGPACK),
    ],
)
def test_content_type(header: str, form: MediaType) -> None:
    assert request_media_type(header) is form


@pytest.mark.parametrize("header", [None, "", "text/plain", "multipart/form-data; boundary=x"])
def test_other_content_types_are_refused(header: str | None) -> None:
    with pytest.raises(UnsupportedMediaType, match="application/json or application/msgpack"):
        request_media_type(header)


@pytest.mark.parametrize(
    ("accept", "form"),
    [
        (None, MediaType.MSGPACK),
        ("", MediaType.MSGPACK),
        ("*/*", MediaType.MSGPACK),
        ("text/html, */*;q=0.1", MediaType.MSGPACK),
        ("application/json", MediaType.JSON),
        ("application/json;q=0.2, application/x-msgpack", MediaType.MSGPACK),
        ("application/json, application/msgpack;q=0.9", MediaType.JSON),
        ("application/msgpack;q=0, application/json;q=0.1", MediaType.JSON),
    ],
)
def test_accept(accept: str | None, form: MediaType) -> None:
    assert response_media_type(accept, MediaType.MSGPACK) is form


@pytest.mark.parametrize("accept", ["text/html", "application/json;q=0", "application/json;q=x"])
def test_an_accept_header_that_excludes_both(accept: str) -> None:
    with pytest.raises(NotAcceptable):
        response_media_type(accept, MediaType.JSON)


@pytest.mark.parametrize("form", FORMS)
def test_the_values_of_a_body_are_bounded_together(form: MediaType) -> None:
    half = [0] * (MAX_VALUES // 2)
    assert decode(encode([half, half[:-3]], form), form) == [half, half[:-3]]
    with pytest.raises(InvalidRequest, match=f"over {MAX_VALUES} values"):
        decode(encode([half, half], form), form)
    with pytest.raises(InvalidRequest, match=f"over {MAX_VALUES} values"):
        decode(encode({str(key): 0 for key in range(MAX_VALUES // 2)}, form), form)
    assert decode(encode([half, half], form), form, max_values=math.inf) == [half, half]


def test_marks_in_text_are_no_values() -> None:
    texts = ['[{",:\\"' * MAX_VALUES, "," * MAX_VALUES]
    assert decode(encode(texts, MediaType.JSON), MediaType.JSON) == texts


@pytest.mark.parametrize(
    "body",
    [
        b"[" + b"[]," * MAX_VALUES + b"[]]",
        b"[" + b"[ ]," * MAX_VALUES + b"[]]",
        b"[" + b"[[[[[1]]]]]," * (MAX_VALUES // 5) + b"1,[[[[[1]]]]]]",
        b"[" + b'"[",' * MAX_VALUES + b"1,1]",
    ],
)
def test_a_body_of_too_many_values_is_refused_before_they_are_made(
    body: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("semshare_service.wire._decode_json", lambda _: pytest.fail("decoded"))
    with pytest.raises(InvalidRequest, match=f"over {MAX_VALUES} values"):
        decode(body, MediaType.JSON)


@pytest.mark.parametrize("part", [b'"', b"\\", b'\\"', b'"\\'])
def test_a_body_of_quotes_is_read_once(part: bytes) -> None:
    """In quadratic time it would take hours."""
    with pytest.raises(InvalidRequest):
        decode(b"[" * (MAX_VALUES + 1) + part * (1 << 20), MediaType.JSON)


def test_msgpack_that_grows_is_refused_while_it_is_decoded() -> None:
    row = b"\xdd" + struct.pack(">I", MAX_ITEMS) + b"\x90" * MAX_ITEMS
    tracemalloc.start()
    try:
        with pytest.raises(InvalidRequest, match=f"over {MAX_VALUES} values"):
            decode(b"\x98" + row * 8, MediaType.MSGPACK)
        assert tracemalloc.get_traced_memory()[1] < 3 * 72 * MAX_ITEMS  # two rows and their lists
    finally:
        tracemalloc.stop()
