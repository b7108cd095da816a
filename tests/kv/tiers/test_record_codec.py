"""Donors' records as bytes: what goes in comes out, and nothing else ever does."""

from __future__ import annotations

import hashlib
import math
from dataclasses import replace
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from tier_conformance import assert_same, record_of

from semshare.errors import BlobCorrupt
from semshare.kv.tiers import record_codec
from semshare.kv.tiers.record_codec import decode_record, encode_record, encoded_bound
from semshare.kv.tiers.tier import DonorRecord

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
times = st.floats(allow_nan=False)
sizes = st.integers(0, 2**53 - 1)


@st.composite
def records(draw: st.DrawFn) -> DonorRecord:
    n = draw(st.integers(0, 40))
    numbers = st.floats(width=32, allow_nan=False)
    return DonorRecord(
        id=draw(texts),
        namespace=draw(texts),
        ids=draw(arrays(np.int32, n, elements=st.integers(-(2**31), 2**31 - 1))),
        vector=draw(arrays(np.float32, draw(st.integers(0, 20)), elements=numbers)),
        embedder=draw(texts),
        history=draw(arrays(np.float32, draw(st.sampled_from([0, n])), elements=numbers)),
        coding=draw(st.sampled_from(["full", "int8"])),
        head_bytes=draw(sizes),
        group_bytes=tuple(draw(st.lists(sizes, max_size=5))),
        pinned=draw(st.booleans()),
        published=draw(st.booleans()),
        created_at=draw(times),
        used_at=draw(times),
        expires_at=draw(times),
    )


@given(record=records())
def test_a_record_comes_back_as_it_was(record: DonorRecord) -> None:
    encoded = encode_record(record)
    assert_same(decode_record(encoded), record)
    full = replace(record, history=np.ones(len(record.ids), np.float32), expires_at=math.inf)
    assert len(encode_record(full)) <= encoded_bound(record, encoded)


@given(record=records(), data=st.data())
def test_a_record_that_was_changed_is_corrupt(record: DonorRecord, data: st.DataObject) -> None:
    encoded = bytearray(encode_record(record))
    place = data.draw(st.integers(0, len(encoded) - 1))
    encoded[place] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(BlobCorrupt):
        decode_record(bytes(encoded))
    with pytest.raises(BlobCorrupt):
        decode_record(bytes(encoded[:place]))


@given(value=st.binary(max_size=100))
def test_other_bytes_are_corrupt(value: bytes) -> None:
    with pytest.raises(BlobCorrupt):
        decode_record(value)
    with pytest.raises(BlobCorrupt):
        decode_record(signed(value))


def signed(body: bytes) -> bytes:
    """As whoever can write to the server can sign it: the digest is no secret."""
    return b"SSR1" + hashlib.blake2b(body, digest_size=8).digest() + body


FORGED: list[dict[str, Any]] = [
    {"id": 3},
    {"ids": b"123"},
    {"ids": "1234"},
    {"history": b"1234"},
    {"coding": "int4"},
    {"group_bytes": [-1]},
    {"group_bytes": [True]},
    {"group_bytes": [1 << 60]},
    {"group_bytes": 7},
    {"group_bytes": [0] * 70_000},
    {"head_bytes": None},
    {"pinned": 1},
    {"created_at": 1},
    {"expires_at": math.nan},
    {"extra": 1},
]


@pytest.mark.parametrize("changes", FORGED, ids=str)
def test_fields_of_another_kind_are_corrupt(changes: dict[str, Any]) -> None:
    fields = msgpack.unpackb(encode_record(record_of("a", [b"1"]))[12:])
    assert decode_record(signed(msgpack.packb(fields))).id == "a"
    with pytest.raises(BlobCorrupt):
        decode_record(signed(msgpack.packb({**fields, **changes})))


def test_sizes_that_are_claimed_are_not_allocated() -> None:
    # An array of 2³² − 1 elements, and bytes as many, in five bytes each.
    for body in (b"\xdd\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff", b"\x91" * 100_000):
        with pytest.raises(BlobCorrupt):
            decode_record(signed(body))


def test_a_record_that_is_too_long_is_not_looked_into(monkeypatch: pytest.MonkeyPatch) -> None:
    encoded = encode_record(record_of("a", [b"1"]))
    monkeypatch.setattr(record_codec, "MAX_RECORD_BYTES", len(encoded) - 1)
    with pytest.raises(BlobCorrupt, match="more than"):
        decode_record(encoded)
