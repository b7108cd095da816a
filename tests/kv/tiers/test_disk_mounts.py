"""Disks made for the test: full, read-only, taken out and put back. Skipped where none may be."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from disk_cases import blob_files, check_stored, open_tier, put_two

from semshare.errors import NotStored, TierUnavailable
from semshare.kv.tiers.tier import ByteRange

Mount = Callable[..., None]


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Mount]:
    """Mounts a tmpfs at a folder; skips where that is not allowed."""
    mounted = []

    def run(folder: Path, options: str) -> None:
        folder.mkdir(exist_ok=True)
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
        except OSError as error:
            pytest.skip(f"no mount here: {error}")
        if done.returncode:
            pytest.skip(f"mounting a tmpfs is not allowed here: {done.stderr.strip()}")
        mounted.append(folder)

    yield run
    for folder in mounted:
        while folder.is_mount():
            subprocess.run(["umount", "--lazy", folder], check=True)  # noqa: S603, S607


def test_a_full_disk(tmp_path: Path, mount: Mount) -> None:
    disk = tmp_path / "disk"
    mount(disk, "size=2m")
    ballast = disk / "ballast"
    tier = open_tier(disk, budget_bytes=64 << 20)
    put_two(tier, "a", size=100_000)
    ballast.write_bytes(bytes(1 << 20))
    stored = {"a": 0}
    for number in range(100):
        try:
            put_two(tier, f"{number}", size=100_000)
        except TierUnavailable as error:
            assert re.search("No space left.*free space on the disk", str(error))  # noqa: PT017
            break
        stored[f"{number}"] = 0
    assert tier.counts["errors"] == 1
    assert len(stored) > 3
    check_stored(tier, stored, size=100_000)
    assert len(blob_files(disk)) == 2 * len(stored)  # nothing half-written stays
    with pytest.raises(TierUnavailable):
        put_two(tier, "a", 1, size=100_000)
    check_stored(tier, stored, size=100_000)
    with ballast.open("ab", buffering=0) as rest, suppress(OSError):
        while True:
            rest.write(bytes(4096))
    tier.close()  # with not a byte left
    tier = open_tier(disk, budget_bytes=64 << 20)
    check_stored(tier, stored, size=100_000)
    ballast.unlink()
    put_two(tier, "a", 1, size=100_000)
    tier.remove("0")
    del stored["0"]
    check_stored(tier, {**stored, "a": 1}, size=100_000)
    assert len(blob_files(disk)) == 2 * len(stored)
    tier.close()


def test_a_disk_of_the_budgets_size_never_fills(tmp_path: Path, mount: Mount) -> None:
    disk = tmp_path / "disk"
    mount(disk, "size=3m")
    tier = open_tier(disk, budget_bytes=3 << 20)
    for number in range(60):
        put_two(tier, f"{number % 20}", number, size=[5000, 250_000][number % 2])
    assert tier.counts["errors"] == 0
    assert tier.counts["evictions"] > 20
    tier.close()


def test_a_read_only_disk(tmp_path: Path, mount: Mount) -> None:
    disk = tmp_path / "disk"
    mount(disk, "size=4m")
    tier = open_tier(disk)
    put_two(tier, "a")
    tier.close()
    mount(disk, "remount,ro")
    with pytest.raises(TierUnavailable, match=r"Read-only file system.*mount it writable"):
        open_tier(disk)
    mount(disk, "remount,rw")
    tier = open_tier(disk)
    check_stored(tier, {"a": 0})
    tier.close()


def test_a_disk_that_goes_and_comes_back(tmp_path: Path, mount: Mount) -> None:
    disk = tmp_path / "disk"
    kept = tmp_path / "kept"
    mount(disk, "size=4m")
    tier = open_tier(disk)
    put_two(tier, "a")
    shutil.copytree(disk, kept)
    mount(disk, "size=4m")  # an empty one over it
    for _ in range(2):
        with pytest.raises((TierUnavailable, NotStored)):
            tier.read("a", 0, [ByteRange(0, 10)])
    put_two(tier, "b")
    check_stored(tier, {"b": 0})
    assert tier.counts["reopened"] == 1
    subprocess.run(["umount", "--lazy", disk], check=True)  # noqa: S603, S607
    with pytest.raises(TierUnavailable, match="has gone"):
        put_two(tier, "c")
    check_stored(tier, {"a": 0})
    put_two(tier, "c")
    check_stored(tier, {"a": 0, "c": 0})
    tier.close()
