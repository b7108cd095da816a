"""Blobs: what was written comes back, in parts, and any safetensors reader can open them."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import safetensors
import safetensors.numpy
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from properties import examples
from stored import FORMAT, encoded, head_of, random_ids, random_kv, read_chunks

from semshare import InvalidRequest, KVMismatch
from semshare.errors import BlobCorrupt, BlobForeign
from semshare.kv.tiers import blob_head
from semshare.kv.tiers.blob import encode_donor
from semshare.kv.tiers.blob_format import BlobFormat, canonical_json
from semshare.kv.tiers.tier import ByteRange

DTYPES = ["float32", "bfloat16", "float16"]


def stored_values(kv_format: BlobFormat, kv: torch.Tensor, group: int) -> torch.Tensor:
    """What should come back of a group: in int8 what the codec makes of it."""
    layers = kv_format.layers(group)
    part = kv[:, layers.start : layers.stop]
    if kv_format.coding == "full":
        return part
    codec = kv_format.codec
    return codec.decode(codec.encode(part.flatten(0, 2)), kv_format.torch_dtype).view(part.shape)


def check_roundtrip(kv_format: BlobFormat, n: int, seed: int = 0) -> None:
    ids, kv = random_ids(n, seed), random_kv(kv_format, n, seed)
    donor = encoded(kv_format, ids, kv)
    assert len(donor.blobs) == len(donor.group_bytes) == kv_format.n_groups
    assert donor.head_bytes % blob_head.ALIGNED == 0
    for group, blob in enumerate(donor.blobs):
        head = head_of(kv_format, donor, group, ids)
        chunks = list(range(head.layout.n_chunks))
        assert head.ranges(chunks) == [ByteRange(donor.head_bytes, len(blob))]
        decoded = read_chunks(kv_format, bytes(blob), group, ids, chunks, donor.head_bytes)
        assert decoded.dtype == kv_format.torch_dtype
        assert torch.equal(decoded, stored_values(kv_format, kv, group))


@pytest.mark.parametrize("compression", ["none", "zstd"])
@pytest.mark.parametrize("coding", ["full", "int8"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [1, 63, 64, 65])
def test_what_was_written_comes_back(n: int, dtype: str, coding: str, compression: str) -> None:
    check_roundtrip(replace(FORMAT, dtype=dtype, coding=coding, compression=compression), n)


formats = st.builds(
    replace,
    st.just(FORMAT),
    dtype=st.sampled_from(DTYPES),
    coding=st.sampled_from(["full", "int8"]),
    compression=st.sampled_from(["none", "zstd"]),
    n_layers=st.integers(1, 5),
    n_kv_heads=st.integers(1, 3),
    head_dim=st.sampled_from([1, 3, 8, 33, 64]),
    chunk_tokens=st.sampled_from([1, 7, 16, 64]),
    layers_per_group=st.integers(1, 6),
)


@given(kv_format=formats, n=st.integers(1, 70), seed=st.integers(0, 9))
@examples(100)
def test_any_shape_comes_back(kv_format: BlobFormat, n: int, seed: int) -> None:
    check_roundtrip(kv_format, n, seed)


@given(kv_format=formats, n=st.integers(1, 70), data=st.data())
@examples(100)
def test_any_positions_are_read_alone(kv_format: BlobFormat, n: int, data: st.DataObject) -> None:
    positions = np.array(data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=9)))
    group = data.draw(st.integers(0, kv_format.n_groups - 1))
    ids, kv = random_ids(n), random_kv(kv_format, n)
    donor = encoded(kv_format, ids, kv)
    head = head_of(kv_format, donor, group, ids)
    chunks = head.layout.format.chunks_for(positions)
    assert chunks == sorted({int(position) // kv_format.chunk_tokens for position in positions})
    parts = head.ranges(chunks)
    # In order, within the blob, and no two that could have been one.
    bounds = [bound for part in parts for bound in (part.start, part.stop)]
    assert bounds == sorted(set(bounds))
    assert donor.head_bytes <= bounds[0] <= bounds[-1] <= len(donor.blobs[group])
    whole = head.ranges(list(range(head.layout.n_chunks)))
    assert sum(map(len, parts)) <= sum(map(len, whole))
    assert (parts == whole) == (len(chunks) == head.layout.n_chunks)
    blob = donor.blobs[group]
    decoded = head.decode(chunks, [blob[part.start : part.stop] for part in parts])
    tokens = [
        at
        for chunk in chunks
        for at in range(chunk * kv_format.chunk_tokens, (chunk + 1) * kv_format.chunk_tokens)
        if at < len(kv)
    ]
    assert torch.equal(decoded, stored_values(kv_format, kv, group)[tokens])


def test_neighbouring_chunks_are_one_range_and_positions_may_repeat() -> None:
    ids = random_ids(1000)
    donor = encoded(FORMAT, ids, random_kv(FORMAT, 1000))
    head = head_of(FORMAT, donor, 1, ids)
    chunk_bytes = 64 * 2 * 2 * 2 * 8 * 4
    chunks = head.layout.format.chunks_for(np.array([999, 70, 63, 64, 70, 640]))
    assert chunks == [0, 1, 10, 15]
    first = donor.head_bytes
    assert head.ranges(chunks) == [
        ByteRange(first, first + 2 * chunk_bytes),
        ByteRange(first + 10 * chunk_bytes, first + 11 * chunk_bytes),
        ByteRange(first + 15 * chunk_bytes, len(donor.blobs[1])),
    ]
    assert head.ranges([]) == []
    assert head.decode([], []).shape == (0, 2, 2, 2, 8)
    for beyond in (-1, 16):
        with pytest.raises(IndexError, match="of a blob that has 16"):
            head.ranges([beyond])


def test_a_plan_that_needs_30_percent_reads_at_most_35() -> None:
    kv_format = replace(FORMAT, n_kv_heads=3, head_dim=64)
    ids = random_ids(5000)
    donor = encoded(kv_format, ids, random_kv(kv_format, 5000))
    # Three spans that begin and end within chunks.
    positions = np.concatenate([np.arange(first, first + 500) for first in (100, 1700, 3900)])
    read = 0
    for group in range(kv_format.n_groups):
        head = head_of(kv_format, donor, group, ids)
        read += donor.head_bytes + sum(
            map(len, head.ranges(head.layout.format.chunks_for(positions)))
        )
    assert 0.30 <= read / sum(donor.group_bytes) <= 0.35


@pytest.mark.parametrize("n", [64, 65])
@pytest.mark.parametrize("dtype", DTYPES)
def test_safetensors_opens_a_blob(tmp_path: Path, dtype: str, n: int) -> None:
    kv_format = replace(FORMAT, dtype=dtype)
    ids, kv = random_ids(n), random_kv(kv_format, n)
    donor = encoded(kv_format, ids, kv)
    for group, blob in enumerate(donor.blobs):
        path = tmp_path / f"{group}.safetensors"
        path.write_bytes(blob)
        with safetensors.safe_open(path, "pt") as opened:
            assert set(opened.keys()) == {"checksums", "ids", "seal", "kv"}
            metadata = opened.metadata()
            assert metadata["fingerprint"] == FORMAT.fingerprint
            assert metadata["rope"] == FORMAT.rope
            assert metadata["layers"] == ("0-1", "2-3", "4-4")[group]
            assert torch.equal(opened.get_tensor("kv"), stored_values(kv_format, kv, group))
            assert opened.get_tensor("ids").tolist() == ids.tolist()
            # Part of the KV, as other tools would read it.
            assert torch.equal(
                opened.get_slice("kv")[3:5], stored_values(kv_format, kv, group)[3:5]
            )


@pytest.mark.parametrize(("coding", "compression"), [("int8", "none"), ("full", "zstd")])
def test_safetensors_opens_coded_and_compressed_blobs(coding: str, compression: str) -> None:
    kv_format = replace(FORMAT, coding=coding, compression=compression)
    ids = random_ids(65)
    donor = encoded(kv_format, ids, random_kv(kv_format, 65))
    tensors = safetensors.numpy.load(bytes(donor.blobs[0]))
    assert tensors["ids"].tolist() == ids.tolist()
    assert tensors["kv"].dtype == np.uint8
    if compression == "zstd":
        assert tensors["ends"][-1] == tensors["kv"].size
    else:
        assert tensors["kv"].shape == (65, 2, 2, kv_format.codec.bytes_per_token)


OTHERS = {
    "fingerprint": "f" * 32,
    "rope": canonical_json({"rope_type": "default", "rope_theta": 500000.0}),
    "dtype": "float16",
    "n_layers": 7,
    "n_kv_heads": 4,
    "head_dim": 16,
    "coding": "int8",
    "compression": "zstd",
    "chunk_tokens": 32,
    "layers_per_group": 3,
}


@pytest.mark.parametrize("field", [field.name for field in fields(BlobFormat)])
def test_a_blob_of_another_format_is_foreign(field: str) -> None:
    ids = random_ids(20)
    other = replace(FORMAT, **{field: OTHERS[field]})
    donor = encoded(other, ids, random_kv(other, 20))
    with pytest.raises(BlobForeign) as error:
        head_of(FORMAT, donor, 0, ids)
    for value in (getattr(FORMAT, field), OTHERS[field]):
        assert f"{field} {str(OTHERS[field])!r}" in str(error.value)
        assert repr(str(value)) in str(error.value)


def test_a_blob_of_another_version_is_foreign(monkeypatch: pytest.MonkeyPatch) -> None:
    ids = random_ids(20)
    with monkeypatch.context() as later:
        later.setattr(blob_head, "VERSION", 2)
        donor = encoded(FORMAT, ids, random_kv(FORMAT, 20))
    with pytest.raises(BlobForeign, match="with version '2', this engine has '1'"):
        head_of(FORMAT, donor, 0, ids)


def test_a_blob_of_other_ids_or_in_another_place_is_corrupt() -> None:
    ids = random_ids(20)
    donor = encoded(FORMAT, ids, random_kv(FORMAT, 20))
    changed = ids.copy()
    changed[7] += 1
    for group, wanted, why in (
        (0, changed, "other token ids"),
        (0, ids[:19], "tokens '20' instead of '19'"),
        (1, ids, "layers '0-1' instead of '2-3'"),
    ):
        with pytest.raises(BlobCorrupt, match=why):
            read_chunks(FORMAT, bytes(donor.blobs[0]), group, wanted, [], donor.head_bytes)


def test_only_kv_of_the_format_is_stored() -> None:
    ids, kv = random_ids(3), random_kv(FORMAT, 3)
    for wrong in (kv.half(), kv[:2], kv[..., :7], kv.transpose(-1, -2)):
        with pytest.raises(KVMismatch, match=r"layer 0: keys or values are .* the format has"):
            encoded(FORMAT, ids, wrong)
    with pytest.raises(KVMismatch, match="without tokens"):
        encoded(FORMAT, ids[:0], kv[:0])
    kv[1, 2, 0, 0, 0] = torch.nan
    with pytest.raises(InvalidRequest, match="int8 can store magnitudes up to"):
        encoded(replace(FORMAT, coding="int8"), ids, kv)


def test_layers_are_asked_for_once_in_order() -> None:
    kv = random_kv(FORMAT, 3)
    asked: list[int] = []

    def kv_of_layer(layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        asked.append(layer)
        return kv[:, layer, 0], kv[:, layer, 1]

    encode_donor(FORMAT, random_ids(3), kv_of_layer)
    assert asked == list(range(FORMAT.n_layers))


def test_what_decode_gives_is_its_own() -> None:
    ids, kv = random_ids(65), random_kv(FORMAT, 65)
    donor = encoded(FORMAT, ids, kv)
    head = head_of(FORMAT, donor, 0, ids)
    part = bytearray(donor.blobs[0][donor.head_bytes :])
    decoded = head.decode([0, 1], [part])
    part[:] = bytes(len(part))
    assert torch.equal(decoded, stored_values(FORMAT, kv, 0))
