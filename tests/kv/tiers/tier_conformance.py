"""What every tier must do, as tests: a tier's test file makes a subclass that builds its tier."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest

from semshare.errors import NotStored, TierFull
from semshare.kv.tiers.tier import ByteRange, DonorRecord, Tier

SLACK = 64 << 10  # more than the records of a few small donors take
MakeTier = Callable[[int], Tier]


def blobs_of(seed: int, *sizes: int) -> list[bytes]:
    """Random blobs of these sizes."""
    rng = np.random.default_rng(seed)
    return [rng.bytes(size) for size in sizes]


def record_of(donor: str, blobs: list[bytes], **changes: Any) -> DonorRecord:
    """A record of a donor with these blobs."""
    record = DonorRecord(
        id=donor,
        namespace="tenant",
        ids=np.arange(7, dtype=np.int32),
        vector=np.linspace(0, 1, 5, dtype=np.float32),
        embedder="hash",
        history=np.zeros(0, np.float32),
        coding="full",
        head_bytes=3,
        group_bytes=tuple(map(len, blobs)),
        pinned=False,
        published=False,
        created_at=1_700_000_000.25,
        used_at=1_700_000_001.5,
        expires_at=math.inf,
    )
    return replace(record, **changes)


def assert_same(one: DonorRecord, other: DonorRecord) -> None:
    """Every field, arrays with their dtypes."""
    for field in fields(DonorRecord):
        left, right = getattr(one, field.name), getattr(other, field.name)
        if isinstance(left, np.ndarray):
            np.testing.assert_array_equal(left, right, strict=True)
        else:
            assert left == right, field.name


class Vanishing:
    """A watcher that hands on which donors vanish."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self.vanished = tell

    def appeared(self, record: DonorRecord) -> None:
        """Not here."""

    def forgotten(self, donor: str) -> None:
        """Not here."""


def whole(tier: Tier, donor: str, group: int, size: int) -> bytes:
    """A whole blob."""
    return bytes(tier.read(donor, group, [ByteRange(0, size)])[0])


def names(tier: Tier) -> set[str]:
    """Of the donors it has."""
    return {record.id for record in tier.records()}


class TierConformance:
    """Subclasses have a fixture `make_tier` that builds an empty tier with room for so many bytes.

    unit: bytes of a blob where room matters; a tier that needs room of its own may take more.
    """

    unit = 100_000

    def test_what_is_put_is_read_in_any_ranges(self, make_tier: MakeTier) -> None:
        tier = make_tier(1 << 20)
        blobs = blobs_of(0, 10_001, 1, 0, 5000)
        tier.put(record_of("donor-1", blobs), blobs)
        for group, blob in enumerate(blobs):
            assert whole(tier, "donor-1", group, len(blob)) == blob
        ranges = [(0, 3), (3, 3), (9_999, 10_001), (0, 0), (1000, 9000), (2, 5)]
        found = tier.read("donor-1", 0, [ByteRange(*one) for one in ranges])
        assert [bytes(one) for one in found] == [blobs[0][slice(*one)] for one in ranges]
        assert tier.read("donor-1", 3, []) == []

    def test_blobs_may_be_any_buffers(self, make_tier: MakeTier) -> None:
        tier = make_tier(1 << 20)
        blobs = blobs_of(1, 100, 200)
        tier.put(record_of("donor-1", blobs), [bytearray(blobs[0]), memoryview(blobs[1])])
        assert [whole(tier, "donor-1", 0, 100), whole(tier, "donor-1", 1, 200)] == blobs

    def test_records_come_back_as_they_were(self, make_tier: MakeTier) -> None:
        tier = make_tier(1 << 20)
        blobs = blobs_of(2, 10, 10)
        given = {
            "donor-1": record_of("donor-1", blobs, coding="int8", published=True, pinned=True),
            "donor-2": record_of(
                "donor-2",
                blobs,
                namespace="ä:{}\n*\0 " * 5,
                history=np.arange(7, dtype=np.float32),
                expires_at=time.time() + 3600,
            ),
        }
        for record in given.values():
            tier.put(record, blobs)
        found = {record.id: record for record in tier.records()}
        assert found.keys() == given.keys()
        for name, record in given.items():
            assert_same(found[name], record)

    def test_what_is_not_there_is_not_stored(self, make_tier: MakeTier) -> None:
        tier = make_tier(1 << 20)
        with pytest.raises(NotStored, match="donor-1"):
            tier.read("donor-1", 0, [ByteRange(0, 1)])
        blobs = blobs_of(3, 10)
        tier.put(record_of("donor-1", blobs), blobs)
        with pytest.raises(NotStored):
            tier.read("donor-1", 1, [ByteRange(0, 1)])
        tier.used("donor-2")
        tier.update(record_of("donor-2", blobs))
        tier.remove("donor-2")
        tier.quarantine("donor-2", "for a test")
        assert names(tier) == {"donor-1"}

    def test_a_donor_put_again_is_replaced(self, make_tier: MakeTier) -> None:
        # At last old and new don't fit beside each other.
        tier = make_tier(4 * self.unit + SLACK)
        for seed, sizes in enumerate([(2, 1), (1,), (3, 0.5)]):
            blobs = blobs_of(seed, *(int(size * self.unit) for size in sizes))
            record = record_of("donor-1", blobs, coding="int8" if seed else "full")
            tier.put(record, blobs)
            assert [whole(tier, "donor-1", g, len(b)) for g, b in enumerate(blobs)] == blobs
            (found,) = tier.records()
            assert_same(found, record)
        tier.remove("donor-1")
        assert tier.used_bytes == 0

    def test_update_changes_what_is_said_and_no_blob(self, make_tier: MakeTier) -> None:
        tier = make_tier(1 << 20)
        blobs = blobs_of(4, 3000)
        record = record_of("donor-1", blobs)
        tier.put(record, blobs)
        history = np.arange(7, dtype=np.float32)
        changed = replace(record, history=history, published=True, used_at=2e9)
        tier.update(changed)
        (found,) = tier.records()
        assert_same(found, changed)
        assert whole(tier, "donor-1", 0, 3000) == blobs[0]

    def test_what_is_removed_is_gone_and_its_bytes_are_free(self, make_tier: MakeTier) -> None:
        tier = make_tier(1 << 20)
        assert tier.used_bytes == 0
        blobs = blobs_of(5, 3000)
        tier.put(record_of("donor-1", blobs), blobs)
        assert 3000 < tier.used_bytes < 3000 + SLACK
        tier.remove("donor-1")
        assert tier.used_bytes == 0
        assert names(tier) == set()
        with pytest.raises(NotStored):
            whole(tier, "donor-1", 0, 3000)

    def test_a_quarantined_donor_is_gone_and_may_be_put_anew(self, make_tier: MakeTier) -> None:
        tier = make_tier(1 << 20)
        blobs = blobs_of(6, 3000)
        tier.put(record_of("donor-1", blobs), blobs)
        tier.quarantine("donor-1", "a byte was flipped, says a test")
        assert names(tier) == set()
        with pytest.raises(NotStored):
            whole(tier, "donor-1", 0, 3000)
        tier.put(record_of("donor-1", blobs), blobs)
        assert whole(tier, "donor-1", 0, 3000) == blobs[0]

    def test_room_is_made_and_told_and_pinned_donors_stay(self, make_tier: MakeTier) -> None:
        tier = make_tier(10 * self.unit + SLACK)
        told: list[str] = []
        tier.watch(Vanishing(told.append))
        blobs = blobs_of(7, self.unit)
        for number in range(30):
            tier.put(record_of(f"donor-{number}", blobs, pinned=number in (0, 1)), blobs)
            assert tier.used_bytes <= tier.budget_bytes
        there = names(tier)
        assert {"donor-0", "donor-1", "donor-29"} <= there
        assert len(there) >= 8
        assert sorted(told) == sorted({f"donor-{number}" for number in range(30)} - there)
        for donor in told:
            with pytest.raises(NotStored):
                whole(tier, donor, 0, self.unit)

    def test_what_fits_beside_no_pinned_donor_changes_nothing(self, make_tier: MakeTier) -> None:
        tier = make_tier(4 * self.unit + SLACK)
        told: list[str] = []
        tier.watch(Vanishing(told.append))
        blobs = blobs_of(8, self.unit)
        for number in range(3):
            tier.put(record_of(f"donor-{number}", blobs, pinned=number < 2), blobs)
        used = tier.used_bytes
        large = blobs_of(9, 3 * self.unit)
        with pytest.raises(TierFull, match="donor-large"):
            tier.put(record_of("donor-large", large), large)
        huge = blobs_of(9, 10 * self.unit)
        with pytest.raises(TierFull):
            tier.put(record_of("donor-huge", huge), huge)
        assert (names(tier), told) == ({"donor-0", "donor-1", "donor-2"}, [])
        assert tier.used_bytes == used
        # Unpinned, they may go.
        tier.update(record_of("donor-0", blobs, pinned=False))
        tier.put(record_of("donor-large", large), large)
        assert {"donor-1", "donor-large"} <= names(tier)

    def test_pinning_by_update_keeps_a_donor(self, make_tier: MakeTier) -> None:
        tier = make_tier(3 * self.unit + SLACK)
        blobs = blobs_of(10, self.unit)
        tier.put(record_of("donor-kept", blobs), blobs)
        tier.update(record_of("donor-kept", blobs, pinned=True))
        for number in range(6):
            tier.put(record_of(f"donor-{number}", blobs), blobs)
        assert "donor-kept" in names(tier)

    def test_threads_at_once_never_exceed_the_budget_nor_mix_bytes(
        self, make_tier: MakeTier
    ) -> None:
        tier = make_tier(8 * self.unit + SLACK)
        blobs = {number: blobs_of(number, self.unit) for number in range(12)}
        over = threading.Event()

        def work(seed: int) -> int:
            hits = 0
            rng = np.random.default_rng(seed)
            for number in rng.integers(0, 12, 25).tolist():
                donor = f"donor-{number}"
                try:
                    assert whole(tier, donor, 0, self.unit) == blobs[number][0]
                    hits += 1
                except NotStored:
                    tier.put(record_of(donor, blobs[number]), blobs[number])
                if tier.used_bytes > tier.budget_bytes:
                    over.set()
            return hits

        with ThreadPoolExecutor(3) as pool:
            assert sum(pool.map(work, range(3))) > 0
        assert not over.is_set()

    def test_closing_twice_is_closing(self, make_tier: MakeTier) -> None:
        tier = make_tier(1 << 20)
        tier.close()
        tier.close()
