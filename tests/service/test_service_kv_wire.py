"""The KV stream: what is written is read, and no bytes make the reader hold more than a layer."""

from __future__ import annotations

import io
import struct
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from properties import examples

from semshare.errors import InvalidRequest, KVMismatch
from semshare.kv.exchange import KVFormat, LayerKV
from semshare_service.kv_wire import (
    SCHEMA,
    HeaderReader,
    KVHeader,
    encode,
    read_layers,
)

DOCUMENT = Path(__file__).parents[2] / "docs" / "wire.md"
ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
LIMITS = KVFormat("f" * 32, "float16", 2, 2, 4, max_tokens=1000)
Layers = list[tuple[bytes, bytes]]


def header_of(
    n: int = 3, dtype: str = "float16", layers: int = 2, kv_heads: int = 2, head_dim: int = 4
) -> KVHeader:
    return KVHeader(
        fingerprint=LIMITS.fingerprint,
        model="tiny",
        dtype=dtype,
        n_layers=layers,
        n_kv_heads=kv_heads,
        head_dim=head_dim,
        ids=np.arange(n, dtype=np.int32),
        source=np.zeros(n, np.uint8),
    )


def layers_of(header: KVHeader, seed: int = 0) -> Layers:
    random = np.random.default_rng(seed)
    size = header.tensor_bytes
    return [(random.bytes(size), random.bytes(size)) for _ in range(header.n_layers)]


def read(stream: bytes, limits: KVFormat = LIMITS) -> tuple[KVHeader, Layers]:
    """As the service does, the header from what comes first and the rest from a file."""
    reader = HeaderReader(limits)
    header = reader.feed(stream)
    if header is None:
        raise InvalidRequest("no header")
    header.check_fits(limits)
    return header, list(read_layers(io.BytesIO(stream), header, reader.length))


HEADER = header_of()
LAYERS = layers_of(HEADER)
PIECES = list(encode(HEADER, LAYERS))
STREAM = b"".join(PIECES)


@examples(60)
@given(
    n=st.integers(1, 40),
    dtype=st.sampled_from(list(ITEM_BYTES)),
    layers=st.integers(1, 4),
    kv_heads=st.integers(1, 3),
    head_dim=st.integers(1, 9),
    seed=st.integers(0, 99),
    cuts=st.lists(st.floats(0, 1), max_size=3),
)
def test_what_is_written_is_read(
    n: int, dtype: str, layers: int, kv_heads: int, head_dim: int, seed: int, cuts: list[float]
) -> None:
    random = np.random.default_rng(seed)
    header = replace(
        header_of(n, dtype, layers, kv_heads, head_dim),
        ids=random.integers(0, 2**31, n).astype(np.int32),
        source=random.integers(0, 4, n).astype(np.uint8),
    )
    sent = layers_of(header, seed)
    stream = b"".join(encode(header, sent))
    reader, found = HeaderReader(LIMITS), None
    bounds = sorted({0, len(stream), *(int(cut * len(stream)) for cut in cuts)})
    for start, stop in pairwise(bounds):
        found = reader.feed(stream[start:stop])
        if found is not None:
            break
    assert found is not None
    assert reader.length == len(next(encode(header, sent)))
    for name in ("fingerprint", "model", "dtype", "layer_shape", "n_layers", "exact"):
        assert getattr(found, name) == getattr(header, name)
    assert np.array_equal(found.ids, header.ids)
    assert np.array_equal(found.source, header.source)
    assert list(read_layers(io.BytesIO(stream), found, reader.length)) == sent
    assert len(stream) <= header.most_bytes(reader.length)


@examples(40)
@given(
    dtype=st.sampled_from(list(ITEM_BYTES)),
    shape=st.tuples(st.integers(1, 9), st.integers(1, 3), st.integers(1, 9)),
    seed=st.integers(0, 99),
)
def test_tensors_survive_as_bytes(dtype: str, shape: tuple[int, int, int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    key, value = (
        torch.randn(*shape, generator=generator).to(getattr(torch, dtype)) for _ in range(2)
    )
    # As transformers has them: heads before tokens.
    layer = LayerKV(key.transpose(0, 1).contiguous().transpose(0, 1), value)
    sent = layer.to_bytes()
    assert [len(part) for part in sent] == [key.numel() * ITEM_BYTES[dtype]] * 2
    again = LayerKV.from_bytes(*sent, dtype=dtype, shape=shape)
    assert torch.equal(again.key, key)
    assert torch.equal(again.value, value)


def test_bytes_are_little_endian_and_row_by_row() -> None:
    key = torch.tensor([[[1.0, -2.0]], [[0.5, 0.0]]])  # [2 tokens, 1 head, 2]
    assert LayerKV(key, key).to_bytes()[0] == struct.pack("<4f", 1.0, -2.0, 0.5, 0.0)
    assert LayerKV(key.bfloat16(), key).to_bytes()[0] == bytes.fromhex("803f00c0003f0000")


# ---- what is refused


@examples(200)
@given(cut=st.integers(0, len(STREAM) - 1))
def test_a_truncated_stream_is_refused(cut: int) -> None:
    with pytest.raises(InvalidRequest):
        read(STREAM[:cut])


@examples(300)
@given(at=st.integers(0, len(STREAM) - 1), bit=st.integers(0, 7))
def test_a_changed_bit_is_refused(at: int, bit: int) -> None:
    changed = bytearray(STREAM)
    changed[at] ^= 1 << bit
    with pytest.raises(InvalidRequest):  # KVMismatch is one
        read(bytes(changed))


@examples(100)
@given(junk=st.binary(min_size=1, max_size=40))
def test_bytes_after_the_end_are_refused(junk: bytes) -> None:
    with pytest.raises(InvalidRequest, match="bytes follow the KV's end"):
        read(STREAM + junk)


@examples(200)
@given(stream=st.binary(max_size=200))
def test_any_bytes_are_refused(stream: bytes) -> None:
    with pytest.raises(InvalidRequest):
        read(stream)


def header_with(**fields: Any) -> bytes:
    return msgpack.packb(msgpack.unpackb(PIECES[0]) | fields)


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"schema": "semshare.kv/2"}, f"schema is not '{SCHEMA}'"),
        ({"more": 1}, "not msgpack within the limits"),
        ({"model": 1}, "model of the KV's header is not a string"),
        ({"model": "m" * 600}, "not msgpack within the limits"),
        ({"model": msgpack.ExtType(1, b"x")}, "not msgpack within the limits"),
        ({"dtype": "float64"}, "dtype of the KV's header is none of float32, bfloat16, float16"),
        ({"dtype": ["float16"]}, "dtype"),
        ({"shape": [2, 3, 2]}, r"not \[layers, tokens, kv_heads, head_dim\]"),
        ({"shape": [2, 3, 2, 0]}, "whole numbers from 1"),
        ({"shape": [2, 3, 2, True]}, "whole numbers from 1"),
        ({"shape": [2, 3, 2, 2**40]}, "whole numbers from 1"),
        ({"shape": [2, 4, 2, 4]}, "ids of the KV's header is not a binary string of 16 bytes"),
        ({"ids": [1, 2, 3]}, "ids of the KV's header"),
        ({"ids": bytes(4 * 1001)}, "not msgpack within the limits"),
        ({"source": b"\0\0"}, "source of the KV's header is not a binary string of 3 bytes"),
        ({"source": b"\0\0\4"}, "numbers over 3"),
        ({"exact": False}, "exact of the KV's header is not what its source says"),
        ({"exact": 1}, "exact of the KV's header"),
    ],
)
def test_malformed_headers(fields: dict[str, Any], match: str) -> None:
    with pytest.raises(InvalidRequest, match=match):
        read(header_with(**fields) + b"".join(PIECES[1:]))


@pytest.mark.parametrize("missing", list(msgpack.unpackb(PIECES[0])))
def test_a_header_without_a_field(missing: str) -> None:
    fields = msgpack.unpackb(PIECES[0])
    del fields[missing]
    with pytest.raises(InvalidRequest, match="header is not a map of schema"):
        read(msgpack.packb(fields) + b"".join(PIECES[1:]))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("fingerprint", "0" * 32),
        ("dtype", "bfloat16"),
        ("n_layers", 3),
        ("n_kv_heads", 1),
        ("head_dim", 8),
    ],
)
def test_kv_of_another_model_is_refused(name: str, value: Any) -> None:
    with pytest.raises(KVMismatch, match=f"the KV's {name} is {value!r}"):
        replace(HEADER, **{name: value}).check_fits(LIMITS)


@pytest.mark.parametrize("source", [2, 3])
def test_approximate_kv_is_refused(source: int) -> None:
    mixed = replace(HEADER, source=np.array([0, 1, source], np.uint8))
    assert not mixed.exact
    with pytest.raises(KVMismatch, match="1 tokens of the KV are approximate"):
        mixed.check_fits(LIMITS)


def packed_layer(index: Any, key: Any, value: Any) -> bytes:
    return msgpack.packb({"layer": index, "key": key, "value": value})


KEY, VALUE = LAYERS[0]


@pytest.mark.parametrize(
    ("rest", "match"),
    [
        ([PIECES[2], PIECES[1], PIECES[3]], "after 0 layers is not layer 0"),
        ([PIECES[1], PIECES[1], PIECES[3]], "after 1 layers is not layer 1"),
        ([PIECES[1], PIECES[3]], "layer 1 of the KV is not a map of layer, key, value"),
        ([*PIECES[1:3], PIECES[2], PIECES[3]], "the end of the KV is not a map of checksum"),
        ([packed_layer(False, KEY, VALUE)], "not layer 0"),
        ([packed_layer(0, KEY[:-1], VALUE)], "key of layer 0 is not a binary string of 48 bytes"),
        ([packed_layer(0, KEY, VALUE + b"x")], "not msgpack within the header's limits"),
        ([packed_layer(0, KEY, "text")], "value of layer 0 is not a binary string"),
        ([msgpack.packb({"layer": 0, "key": KEY})], "not a map of layer, key, value"),
        ([msgpack.packb([0, KEY, VALUE])], "not msgpack within the header's limits"),
        ([msgpack.packb(msgpack.ExtType(5, b"x"))], "not msgpack within the header's limits"),
        ([*PIECES[1:3], msgpack.packb({"checksum": bytes(32)})], "checksum does not fit"),
        ([*PIECES[1:3], msgpack.packb({"checksum": None})], "checksum does not fit"),
        ([*PIECES[1:3]], "breaks off before the end is complete"),
    ],
)
def test_malformed_layers(rest: list[bytes], match: str) -> None:
    with pytest.raises(InvalidRequest, match=match):
        read(PIECES[0] + b"".join(rest))


# ---- what the reader may hold


def most_held(work: Callable[[], object]) -> int:
    """Bytes that `work`, which is refused, allocates at most at a time."""
    tracemalloc.start()
    try:
        with pytest.raises(InvalidRequest):
            work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


BOMBS = [
    b"\xdd\xff\xff\xff\xff" * 300,  # arrays of 4 G elements within each other
    b"\x94" * 2000,  # arrays of 4, as many as a header may have, without an end
    b"\xdf\xff\xff\xff\xff",
    b"\x88" * 2000,
    b"\xc6\xff\xff\xff\xff" + bytes(100),  # a binary string of 4 GiB
    b"\xdb\xff\xff\xff\xff" + bytes(100),
    b"\xc9\xff\xff\xff\xff\x01",
    b"\x83\xa5layer\x00\xa3key\xc6\xff\xff\xff\xff",
    b"\x83\xa5layer\x00\xa3key\xdd\xff\xff\xff\xff",
]


@pytest.mark.parametrize("bomb", BOMBS)
def test_what_a_bomb_announces_is_not_allocated(bomb: bytes) -> None:
    # msgpack's decoder begins with a MiB of its own, whatever it decodes.
    assert most_held(lambda: read(bomb)) < 4 << 20
    assert most_held(lambda: read(PIECES[0] + bomb)) < 4 << 20


def test_an_endless_header_is_given_up() -> None:
    reader = HeaderReader(LIMITS)
    reader.feed(b"\x88")

    def feed() -> None:
        for name in b"abcdefg":
            assert reader.feed(b"\xa1" + bytes([name]) + b"\xc5\x0f\xa0" + bytes(4000)) is None

    with pytest.raises(InvalidRequest, match="header is over 9096 bytes"):
        feed()


def test_the_reader_holds_a_few_layers_whatever_their_number() -> None:
    header = header_of(n=500, layers=60, kv_heads=2, head_dim=64)
    stream = b"".join(encode(header, layers_of(header)))
    length = len(next(encode(header, [])))
    file = io.BytesIO(stream)
    tracemalloc.start()
    try:
        count = sum(1 for _ in read_layers(file, header, length))
        held = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert count == 60
    assert len(stream) > 14 << 20
    assert held < 4 * 2 * header.tensor_bytes + (2 << 20)


# ---- the document

# Two tokens of a model with one layer and one KV head of two numbers.
EXAMPLE = KVHeader(
    fingerprint="00112233445566778899aabbccddeeff",
    model="tiny",
    dtype="float16",
    n_layers=1,
    n_kv_heads=1,
    head_dim=2,
    ids=np.array([7, 300], np.int32),
    source=np.array([1, 0], np.uint8),
)
EXAMPLE_LAYERS = [(struct.pack("<4e", 1, -2, 0.5, 0), struct.pack("<4e", 3, 4, 5, 6))]


def test_the_documented_example_is_true() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    block = text.split("```hex\n")[1].split("```")[0]
    documented = bytes.fromhex("".join(line.split("#")[0] for line in block.splitlines()))
    assert documented == b"".join(encode(EXAMPLE, EXAMPLE_LAYERS))
