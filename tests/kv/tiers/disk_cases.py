"""Donors whose every byte follows from their name and version, and a look at a folder from outside.

Imports no torch: the processes that are killed are started by the hundred.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Generator, Iterable
from pathlib import Path

import numpy as np

from semshare.errors import NotStored
from semshare.kv.tiers.disk import DiskTier
from semshare.kv.tiers.tier import ByteRange, DonorRecord

FINGERPRINT = "0123456789abcdef"
BUDGET = 4 << 20


def in_memory() -> Generator[Path]:
    """A folder where syncing costs nothing, which is most of the time of tests that write much.

    For what a kill leaves behind it is the same: the kernel keeps what was written.
    """
    memory = Path("/dev/shm")  # noqa: S108
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as folder:
        root = Path(folder) / "root"  # so that what is made beside it goes, too
        root.mkdir()
        yield root


def blobs_of(donor: str, version: int, sizes: Iterable[int] = (5000, 3000)) -> list[bytes]:
    """One blob for each group, of those sizes; no two versions share one."""
    names = [f"{donor} {version} {group}".encode() for group, _ in enumerate(sizes)]
    return [hashlib.shake_128(name).digest(size) for name, size in zip(names, sizes, strict=True)]


def record_of(
    donor: str,
    version: int = 0,
    sizes: Iterable[int] = (5000, 3000),
    *,
    n_tokens: int = 20,
    pinned: bool = False,
    published: bool = False,
    used_at: float | None = None,
) -> DonorRecord:
    numbers = np.random.default_rng(list(f"{donor} {version}".encode()))
    return DonorRecord(
        id=donor,
        namespace=f"tenant {version}",
        ids=numbers.integers(0, 50_000, n_tokens).astype(np.int32),
        vector=numbers.random(8, dtype=np.float32),
        embedder="sif",
        history=numbers.random(n_tokens if version % 2 else 0, dtype=np.float32),
        coding="full",
        head_bytes=64,
        group_bytes=tuple(sizes),
        pinned=pinned,
        published=published,
        created_at=1000.0 + version,
        used_at=1000.0 + version if used_at is None else used_at,
        expires_at=float("inf"),
    )


def said(record: DonorRecord) -> tuple[object, ...]:
    """All of a record but when it was used, to compare."""
    return (
        record.id,
        record.namespace,
        record.ids.tolist(),
        record.vector.tolist(),
        record.embedder,
        record.history.tolist(),
        record.coding,
        record.head_bytes,
        record.group_bytes,
        record.pinned,
        record.published,
        record.created_at,
        record.expires_at,
    )


def read_all(tier: DiskTier, record: DonorRecord) -> list[bytes]:
    """Every blob of a donor, each in two ranges."""
    blobs = []
    for group, size in enumerate(record.group_bytes):
        parts = tier.read(record.id, group, [ByteRange(0, size // 3), ByteRange(size // 3, size)])
        blobs.append(b"".join(parts))
    return blobs


def is_stored(tier: DiskTier, donor: str) -> bool:
    try:
        tier.read(donor, 0, [ByteRange(0, 1)])
    except NotStored:
        return False
    return True


def folder_of(root: Path) -> Path:
    return root / FINGERPRINT


def blob_files(root: Path) -> list[Path]:
    return sorted((folder_of(root) / "blobs").iterdir())


def bytes_on_disk(root: Path) -> int:
    """What all files take, as the file system counts."""
    return sum(path.stat().st_blocks * 512 for path in root.rglob("*") if path.is_file())


def open_tier(root: Path, **settings: object) -> DiskTier:
    return DiskTier(root, FINGERPRINT, **{"budget_bytes": BUDGET, "policy": "lru", **settings})  # type: ignore[arg-type]


def put_two(tier: DiskTier, donor: str, version: int = 0, size: int = 5000) -> None:
    tier.put(record_of(donor, version, (size, 3000)), blobs_of(donor, version, (size, 3000)))


def check_stored(tier: DiskTier, versions: dict[str, int], size: int = 5000) -> None:
    """The tier holds these and nothing else, as they were written."""
    found = {record.id: said(record) for record in tier.records()}
    expected = {one: record_of(one, version, (size, 3000)) for one, version in versions.items()}
    assert found == {one: said(record) for one, record in expected.items()}
    for donor, record in expected.items():
        assert read_all(tier, record) == blobs_of(donor, versions[donor], (size, 3000))


def put(tier: DiskTier, donor: str, version: int = 0, **settings: object) -> None:
    record = record_of(donor, version, **settings)  # type: ignore[arg-type]
    tier.put(record, blobs_of(donor, version, record.group_bytes))


def open_copy(root: Path) -> DiskTier:
    """A store as it would be found if its process had been killed now."""
    copy = root.with_name(root.name + " copy")
    shutil.copytree(root, copy)
    return open_tier(copy)
