"""Donors in memory, under a budget that holds at every moment."""

from __future__ import annotations

import contextlib
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from properties import examples
from stored import make_record
from tier_conformance import Vanishing

from semshare.config import EvictionName
from semshare.errors import NotStored, TierFull
from semshare.kv.tiers.host import HostTier
from semshare.kv.tiers.tier import ByteRange, Tier


def size_of_one(blob_bytes: int) -> int:
    tier = HostTier(10**9)
    tier.put(make_record("a"), [bytes(blob_bytes)])
    return tier.used_bytes


def test_what_was_put_is_read_in_parts_without_a_copy() -> None:
    tier: Tier = HostTier(10**6)
    first, second = bytearray(b"0123456789"), b"abcdef"
    record = make_record("a", [10, 6])
    tier.put(record, [first, second])
    parts = tier.read("a", 0, [ByteRange(7, 9), ByteRange(0, 2), ByteRange(9, 14)])
    assert [bytes(part) for part in parts] == [b"78", b"01", b"9"]
    assert [bytes(part) for part in tier.read("a", 1, [ByteRange(0, 6)])] == [second]
    assert all(isinstance(part, memoryview) and part.readonly for part in parts)
    assert list(tier.records()) == [record]
    tier.remove("a")
    assert bytes(parts[0]) == b"78"  # whoever reads keeps what it reads
    assert (tier.used_bytes, list(tier.records())) == (0, [])


@pytest.mark.parametrize(("donor", "group"), [("b", 0), ("a", 1), ("a", -1)])
def test_what_is_not_there_says_so(donor: str, group: int) -> None:
    tier = HostTier(10**6)
    tier.put(make_record("a"), [b"0123"])
    with pytest.raises(NotStored, match=f"no layer group {group} of donor {donor}"):
        tier.read(donor, group, [])
    for nothing in (tier.used, tier.remove):
        nothing("b")
    tier.quarantine("b", "never was there")
    tier.update(make_record("b"))
    assert [record.id for record in tier.records()] == ["a"]


def test_a_quarantined_donor_may_be_put_anew() -> None:
    tier = HostTier(10**6)
    tier.put(make_record("a"), [b"broken"])
    tier.quarantine("a", "a checksum")
    with pytest.raises(NotStored):
        tier.read("a", 0, [])
    tier.put(make_record("a"), [b"whole"])
    assert bytes(tier.read("a", 0, [ByteRange(0, 5)])[0]) == b"whole"


def test_those_that_go_for_want_of_room_are_told_of_and_may_be_asked_for() -> None:
    tier = HostTier(2 * size_of_one(100), "lru")
    gone: list[tuple[str, int]] = []
    # The listener calls the tier, so it must not be told under the tier's lock.
    tier.watch(Vanishing(lambda donor: gone.append((donor, len(list(tier.records()))))))
    for name in "ab":
        tier.put(make_record(name), [bytes(100)])
    tier.used("a")
    tier.put(make_record("c"), [bytes(100)])
    tier.remove("c")
    assert gone == [("b", 2)]


def test_pins_hold_and_a_donor_too_large_changes_nothing() -> None:
    one = size_of_one(100)
    tier = HostTier(2 * one, "lru")
    tier.put(make_record("a", pinned=True), [bytes(100)])
    tier.put(make_record("b"), [b"b" * 100])
    with pytest.raises(TierFull, match="pinned donors hold"):
        tier.put(make_record("b"), [bytes(101 + one)])
    assert bytes(tier.read("b", 0, [ByteRange(0, 1)])[0]) == b"b"
    tier.put(make_record("c"), [bytes(100)])
    assert {record.id for record in tier.records()} == {"a", "c"}
    # Unpinned, and the pin moves to another.
    tier.update(make_record("a", pinned=False))
    tier.update(make_record("c", pinned=True))
    tier.put(make_record("d"), [bytes(100)])
    assert {record.id for record in tier.records()} == {"c", "d"}


def test_an_update_replaces_what_is_said_and_keeps_the_blobs() -> None:
    tier = HostTier(10**6)
    tier.put(make_record("a"), [b"0123"])
    before = tier.used_bytes
    said = make_record("a", published=True, history=np.ones(3, np.float32), expires_at=0.0)
    tier.update(said)
    # Room for a history was there from the start, and what expired is still listed.
    assert (list(tier.records()), tier.used_bytes) == ([said], before)
    assert bytes(tier.read("a", 0, [ByteRange(0, 4)])[0]) == b"0123"
    tier.update(make_record("a", vector=np.zeros(1000, np.float32)))
    assert tier.used_bytes == before + 4 * 996


def test_closing_twice_drops_everything_once() -> None:
    tier = HostTier(10**6)
    tier.put(make_record("a", pinned=True), [b"0123"])
    tier.close()
    tier.close()
    assert (tier.used_bytes, list(tier.records())) == (0, [])


names = st.sampled_from("abcdefgh")
actions = st.one_of(
    st.tuples(st.just("put"), names, st.lists(st.integers(0, 3000), max_size=3), st.booleans()),
    st.tuples(st.just("update"), names, st.integers(0, 2000), st.booleans()),
    st.tuples(st.sampled_from(["used", "remove", "quarantine"]), names),
)


@pytest.mark.parametrize("policy", ["lru", "s3-fifo"])
@given(budget=st.integers(0, 20_000), steps=st.lists(actions, max_size=40))
@examples(150)
def test_the_budget_holds_and_the_tier_has_what_was_not_evicted(
    policy: EvictionName, budget: int, steps: list[tuple]
) -> None:
    tier = HostTier(budget, policy)
    expected: dict[str, list[bytes]] = {}
    pinned: set[str] = set()
    evicted: list[str] = []
    tier.watch(Vanishing(evicted.append))
    for number, (what, name, *rest) in enumerate(steps):
        evicted.clear()
        try:
            if what == "put":
                blobs = [bytes([number % 256]) * size for size in rest[0]]
                tier.put(make_record(name, pinned=rest[1]), blobs)
                expected[name] = blobs
                (pinned.add if rest[1] else pinned.discard)(name)
            elif what == "update":
                vector = np.zeros(rest[0], np.float32)
                tier.update(make_record(name, vector=vector, pinned=rest[1]))
                if name in expected:
                    (pinned.add if rest[1] else pinned.discard)(name)
            elif what == "used":
                tier.used(name)
            else:
                tier.remove(name) if what == "remove" else tier.quarantine(name, "a test")
                expected.pop(name, None)
                pinned.discard(name)
        except TierFull:
            assert not evicted
        for victim in evicted:
            assert victim not in pinned
            assert victim != name
            del expected[victim]
        assert 0 <= tier.used_bytes <= budget
        assert {record.id for record in tier.records()} == set(expected)
        for donor, blobs in expected.items():
            for group, blob in enumerate(blobs):
                assert bytes(tier.read(donor, group, [ByteRange(0, 3000)])[0]) == blob


def test_threads_that_put_read_and_remove_at_once_never_pass_the_budget() -> None:
    tier = HostTier(4 * size_of_one(1000), "s3-fifo")
    over: list[int] = []
    begin = threading.Barrier(4)

    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        begin.wait()
        for _ in range(200):
            name = "abcdefgh"[rng.integers(8)]
            choice = rng.integers(4)
            if choice == 0:
                tier.remove(name)
            elif choice == 1:
                tier.used(name)
            else:
                tier.put(make_record(name), [name.encode() * 1000])
            with contextlib.suppress(NotStored):
                assert bytes(tier.read(name, 0, [ByteRange(999, 1000)])[0]) == name.encode()
            if (used := tier.used_bytes) > tier.budget_bytes:
                over.append(used)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(work, range(4)))
    assert over == []
    for record in tier.records():
        tier.remove(record.id)
    assert tier.used_bytes == 0
