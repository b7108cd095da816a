"""Donors on disk: what is put comes back, under a budget, also after opening the folder again."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from disk_cases import (
    BUDGET,
    blob_files,
    blobs_of,
    folder_of,
    in_memory,
    is_stored,
    open_copy,
    open_tier,
    put,
    read_all,
    record_of,
    said,
)

from semshare.errors import BlobForeign, NotStored, TierUnavailable
from semshare.kv.tiers.disk import DiskTier
from semshare.kv.tiers.disk_index import INDEX_BYTES
from semshare.kv.tiers.tier import ByteRange, Tier

SMALL = 2 * INDEX_BYTES  # room for three donors of `BIG` bytes
BIG = (150_000, 100_000)


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    yield from in_memory()


def test_what_is_put_comes_back_also_after_opening_again(tmp_path: Path) -> None:
    tier: Tier = open_tier(tmp_path)
    records = [record_of(donor, version) for version, donor in enumerate(["a", "b/ü", "c" * 300])]
    for version, record in enumerate(records):
        tier.put(record, [memoryview(blob) for blob in blobs_of(record.id, version)])
    for _ in range(2):
        assert isinstance(tier, DiskTier)
        assert sorted(map(said, tier.records())) == sorted(map(said, records))
        for version, record in enumerate(records):
            assert read_all(tier, record) == blobs_of(record.id, version)
        tier.close()
        tier = open_tier(tmp_path)
    assert tier.name == "disk"
    assert tier.budget_bytes == BUDGET
    tier.close()


def test_put_replaces_and_leaves_no_old_file(tmp_path: Path) -> None:
    tier = open_tier(tmp_path)
    put(tier, "a", 1, sizes=(100, 200, 300))
    put(tier, "a", 2, sizes=(50,))
    assert len(blob_files(tmp_path)) == 1
    assert list(map(said, tier.records())) == [said(record_of("a", 2, (50,)))]
    assert tier.read("a", 0, [ByteRange(0, 50)]) == blobs_of("a", 2, (50,))
    with pytest.raises(NotStored, match="group 1"):
        tier.read("a", 1, [ByteRange(0, 50)])
    with pytest.raises(NotStored, match="51"):
        tier.read("a", 0, [ByteRange(0, 51)])
    tier.close()


def test_what_is_said_of_a_donor_is_kept_at_once(tmp_path: Path) -> None:
    tier = open_tier(tmp_path)
    put(tier, "a")
    told = replace(
        record_of("a"),
        pinned=True,
        published=True,
        history=np.ones(20, np.float32),
        expires_at=2000.0,
        used_at=1500.0,
    )
    tier.update(told)
    tier.update(replace(told, id="nobody"))
    tier.update(replace(told, group_bytes=(1, 2), pinned=False))  # of blobs that lie here no longer
    copy = open_copy(tmp_path)
    (found,) = copy.records()
    assert said(found) == said(told)
    assert found.used_at == 1500.0
    assert read_all(copy, found) == blobs_of("a", 0)
    copy.close()
    tier.close()


def test_removed_and_broken_donors_are_gone_for_good(tmp_path: Path) -> None:
    tier = open_tier(tmp_path)
    empty = tier.used_bytes
    for donor in "abc":
        put(tier, donor)
    tier.remove("a")
    tier.remove("nobody")
    tier.quarantine("b", "its first group does not decode")
    tier.quarantine("nobody", "nothing")
    for _ in range(2):
        assert [record.id for record in tier.records()] == ["c"]
        assert [is_stored(tier, donor) for donor in "abc"] == [False, False, True]
        assert len(blob_files(tmp_path)) == 2
        aside = sorted(path.name[0] for path in (folder_of(tmp_path) / "quarantine").iterdir())
        assert aside == ["b", "b"]
        tier.close()
        tier = open_tier(tmp_path)
    put(tier, "b", 5)
    assert read_all(tier, record_of("b", 5)) == blobs_of("b", 5)
    for donor in "bc":
        tier.remove(donor)
    assert tier.used_bytes == empty + 2 * 8192 - 4096  # quarantine: 5,000 and 3,000 bytes in blocks
    tier.close()


def test_counts(tmp_path: Path) -> None:
    tier = open_tier(tmp_path)
    put(tier, "a")
    read_all(tier, record_of("a"))
    counts = tier.counts
    assert (counts["puts"], counts["reads"]) == (1, 2)
    assert counts["bytes_written"] == counts["bytes_read"] == 8000
    assert counts["errors"] == counts["quarantined"] == counts["orphans"] == counts["reopened"] == 0
    tier.close()


def test_reading_while_others_replace_and_remove(tmp_path: Path) -> None:
    """A read is of one version, or says that the donor is not stored."""
    tier = open_tier(tmp_path, budget_bytes=SMALL)
    sizes = (100_000,)
    whole = {blobs_of("a", version, sizes)[0] for version in range(40)}
    done, seen = threading.Event(), threading.Event()
    wrong: list[bytes] = []

    def look() -> None:
        while not done.is_set():
            try:
                (read,) = tier.read("a", 0, [ByteRange(0, 100_000)])
            except NotStored:
                continue
            seen.set()
            if read not in whole:
                wrong.append(bytes(read))

    threads = [threading.Thread(target=look) for _ in range(3)]
    for thread in threads:
        thread.start()
    for version in range(40):
        put(tier, "a", version, sizes=sizes)
        if version % 3 == 0:
            tier.remove("a")
        elif version % 3 == 1:
            for other in "bcd":
                put(tier, other, sizes=BIG)
    put(tier, "a", 39, sizes=sizes)
    assert seen.wait(60)
    done.set()
    for thread in threads:
        thread.join()
    assert not wrong
    assert tier.counts["errors"] == tier.counts["quarantined"] == 0
    tier.close()


def test_waiting_for_a_writer_ends(tmp_path: Path) -> None:
    reached, go_on = threading.Event(), threading.Event()

    def at(point: str) -> None:
        if point == "fsync" and threading.current_thread() is not threading.main_thread():
            reached.set()
            go_on.wait()

    tier = open_tier(tmp_path, at=at, timeout_s=0.01)
    put(tier, "a")
    slow = threading.Thread(target=put, args=(tier, "b"))
    slow.start()
    reached.wait()
    with pytest.raises(TierUnavailable, match=r"busy writing for 0\.01 s"):
        put(tier, "c")
    assert read_all(tier, record_of("a")) == blobs_of("a", 0)  # reading waits for nobody
    go_on.set()
    slow.join()
    assert is_stored(tier, "b")
    tier.close()


def test_arguments_are_checked(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="allow at least 2097152"):
        open_tier(tmp_path, budget_bytes=1 << 20)
    with pytest.raises(ValueError, match="names no folder"):
        DiskTier(tmp_path, "../up", BUDGET)
    tier = open_tier(tmp_path)
    with pytest.raises(ValueError, match="one blob for each group"):
        tier.put(record_of("a"), [b"short"])
    with pytest.raises(ValueError, match="used_at nan"):
        put(tier, "a", used_at=float("nan"))
    assert tier.records() == blob_files(tmp_path) == []
    tier.close()
    tier.close()
    with pytest.raises(TierUnavailable, match="closed"):
        put(tier, "a")
    with pytest.raises(TierUnavailable, match="closed"):
        tier.read("a", 0, [])


def test_a_folder_moved_from_another_model(tmp_path: Path) -> None:
    open_tier(tmp_path).close()
    folder_of(tmp_path).rename(tmp_path / "other")
    with pytest.raises(BlobForeign, match="'0123456789abcdef', not 'other'"):
        DiskTier(tmp_path, "other", BUDGET)


def test_importing_it_is_light() -> None:
    """Tests start hundreds of processes; and the client and `--help` need no model."""
    code = "import sys, semshare.kv.tiers.disk; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)  # noqa: S603


def test_warm_restart_of_many_donors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One look at the folder and one query, whatever it holds; opens no blob."""
    tier = open_tier(tmp_path, budget_bytes=64 << 20)
    for number in range(300):
        put(tier, f"{number}", sizes=(10, 10), n_tokens=1000)
    tier.close()
    monkeypatch.setattr("semshare.kv.tiers.disk_files._pread", None)
    tier = open_tier(tmp_path, budget_bytes=64 << 20)
    records = {record.id: record for record in tier.records()}
    assert len(records) == 300
    assert said(records["7"]) == said(record_of("7", sizes=(10, 10), n_tokens=1000))
    tier.close()
