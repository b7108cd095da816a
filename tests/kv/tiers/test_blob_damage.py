"""Whatever happens to a blob, nothing that was not written is ever given out."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
import zstandard
from hypothesis import assume, given
from hypothesis import strategies as st
from properties import examples
from stored import FORMAT, encoded, random_ids, random_kv, read_chunks

from semshare.errors import BlobCorrupt, BlobForeign
from semshare.kv.tiers.blob import BlobHead, read_head
from semshare.kv.tiers.blob_format import BlobFormat
from semshare.kv.tiers.blob_head import BlobLayout, checksum

N = 150  # three chunks, the last of which is short
VARIANTS = [
    replace(FORMAT, coding=coding, compression=compression)
    for coding in ("full", "int8")
    for compression in ("none", "zstd")
]
IDS = random_ids(N)
FOUND = (BlobCorrupt, BlobForeign)


@pytest.fixture(params=VARIANTS, ids=lambda variant: f"{variant.coding}-{variant.compression}")
def stored(request: pytest.FixtureRequest) -> tuple[BlobFormat, bytes, int]:
    donor = encoded(request.param, IDS, random_kv(request.param, N))
    return request.param, bytes(donor.blobs[1]), donor.head_bytes


def read(kv_format: BlobFormat, blob: bytes, chunks: list[int], head: int) -> torch.Tensor:
    return read_chunks(kv_format, blob, 1, IDS, chunks, head)


def never_served(
    stored: tuple[BlobFormat, bytes, int], damages: list[Callable[[bytearray], None]]
) -> None:
    """Each damage is found when all is read; a part is right, or not given out."""
    kv_format, blob, head = stored
    parts = [[0, 1, 2], [1], [0, 2]]
    right = [read(kv_format, blob, chunks, head) for chunks in parts]
    opened = read_head(kv_format, 1, IDS, blob[:head])
    unread = 0
    for damage in damages:
        broken = bytearray(blob)
        damage(broken)
        assert broken != blob
        with pytest.raises(FOUND):
            read(kv_format, bytes(broken), parts[0], head)
        for chunks, expected in zip(parts[1:], right[1:], strict=True):
            ranges = opened.ranges(chunks)
            touched = broken[:head] != blob[:head] or any(
                broken[part.start : part.stop] != blob[part.start : part.stop] for part in ranges
            )
            if touched:
                with pytest.raises(FOUND):
                    read(kv_format, bytes(broken), chunks, head)
            else:
                unread += 1
                assert torch.equal(read(kv_format, bytes(broken), chunks, head), expected)
    assert unread > 0


def test_a_flipped_bit_is_found_wherever_it_is(stored: tuple[BlobFormat, bytes, int]) -> None:
    _, blob, head = stored
    rng = np.random.default_rng(0)

    def flip(offset: int, bit: int) -> Callable[[bytearray], None]:
        def damage(broken: bytearray) -> None:
            broken[offset] ^= 1 << bit

        return damage

    # 1,000 anywhere, and 300 in the head, which is small beside the rest.
    offsets = [*rng.integers(len(blob), size=1000), *rng.integers(head, size=300)]
    bits = rng.integers(8, size=len(offsets))
    never_served(stored, [flip(int(o), int(b)) for o, b in zip(offsets, bits, strict=True)])


def test_a_truncated_blob_is_found_however_short(stored: tuple[BlobFormat, bytes, int]) -> None:
    _, blob, head = stored
    rng = np.random.default_rng(1)

    def cut(length: int) -> Callable[[bytearray], None]:
        def damage(broken: bytearray) -> None:
            del broken[length:]

        return damage

    lengths = [0, 7, 8, 9, 16, 17, head - 1, head, len(blob) - 1]
    lengths += rng.integers(len(blob), size=200).tolist()
    never_served(stored, [cut(length) for length in lengths])


def test_a_torn_write_is_found(stored: tuple[BlobFormat, bytes, int]) -> None:
    _, blob, _ = stored
    rng = np.random.default_rng(2)

    def tear(start: int, length: int, filler: bytes) -> Callable[[bytearray], None]:
        def damage(broken: bytearray) -> None:
            stop = min(start + length, len(broken))
            broken[start:stop] = (filler * length)[: stop - start]

        return damage

    # Sectors that never reached the disk, or hold what was there before.
    places = [
        (int(start), fill)
        for start in rng.integers(len(blob), size=60)
        for fill in (b"\x5a", b"\xff")
    ]
    never_served(stored, [tear(start, 512, filler) for start, filler in places])


def test_chunks_that_changed_places_are_found() -> None:
    donor = encoded(FORMAT, IDS, random_kv(FORMAT, N))
    head, blob = donor.head_bytes, bytes(donor.blobs[1])
    chunk = 64 * FORMAT.token_bytes(1)
    first, second = blob[head : head + chunk], blob[head + chunk : head + 2 * chunk]
    swapped = blob[:head] + second + first + blob[head + 2 * chunk :]
    with pytest.raises(BlobCorrupt, match="chunk 0 of layer group 1"):
        read(FORMAT, swapped, [0, 1, 2], head)
    assert read(FORMAT, swapped, [2], head).shape[0] == N - 128


def test_a_part_longer_than_its_range_is_no_part() -> None:
    donor = encoded(FORMAT, IDS, random_kv(FORMAT, N))
    opened = read_head(FORMAT, 1, IDS, donor.blobs[1][: donor.head_bytes])
    whole = donor.blobs[1][donor.head_bytes :]
    with pytest.raises(BlobCorrupt, match="chunk 0 of layer group 1"):
        opened.decode([0], [whole])


def sealed(data: bytes) -> bytes:
    return data + checksum(data).to_bytes(8, "little")


def with_json(text: bytes, length: int | None = None) -> bytes:
    """A head whose seal is right and whose JSON is anything."""
    size = len(text) if length is None else length
    return sealed(size.to_bytes(8, "little") + text + bytes(40))


@pytest.mark.parametrize(
    "head",
    [
        b"",
        sealed(b""),
        sealed(b"\0" * 8),
        with_json(b""),
        with_json(b"{}"),
        with_json(b"null"),
        with_json(b"[" * 100_000),
        with_json(b'"\xff\xfe"'),
        with_json(b'{"__metadata__": 3}'),
        with_json(b'{"__metadata__": {"format": "pt"}}'),
        with_json(b"{}", length=2**63),
        with_json(b'{"a": 1' + b"0" * 5000 + b"}"),
    ],
    ids=range(12),
)
def test_a_sealed_head_that_is_none_is_corrupt(head: bytes) -> None:
    with pytest.raises(BlobCorrupt, match="layer group 1"):
        read_head(FORMAT, 1, IDS, head)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=6,
)


@given(key=st.text(max_size=5) | st.sampled_from(["kv", "ids", "ends", "seal"]), value=json_values)
@examples(100)
def test_any_other_json_in_a_sealed_head_is_found(key: str, value: object) -> None:
    variant = VARIANTS[1]
    head = bytearray(encoded(variant, IDS, random_kv(variant, N)).blobs[1])
    layout = BlobLayout(variant, 1, N)
    del head[layout.head_bytes :]
    length = int.from_bytes(head[:8], "little")
    header = json.loads(bytes(head[8 : 8 + length]))
    assume(key not in header or header[key] != value)
    text = json.dumps(header | {key: value}, separators=(",", ":")).encode().ljust(length)
    forged = sealed(len(text).to_bytes(8, "little") + text + bytes(head[8 + length : -8]))
    with pytest.raises(FOUND):
        read_head(variant, 1, IDS, forged)


@given(data=st.binary(max_size=300))
@examples(200)
def test_any_sealed_bytes_are_found(data: bytes) -> None:
    with pytest.raises(FOUND):
        read_head(FORMAT, 1, IDS, sealed(data))


@pytest.mark.parametrize("ends", [[2, 1, 3], [1, 2, 2**62], [2**63 + 5, 2**63 + 6, 2**64 - 1]])
def test_ends_in_no_order_or_beyond_any_payload_are_corrupt(ends: list[int]) -> None:
    layout = BlobLayout(VARIANTS[1], 1, N)
    checksums = np.zeros(3, np.uint64)
    head = bytearray(layout.make_head(IDS, checksums, np.array([1, 2, 3])))
    at = head.index(np.array([1, 2, 3], "<u8").tobytes())
    head[at : at + 24] = np.array(ends, "<u8").tobytes()
    with pytest.raises(BlobCorrupt, match="chunks that end at"):
        read_head(VARIANTS[1], 1, IDS, sealed(bytes(head[:-8])))


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"no frame",
        zstandard.compress(bytes(10)),
        zstandard.compress(bytes(64 * FORMAT.token_bytes(1)))[:-3],
        # A frame that says it unpacks to 2⁶² bytes: nothing is allocated for it.
        b"\x28\xb5\x2f\xfd\xe0" + (2**62).to_bytes(8, "little"),
    ],
    ids=["empty", "none", "short", "cut", "huge"],
)
def test_a_chunk_with_its_checksum_that_does_not_unpack_is_corrupt(frame: bytes) -> None:
    layout = BlobLayout(VARIANTS[1], 1, N)
    checksums = np.array([checksum(frame)] * 3, np.uint64)
    head = BlobHead(layout, checksums, np.arange(1, 4) * len(frame))
    with pytest.raises(BlobCorrupt, match="chunk 0 of layer group 1"):
        head.decode([0], [frame])
