"""A disk that is full, read-only or gone: said as it is, nothing lost before, healed after."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import sqlite3
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest
from disk_cases import (
    blob_files,
    check_stored,
    folder_of,
    is_stored,
    open_tier,
    put_two,
    read_all,
    record_of,
)

from semshare.errors import NotStored, TierUnavailable
from semshare.kv.tiers.tier import ByteRange


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
    put_two(tier, "a")
    used, files = tier.used_bytes, blob_files(tmp_path)
    fault.on = True
    for donor in ("a", "b"):  # one that would be replaced, and a new one
        with pytest.raises(TierUnavailable, match=os.strerror(number)):
            put_two(tier, donor, 1)
        check_stored(tier, {"a": 0})
    fault.on = False
    if point != "commit":  # without which nothing can be deleted
        assert (tier.used_bytes, blob_files(tmp_path)) == (used, files)
    put_two(tier, "b", 2)
    put_two(tier, "a", 3)
    check_stored(tier, {"a": 3, "b": 2})
    assert len(blob_files(tmp_path)) == 4
    assert tier.counts["errors"] >= 2
    tier.close()
    tier = open_tier(tmp_path)
    check_stored(tier, {"a": 3, "b": 2})
    assert tier.counts["orphans"] == 0
    tier.close()


@pytest.mark.parametrize("point", ["unlink", "set aside"])
def test_files_that_cannot_be_deleted_yet_count_and_go_later(tmp_path: Path, point: str) -> None:
    fault = Fault(point, errno.EROFS)
    tier = open_tier(tmp_path, at=fault)
    for donor in "abc":
        put_two(tier, donor)
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
        put_two(tier, "d")
    check_stored(tier, {"b": 0, "c": 0})
    fault.on = False
    put_two(tier, "a", 4)
    check_stored(tier, {"a": 4, "b": 0, "c": 0})
    assert len(blob_files(tmp_path)) == 6
    tier.close()


def test_a_replaced_file_that_cannot_be_deleted_fails_no_put(tmp_path: Path) -> None:
    fault = Fault("unlink", errno.EIO)
    tier = open_tier(tmp_path, at=fault)
    put_two(tier, "a", 0)
    fault.on = True
    put_two(tier, "a", 1)
    check_stored(tier, {"a": 1})
    assert len(blob_files(tmp_path)) == 4
    fault.on = False
    put_two(tier, "b", 0)
    assert len(blob_files(tmp_path)) == 4
    assert tier.counts["errors"] == 2  # after the put, and again after the query
    tier.close()


def test_a_folder_that_takes_no_files(tmp_path: Path) -> None:
    """Where root is stopped, too: by the immutable attribute."""
    tier = open_tier(tmp_path)
    put_two(tier, "a")
    blobs = folder_of(tmp_path) / "blobs"
    if subprocess.run(["chattr", "+i", blobs], capture_output=True, check=False).returncode:  # noqa: S603, S607
        pytest.skip("no immutable folders here")
    try:
        with pytest.raises(TierUnavailable, match="let this user write there"):
            put_two(tier, "b")
        check_stored(tier, {"a": 0})
        with pytest.raises(TierUnavailable):
            tier.remove("a")
    finally:
        subprocess.run(["chattr", "-i", blobs], check=True)  # noqa: S603, S607
    put_two(tier, "b")
    check_stored(tier, {"b": 0})
    assert len(blob_files(tmp_path)) == 2
    tier.close()


@pytest.mark.parametrize("what", ["store", "root"])
def test_a_folder_that_vanishes(tmp_path: Path, what: str) -> None:
    root = tmp_path / "root"
    tier = open_tier(root)
    put_two(tier, "a")
    shutil.rmtree(root if what == "root" else folder_of(root))
    if what == "root":  # not made anew: whoever mounts it would hide what was written below
        for call in (lambda: put_two(tier, "b"), lambda: tier.read("a", 0, []), tier.records):
            with pytest.raises(TierUnavailable, match="bring the folder back"):
                call()
        root.mkdir()
    else:
        with pytest.raises(TierUnavailable, match="has gone"):
            tier.read("a", 0, [ByteRange(0, 1)])
    with pytest.raises(NotStored):
        tier.read("a", 0, [ByteRange(0, 1)])
    put_two(tier, "b")
    check_stored(tier, {"b": 0})
    assert tier.counts["reopened"] == 1
    tier.close()


def test_a_folder_that_is_moved_away_and_back(tmp_path: Path) -> None:
    root = tmp_path / "root"
    tier = open_tier(root)
    put_two(tier, "a")
    root.rename(tmp_path / "away")
    with pytest.raises(TierUnavailable):
        put_two(tier, "b")
    with pytest.raises(TierUnavailable):
        tier.quarantine("a", "it can't be read")
    tier.used("a")
    (tmp_path / "away").rename(root)
    check_stored(tier, {"a": 0})
    put_two(tier, "b")
    check_stored(tier, {"a": 0, "b": 0})
    tier.close()


def test_a_vanished_folder_closes_quietly(tmp_path: Path) -> None:
    tier = open_tier(tmp_path / "root")
    put_two(tier, "a")
    shutil.rmtree(tmp_path / "root")
    tier.used("a")
    tier.close()


def test_blobs_deleted_by_somebody(tmp_path: Path) -> None:
    tier = open_tier(tmp_path)
    for donor in "ab":
        put_two(tier, donor)
    blob_files(tmp_path)[0].unlink()
    with pytest.raises(NotStored):
        tier.read("a", 0, [ByteRange(0, 1)])
    check_stored(tier, {"b": 0})
    assert tier.counts["quarantined"] == 1
    shutil.rmtree(folder_of(tmp_path) / "blobs")
    with pytest.raises(TierUnavailable):
        put_two(tier, "c")
    put_two(tier, "c")
    check_stored(tier, {"c": 0})
    tier.close()


def test_a_limit_on_file_sizes(tmp_path: Path) -> None:
    tier = open_tier(tmp_path)
    put_two(tier, "a")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        with pytest.raises(TierUnavailable, match="ulimit -f"):
            put_two(tier, "b", size=50_000)
        with suppress(TierUnavailable):
            for number in range(20):
                put_two(tier, f"{number}")
        assert tier.counts["errors"] == 2  # the second of them in SQLite's log
        stored = {record.id: 0 for record in tier.records()}
        check_stored(tier, stored)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    put_two(tier, "b")
    check_stored(tier, {**stored, "b": 0})
    assert len(blob_files(tmp_path)) == 2 * len(stored) + 2
    tier.close()


def test_no_file_descriptors_left(tmp_path: Path) -> None:
    tier = open_tier(tmp_path)
    put_two(tier, "a")
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, before[1]))
    try:
        with pytest.raises(TierUnavailable, match="ulimit -n"):
            tier.read("a", 0, [ByteRange(0, 1)])
        with pytest.raises(TierUnavailable):
            put_two(tier, "b")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    check_stored(tier, {"a": 0})
    put_two(tier, "b")
    check_stored(tier, {"a": 0, "b": 0})
    tier.close()


def test_an_index_that_somebody_holds(tmp_path: Path) -> None:
    tier = open_tier(tmp_path)
    put_two(tier, "a")
    tier.close()
    other = sqlite3.connect(folder_of(tmp_path) / "index.sqlite3", isolation_level=None)
    other.execute("PRAGMA locking_mode = EXCLUSIVE")
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(TierUnavailable, match="locked"):
        open_tier(tmp_path, timeout_s=0.01)
    other.close()
    tier = open_tier(tmp_path)
    check_stored(tier, {"a": 0})
    tier.close()


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_reading_and_writing_keep_no_files_open(tmp_path: Path) -> None:
    tier = open_tier(tmp_path)
    before = open_files()
    for number in range(20):
        put_two(tier, f"{number}")
        read_all(tier, record_of(f"{number}"))
        tier.remove(f"{number - 5}")
    assert open_files() <= before + 1  # the log's
    tier.close()


STEPS = ["create", "write", "fsync", "rename", "fsync folder", "commit", "committed", "unlink"]


@pytest.mark.parametrize("step", STEPS)
def test_a_folder_that_vanishes_during_a_put(tmp_path: Path, step: str) -> None:
    """Told by this call or the next one; the one after that works on a new folder."""
    on = False

    def at(point: str) -> None:
        if on and point == step and folder_of(tmp_path).exists():
            shutil.rmtree(folder_of(tmp_path))

    tier = open_tier(tmp_path, at=at)
    put_two(tier, "a")
    on = True
    with pytest.raises(TierUnavailable):  # noqa: PT012 - which of them is the step's affair
        put_two(tier, "a", 1)
        tier.read("a", 0, [ByteRange(0, 1)])
    on = False
    with pytest.raises(NotStored):
        tier.read("a", 0, [ByteRange(0, 1)])
    put_two(tier, "b", 2)
    check_stored(tier, {"b": 2})
    assert tier.counts["reopened"] == 1
    tier.close()
    tier = open_tier(tmp_path)
    check_stored(tier, {"b": 2})
    tier.close()
