"""A disk that is full, read-only or gone: said as it is, nothing lost before, healed after."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from disk_cases import (
    blob_files,
    blobs_of,
    folder_of,
    is_stored,
    open_tier,
    read_all,
    record_of,
    said,
)

from semshare.errors import NotStored, TierUnavailable
from semshare.kv.tiers.disk import DiskTier
from semshare.kv.tiers.tier import ByteRange


def put(tier: DiskTier, donor: str, version: int = 0, size: int = 5000) -> None:
    tier.put(record_of(donor, version, (size, 3000)), blobs_of(donor, version, (size, 3000)))


def check(tier: DiskTier, versions: dict[str, int], size: int = 5000) -> None:
    """The tier holds these and nothing else, as they were written."""
    found = {record.id: said(record) for record in tier.records()}
    expected = {one: record_of(one, version, (size, 3000)) for one, version in versions.items()}
    assert found == {one: said(record) for one, record in expected.items()}
    for donor, record in expected.items():
        assert read_all(tier, record) == blobs_of(donor, versions[donor], (size, 3000))


class Fault:
    """Raises at a step, while it is on."""

    def __init__(self, point: str, number: int) -> None:
        self.point, self.number = point, number
        self.on = False
        self.met = 0

    def __call__(self, point: str) -> None:
        if self.on and point == self.point:
            self.met += 1
            raise OSError(self.number, os.strerror(self.number))


@pytest.mark.parametrize(
    "number", [errno.ENOSPC, errno.EIO, errno.EROFS, errno.EDQUOT], ids=errno.errorcode.get
)
@pytest.mark.parametrize("point", ["create", "write", "fsync", "rename", "fsync folder", "commit"])
def test_a_write_that_fails_at_any_step_leaves_nothing(
    tmp_path: Path, point: str, number: int
) -> None:
    fault = Fault(point, number)
    tier = open_tier(tmp_path, at=fault)
    put(tier, "a")
    used, files = tier.used_bytes, blob_files(tmp_path)
    fault.on = True
    for donor in ("a", "b"):  # one that would be replaced, and a new one
        with pytest.raises(TierUnavailable, match=os.strerror(number)):
            put(tier, donor, 1)
        check(tier, {"a": 0})
    fault.on = False
    if point != "commit":  # without which nothing can be deleted
        assert (tier.used_bytes, blob_files(tmp_path)) == (used, files)
    put(tier, "b", 2)
    put(tier, "a", 3)
    check(tier, {"a": 3, "b": 2})
    assert len(blob_files(tmp_path)) == 4
    assert tier.counts.errors >= 2
    tier.close()
    tier = open_tier(tmp_path)
    check(tier, {"a": 3, "b": 2})
    assert tier.counts.orphans == 0
    tier.close()


@pytest.mark.parametrize("point", ["unlink", "set aside"])
def test_files_that_cannot_be_deleted_yet_count_and_go_later(tmp_path: Path, point: str) -> None:
    fault = Fault(point, errno.EROFS)
    tier = open_tier(tmp_path, at=fault)
    for donor in "abc":
        put(tier, donor)
    used = tier.used_bytes
    fault.on = True
    if point == "unlink":
        with pytest.raises(TierUnavailable):
            tier.remove("a")
    else:
        with pytest.raises(TierUnavailable):
            tier.quarantine("a", "a test")
    assert not is_stored(tier, "a")
    assert tier.used_bytes == used
    with pytest.raises(TierUnavailable):  # nothing is written beside what ought to be gone
        put(tier, "d")
    check(tier, {"b": 0, "c": 0})
    fault.on = False
    put(tier, "a", 4)
    check(tier, {"a": 4, "b": 0, "c": 0})
    assert len(blob_files(tmp_path)) == 6
    tier.close()


def test_a_replaced_file_that_cannot_be_deleted_fails_no_put(tmp_path: Path) -> None:
    fault = Fault("unlink", errno.EIO)
    tier = open_tier(tmp_path, at=fault)
    put(tier, "a", 0)
    fault.on = True
    put(tier, "a", 1)
    check(tier, {"a": 1})
    assert len(blob_files(tmp_path)) == 4
    fault.on = False
    put(tier, "b", 0)
    assert len(blob_files(tmp_path)) == 4
    assert tier.counts.errors == 2  # after the put, and again after the query
    tier.close()


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
        if folder not in mounted:
            mounted.append(folder)

    yield run
    for folder in mounted:
        subprocess.run(["umount", "--lazy", folder], check=True)  # noqa: S603, S607


def test_a_full_disk(tmp_path: Path, mount: Mount) -> None:
    disk = tmp_path / "disk"
    mount(disk, "size=2m")
    ballast = disk / "ballast"
    tier = open_tier(disk, budget_bytes=64 << 20)
    put(tier, "a", size=100_000)
    ballast.write_bytes(bytes(1 << 20))
    stored = {"a": 0}
    with pytest.raises(TierUnavailable, match=r"No space left.*free space on the disk"):
        for number in range(100):
            put(tier, f"{number}", size=100_000)
            stored[f"{number}"] = 0
    assert len(stored) > 3
    check(tier, stored, size=100_000)
    assert len(blob_files(disk)) == 2 * len(stored)  # nothing half-written stays
    with pytest.raises(TierUnavailable):
        put(tier, "a", 1, size=100_000)
    check(tier, stored, size=100_000)
    with ballast.open("ab") as rest, pytest.raises(OSError, match="No space left"):
        while True:
            os.write(rest.fileno(), bytes(4096))
    tier.close()  # with not a byte left
    tier = open_tier(disk, budget_bytes=64 << 20)
    check(tier, stored, size=100_000)
    ballast.unlink()
    put(tier, "a", 1, size=100_000)
    tier.remove("0")
    del stored["0"]
    check(tier, {**stored, "a": 1}, size=100_000)
    assert len(blob_files(disk)) == 2 * len(stored)
    tier.close()


def test_a_disk_of_the_budgets_size_never_fills(tmp_path: Path, mount: Mount) -> None:
    disk = tmp_path / "disk"
    mount(disk, "size=3m")
    tier = open_tier(disk, budget_bytes=3 << 20)
    for number in range(60):
        put(tier, f"{number % 20}", number, size=[5000, 250_000][number % 2])
    assert tier.counts.errors == 0
    assert tier.counts.evictions > 20
    tier.close()


def test_a_read_only_disk(tmp_path: Path, mount: Mount) -> None:
    disk = tmp_path / "disk"
    mount(disk, "size=4m")
    tier = open_tier(disk)
    put(tier, "a")
    tier.close()
    mount(disk, "remount,ro")
    with pytest.raises(TierUnavailable, match=r"Read-only file system.*mount it writable"):
        open_tier(disk)
    mount(disk, "remount,rw")
    tier = open_tier(disk)
    check(tier, {"a": 0})
    tier.close()


def test_a_disk_that_goes_and_comes_back(tmp_path: Path, mount: Mount) -> None:
    disk = tmp_path / "disk"
    kept = tmp_path / "kept"
    mount(disk, "size=4m")
    tier = open_tier(disk)
    put(tier, "a")
    shutil.copytree(disk, kept)
    mount(disk, "size=4m")  # an empty one over it
    for _ in range(2):
        with pytest.raises((TierUnavailable, NotStored)):
            tier.read("a", 0, [ByteRange(0, 10)])
    put(tier, "b")
    check(tier, {"b": 0})
    assert tier.counts.reopened == 1
    subprocess.run(["umount", "--lazy", disk], check=True)  # noqa: S603, S607
    with pytest.raises(TierUnavailable, match="has gone"):
        put(tier, "c")
    check(tier, {"a": 0})
    put(tier, "c")
    check(tier, {"a": 0, "c": 0})
    tier.close()


def test_a_folder_that_takes_no_files(tmp_path: Path) -> None:
    """Where root is stopped, too: by the immutable attribute."""
    tier = open_tier(tmp_path)
    put(tier, "a")
    blobs = folder_of(tmp_path) / "blobs"
    if subprocess.run(["chattr", "+i", blobs], capture_output=True, check=False).returncode:  # noqa: S603, S607
        pytest.skip("no immutable folders here")
    try:
        with pytest.raises(TierUnavailable, match="let this user write there"):
            put(tier, "b")
        check(tier, {"a": 0})
        with pytest.raises(TierUnavailable):
            tier.remove("a")
    finally:
        subprocess.run(["chattr", "-i", blobs], check=True)  # noqa: S603, S607
    put(tier, "b")
    check(tier, {"b": 0})
    assert len(blob_files(tmp_path)) == 2
    tier.close()


@pytest.mark.parametrize("what", ["store", "root"])
def test_a_folder_that_vanishes(tmp_path: Path, what: str) -> None:
    root = tmp_path / "root"
    tier = open_tier(root)
    put(tier, "a")
    shutil.rmtree(root if what == "root" else folder_of(root))
    if what == "root":  # not made anew: whoever mounts it would hide what was written below
        for call in (lambda: put(tier, "b"), lambda: tier.read("a", 0, []), tier.records):
            with pytest.raises(TierUnavailable, match="bring the folder back"):
                call()
        root.mkdir()
    else:
        with pytest.raises(TierUnavailable, match="has gone"):
            tier.read("a", 0, [ByteRange(0, 1)])
    with pytest.raises(NotStored):
        tier.read("a", 0, [ByteRange(0, 1)])
    put(tier, "b")
    check(tier, {"b": 0})
    assert tier.counts.reopened == 1
    tier.close()


def test_a_folder_that_is_moved_away_and_back(tmp_path: Path) -> None:
    root = tmp_path / "root"
    tier = open_tier(root)
    put(tier, "a")
    root.rename(tmp_path / "away")
    with pytest.raises(TierUnavailable):
        put(tier, "b")
    with pytest.raises(TierUnavailable):
        tier.quarantine("a", "it can't be read")
    tier.used("a")
    (tmp_path / "away").rename(root)
    check(tier, {"a": 0})
    put(tier, "b")
    check(tier, {"a": 0, "b": 0})
    tier.close()


def test_a_vanished_folder_closes_quietly(tmp_path: Path) -> None:
    tier = open_tier(tmp_path / "root")
    put(tier, "a")
    shutil.rmtree(tmp_path / "root")
    tier.used("a")
    tier.close()


def test_blobs_deleted_by_somebody(tmp_path: Path) -> None:
    tier = open_tier(tmp_path)
    for donor in "ab":
        put(tier, donor)
    blob_files(tmp_path)[0].unlink()
    with pytest.raises(NotStored):
        tier.read("a", 0, [ByteRange(0, 1)])
    check(tier, {"b": 0})
    assert tier.counts.quarantined == 1
    shutil.rmtree(folder_of(tmp_path) / "blobs")
    with pytest.raises(TierUnavailable):
        put(tier, "c")
    put(tier, "c")
    check(tier, {"c": 0})
    tier.close()


def test_a_limit_on_file_sizes(tmp_path: Path) -> None:
    tier = open_tier(tmp_path)
    put(tier, "a")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        with pytest.raises(TierUnavailable, match="ulimit -f"):
            put(tier, "b", size=50_000)
        with pytest.raises(TierUnavailable):  # in SQLite's log, sooner or later
            for number in range(20):
                put(tier, f"{number}")
        stored = {record.id: 0 for record in tier.records()}
        check(tier, stored)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    put(tier, "b")
    check(tier, {**stored, "b": 0})
    assert len(blob_files(tmp_path)) == 2 * len(stored) + 2
    tier.close()


def test_no_file_descriptors_left(tmp_path: Path) -> None:
    tier = open_tier(tmp_path)
    put(tier, "a")
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, before[1]))
    try:
        with pytest.raises(TierUnavailable, match="ulimit -n"):
            tier.read("a", 0, [ByteRange(0, 1)])
        with pytest.raises(TierUnavailable):
            put(tier, "b")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    check(tier, {"a": 0})
    put(tier, "b")
    check(tier, {"a": 0, "b": 0})
    tier.close()


def test_an_index_that_somebody_holds(tmp_path: Path) -> None:
    tier = open_tier(tmp_path)
    put(tier, "a")
    tier.close()
    other = sqlite3.connect(folder_of(tmp_path) / "index.sqlite3", isolation_level=None)
    other.execute("PRAGMA locking_mode = EXCLUSIVE")
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(TierUnavailable, match="locked"):
        open_tier(tmp_path, timeout_s=0.01)
    other.close()
    tier = open_tier(tmp_path)
    check(tier, {"a": 0})
    tier.close()


def test_reading_and_writing_keep_no_files_open(tmp_path: Path) -> None:
    tier = open_tier(tmp_path)
    before = len(os.listdir("/proc/self/fd"))
    for number in range(20):
        put(tier, f"{number}")
        read_all(tier, record_of(f"{number}"))
        tier.remove(f"{number - 5}")
    assert len(os.listdir("/proc/self/fd")) <= before + 1  # the log's
    tier.close()
