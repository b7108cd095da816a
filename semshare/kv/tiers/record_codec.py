"""A `DonorRecord` as bytes, for tiers whose other side is a server or another process.

| bytes | what |
| --- | --- |
| 4 | `SSR1` |
| 8 | BLAKE2b of the rest |
| … | a msgpack map of the record's fields; arrays as their little-endian bytes |

What is decoded may be anything: sizes are checked before they are allocated, and all that is not a
whole record is a `BlobCorrupt`.
"""

from __future__ import annotations

import hashlib
import math
from typing import Any

import msgpack
import numpy as np

from semshare.errors import BlobCorrupt
from semshare.kv.tiers.tier import DonorRecord

MAX_RECORD_BYTES = 32 << 20  # ids and history of four million tokens
_MAGIC = b"SSR1"
_DIGEST_BYTES = 8
_HEAD_BYTES = len(_MAGIC) + _DIGEST_BYTES
_MOST_GROUPS = 65_536
_FIELDS = frozenset(DonorRecord.__dataclass_fields__)
_TEXTS = ("id", "namespace", "embedder")
_TIMES = ("created_at", "used_at", "expires_at")
_ARRAYS = {"ids": "<i4", "vector": "<f4", "history": "<f4"}


def encode_record(record: DonorRecord) -> bytes:
    """The record as `decode_record` reads it."""
    fields: dict[str, object] = {name: getattr(record, name) for name in _FIELDS}
    for name, dtype in _ARRAYS.items():
        fields[name] = np.ascontiguousarray(getattr(record, name), dtype).tobytes()
    for name in _TIMES:
        fields[name] = float(getattr(record, name))
    body: bytes = msgpack.packb(fields)
    return _MAGIC + _digest(body) + body


def encoded_bound(record: DonorRecord, encoded: bytes) -> int:
    """Bytes the record takes at most once an answer's attention is recorded with it."""
    return len(encoded) + 4 * (len(record.ids) - len(record.history)) + 8


def decode_record(value: bytes) -> DonorRecord:
    """The record that `encode_record` made this of.

    Raises:
        BlobCorrupt: it is longer than `MAX_RECORD_BYTES`, was changed, or is not a record.

    """
    if len(value) > MAX_RECORD_BYTES:
        raise BlobCorrupt(
            f"a donor's record has {len(value)} bytes, more than the {MAX_RECORD_BYTES} that any "
            "may have: put the donor again"
        )
    body = value[_HEAD_BYTES:]
    if value[: len(_MAGIC)] != _MAGIC or value[len(_MAGIC) : _HEAD_BYTES] != _digest(body):
        raise BlobCorrupt(
            f"{len(value)} bytes are not a donor's record as it was written: put the donor again"
        )
    try:
        # What msgpack allocates is bounded by the length of what it reads, and that is bounded.
        fields = msgpack.unpackb(body)
    except (ValueError, msgpack.UnpackException) as problem:
        raise BlobCorrupt(f"a donor's record can't be parsed ({problem}): put it again") from None
    return _checked(fields)


def _checked(fields: Any) -> DonorRecord:
    if not isinstance(fields, dict) or set(fields) != _FIELDS:
        raise BlobCorrupt("a donor's record lacks fields, or has others: put the donor again")
    sizes = fields["group_bytes"]
    right = (
        all(isinstance(fields[name], str) for name in _TEXTS)
        and fields["coding"] in ("full", "int8")
        and all(isinstance(fields[name], bytes) and not len(fields[name]) % 4 for name in _ARRAYS)
        and len(fields["history"]) in (0, len(fields["ids"]))
        and isinstance(sizes, list)
        and len(sizes) <= _MOST_GROUPS
        and all(_is_size(size) for size in [*sizes, fields["head_bytes"]])
        and all(isinstance(fields[name], bool) for name in ("pinned", "published"))
        and all(isinstance(fields[name], float) for name in _TIMES)
        and not any(math.isnan(fields[name]) for name in _TIMES)
    )
    if not right:
        raise BlobCorrupt("a donor's record has a field of another type or size: put it again")
    for name, dtype in _ARRAYS.items():
        # `astype` copies: arrays of the machine's own byte order, which may be written.
        fields[name] = np.frombuffer(fields[name], dtype).astype(dtype[1:])
    return DonorRecord(**{**fields, "group_bytes": tuple(sizes)})


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 53


def _digest(body: bytes) -> bytes:
    return hashlib.blake2b(body, digest_size=_DIGEST_BYTES).digest()
