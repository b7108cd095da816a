"""A donor's record as columns of the index, and back."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from semshare.kv.tiers.tier import DonorRecord

PAGE_BYTES = 4096  # of the database

# What the checksum covers beside the arrays; when a donor was used is not worth one.
SAID = (
    "id, namespace, embedder, coding, head_bytes, group_bytes, pinned, published, created_at, "
    "expires_at, record_bytes"
)


def record_bytes(record: DonorRecord) -> int:
    """Most bytes that a donor's rows take: in the database, and once more in the log.

    A history is counted whether there is one or not, so that recording one needs no room.
    """
    tokens = len(record.ids) + max(len(record.ids), len(record.history))
    arrays = 4 * (tokens + len(record.vector))
    names = len(record.id) + len(record.namespace) + len(record.embedder)
    return 2 * (arrays + 4 * names + 3 * PAGE_BYTES)


def said_of(record: DonorRecord) -> list[Any]:
    """The columns of `SAID`. Raises `ValueError` for a time that SQLite can't keep."""
    if any(map(math.isnan, (record.created_at, record.used_at, record.expires_at))):
        raise ValueError(
            f"donor {record.id} has a time that is no number: created_at {record.created_at}, "
            f"used_at {record.used_at}, expires_at {record.expires_at}; infinity is one"
        )
    return [
        record.id,
        record.namespace,
        record.embedder,
        record.coding,
        int(record.head_bytes),
        ",".join(map(str, map(int, record.group_bytes))),
        int(record.pinned),
        int(record.published),
        float(record.created_at),
        float(record.expires_at),
        record_bytes(record),
    ]


def arrays_of(record: DonorRecord) -> tuple[bytes, bytes, bytes]:
    """Its ids, vector and history, little-endian."""
    return (
        np.ascontiguousarray(record.ids, "<i4").tobytes(),
        np.ascontiguousarray(record.vector, "<f4").tobytes(),
        np.ascontiguousarray(record.history, "<f4").tobytes(),
    )


def checksum_of(said: Sequence[Any], arrays: Sequence[bytes]) -> int:
    """CRC-32 of all columns, which finds every single flipped bit."""
    checksum = zlib.crc32(repr((*said, *map(len, arrays))).encode())
    for array in arrays:
        checksum = zlib.crc32(array, checksum)
    return checksum


def record_from(
    said: Sequence[Any], used_at: float, ids: bytes, vector: bytes, history: bytes
) -> DonorRecord:
    """The record that these columns are of. Its arrays are the columns' own memory, read-only."""
    donor, namespace, embedder, coding, head_bytes, groups, pinned, published = said[:8]
    return DonorRecord(
        id=donor,
        namespace=namespace,
        ids=np.frombuffer(ids, "<i4"),
        vector=np.frombuffer(vector, "<f4"),
        embedder=embedder,
        history=np.frombuffer(history, "<f4"),
        coding=coding,
        head_bytes=head_bytes,
        group_bytes=sizes_from(groups),
        pinned=bool(pinned),
        published=bool(published),
        created_at=said[8],
        used_at=float(used_at),
        expires_at=said[9],
    )


def sizes_from(groups: Any) -> tuple[int, ...]:
    """Of each group's blob; none where the column is damaged."""
    try:
        return tuple(map(int, groups.split(",")))
    except (AttributeError, TypeError, ValueError):
        return ()
