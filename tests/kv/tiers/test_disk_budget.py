"""What donors on disk may take: never more, the right ones go, and the pinned ones stay."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from disk_cases import (
    blob_files,
    blobs_of,
    bytes_on_disk,
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
from tier_conformance import Vanishing

from semshare.errors import TierFull
from semshare.kv.tiers.disk import USES_KEPT
from semshare.kv.tiers.disk_index import INDEX_BYTES

SMALL = 2 * INDEX_BYTES  # room for three donors of `BIG` bytes
BIG = (150_000, 100_000)


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    yield from in_memory()


@pytest.mark.parametrize("policy", ["lru", "s3-fifo"])
def test_the_budget_holds_at_every_step(tmp_path: Path, policy: str) -> None:
    most = 0

    def at(point: str) -> None:
        nonlocal most
        most = max(most, bytes_on_disk(tmp_path))
        assert most <= SMALL, point

    tier = open_tier(tmp_path, budget_bytes=SMALL, policy=policy, at=at)
    evicted: list[str] = []
    tier.watch(Vanishing(evicted.append))
    for number in range(60):
        sizes = [BIG, (400_000,), (5000,) * 20][number % 3]
        put(tier, f"{number % 25}", number, sizes=sizes, n_tokens=[20, 3000][number % 2])
        assert tier.used_bytes <= SMALL
        if number % 7 == 0:
            tier.quarantine(f"{number % 25}", "a test")
    assert most > SMALL // 2
    assert len(evicted) == tier.counts["evictions"] > 30
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
    assert tier.counts["evictions"] == 3
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
    tier = open_tier(tmp_path, budget_bytes=16 << 20)
    for number in range(USES_KEPT):
        put(tier, f"{number}", sizes=(10,))
        tier.used(f"{number}")
    copy = open_copy(tmp_path)
    assert all(record.used_at > 2000.0 for record in copy.records())
    copy.close()
    tier.close()
