"""Donors on disk: what is put comes back, under a budget, also after opening the folder again."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from disk_cases import (
    BUDGET,
    blob_files,
    blobs_of,
    bytes_on_disk,
    folder_of,
    is_stored,
    open_tier,
    read_all,
    record_of,
    said,
)

from semshare.errors import BlobForeign, NotStored, TierFull, TierUnavailable
from semshare.kv.tiers.disk import USES_KEPT, DiskTier
from semshare.kv.tiers.disk_index import INDEX_BYTES
from semshare.kv.tiers.tier import ByteRange, Tier

SMALL = 2 * INDEX_BYTES  # room for three donors of `BIG` bytes
BIG = (150_000, 100_000)


def put(tier: DiskTier, donor: str, version: int = 0, **settings: object) -> None:
    record = record_of(donor, version, **settings)  # type: ignore[arg-type]
    tier.put(record, blobs_of(donor, version, record.group_bytes))


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


def open_copy(root: Path) -> DiskTier:
    """A store as it would be found if its process had been killed now."""
    copy = root.with_name(root.name + " copy")
    subprocess.run(["/bin/cp", "-a", root, copy], check=True)  # noqa: S603 - our own folder
    return open_tier(copy)


def test_uses_are_written_on_closing_and_order_what_goes(tmp_path: Path) -> None:
    tier = open_tier(tmp_path, budget_bytes=SMALL)
    for donor in "abc":
        put(tier, donor, sizes=BIG)
    before = time.time()
    tier.used("a")
    tier.used("nobody")
    (used,) = [record.used_at for record in tier.records() if record.id == "a"]
    assert used >= before
    tier.close()
    tier = open_tier(tmp_path, budget_bytes=SMALL)
    assert [record.used_at for record in tier.records() if record.id == "a"] == [used]
    put(tier, "d", sizes=BIG)
    assert [is_stored(tier, donor) for donor in "abcd"] == [True, False, True, True]
    tier.close()


def test_many_uses_are_written_without_closing(tmp_path: Path) -> None:
    tier = open_tier(tmp_path, budget_bytes=BUDGET * 4)
    for number in range(USES_KEPT):
        put(tier, f"{number}", sizes=(10,))
        tier.used(f"{number}")
    copy = open_copy(tmp_path)
    assert all(record.used_at > 2000.0 for record in copy.records())
    copy.close()
    tier.close()


@pytest.mark.parametrize("policy", ["lru", "s3-fifo"])
def test_the_budget_holds_at_every_step(tmp_path: Path, policy: str) -> None:
    most = 0

    def at(point: str) -> None:
        nonlocal most
        most = max(most, bytes_on_disk(tmp_path))
        assert most <= SMALL, point

    tier = open_tier(tmp_path, budget_bytes=SMALL, policy=policy, at=at)
    evicted: list[str] = []
    tier.on_evicted(evicted.append)
    for number in range(60):
        sizes = [BIG, (400_000,), (5000,) * 20][number % 3]
        put(tier, f"{number % 25}", number, sizes=sizes, n_tokens=[20, 3000][number % 2])
        assert tier.used_bytes <= SMALL
        if number % 7 == 0:
            tier.quarantine(f"{number % 25}", "a test")
    assert most > SMALL // 2
    assert len(evicted) == tier.counts.evictions > 30
    stored = {record.id for record in tier.records()}
    assert len(blob_files(tmp_path)) == sum(len(one.group_bytes) for one in tier.records())
    assert all(is_stored(tier, donor) == (donor in stored) for donor in map(str, range(25)))
    tier.close()


def test_pinned_donors_stay_and_what_does_not_fit_changes_nothing(tmp_path: Path) -> None:
    tier = open_tier(tmp_path, budget_bytes=SMALL)
    for donor in "ab":
        put(tier, donor, sizes=BIG, pinned=True)
    put(tier, "c", sizes=BIG)
    files = blob_files(tmp_path)
    for _ in range(2):
        with pytest.raises(TierFull, match="unpin donors"):
            put(tier, "d", sizes=(500_000,))
        assert blob_files(tmp_path) == files
        put(tier, "e", sizes=BIG)
        assert [is_stored(tier, donor) for donor in "abce"] == [True, True, False, True]
        tier.remove("e")
        put(tier, "c", sizes=BIG)
        tier.close()
        tier = open_tier(tmp_path, budget_bytes=SMALL)
        files = blob_files(tmp_path)
    tier.update(record_of("a", sizes=BIG, pinned=False))
    put(tier, "d", sizes=(500_000,))
    assert [is_stored(tier, donor) for donor in "abcd"] == [False, True, False, True]
    tier.close()


def test_replacing_what_has_no_room_beside_itself(tmp_path: Path) -> None:
    """The old one goes first then, and only then."""
    tier = open_tier(tmp_path, budget_bytes=SMALL)
    put(tier, "a", 1, sizes=(600_000,), pinned=True)
    put(tier, "a", 2, sizes=(700_000,), pinned=True)
    assert said(tier.records()[0]) == said(record_of("a", 2, (700_000,), pinned=True))
    with pytest.raises(TierFull):
        put(tier, "a", 3, sizes=(1_200_000,))
    assert read_all(tier, tier.records()[0]) == blobs_of("a", 2, (700_000,))
    tier.close()


def test_a_smaller_budget_after_opening_again(tmp_path: Path) -> None:
    tier = open_tier(tmp_path, budget_bytes=2 * SMALL)
    for number, donor in enumerate("abcdef"):
        put(tier, donor, sizes=BIG, used_at=2000.0 + number, pinned=donor == "a")
    tier.close()
    tier = open_tier(tmp_path, budget_bytes=SMALL)
    assert sorted(record.id for record in tier.records()) == ["a", "e", "f"]
    assert bytes_on_disk(tmp_path) <= SMALL
    assert tier.counts.evictions == 3
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


def test_quarantine_keeps_the_newest_within_its_share(tmp_path: Path) -> None:
    tier = open_tier(tmp_path, budget_bytes=SMALL)  # 64 KiB of it for quarantine
    for number in range(12):
        put(tier, f"{number:02}", sizes=(10_000, 5000))
        tier.quarantine(f"{number:02}", "a test")
    put(tier, "large", sizes=BIG)
    tier.quarantine("large", "a test")
    aside = sorted(path.name[:2] for path in (folder_of(tmp_path) / "quarantine").iterdir())
    assert len(aside) <= 6
    assert set(aside) <= {"09", "10", "11"}
    assert tier.used_bytes <= SMALL // 32
    tier.close()


def test_counts(tmp_path: Path) -> None:
    tier = open_tier(tmp_path)
    put(tier, "a")
    read_all(tier, record_of("a"))
    counts = tier.counts
    assert (counts.puts, counts.reads) == (1, 2)
    assert counts.bytes_written == counts.bytes_read == 8000
    assert counts.errors == counts.quarantined == counts.orphans == counts.reopened == 0
    tier.close()


def test_reading_while_others_replace_and_remove(tmp_path: Path) -> None:
    """A read is of one version, or says that the donor is not stored."""
    tier = open_tier(tmp_path, budget_bytes=SMALL)
    sizes = (100_000,)
    whole = {blobs_of("a", version, sizes)[0] for version in range(40)}
    done = threading.Event()
    wrong: list[bytes] = []
    found = 0

    def look() -> None:
        nonlocal found
        while not done.is_set():
            try:
                (read,) = tier.read("a", 0, [ByteRange(0, 100_000)])
            except NotStored:
                continue
            found += 1
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
    done.set()
    for thread in threads:
        thread.join()
    assert not wrong
    assert found
    assert tier.counts.errors == tier.counts.quarantined == 0
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
