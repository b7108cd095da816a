"""DiskTier against a dictionary, under any order of calls, closings and crashes."""

from __future__ import annotations

import shutil
from contextlib import suppress
from dataclasses import replace
from itertools import count
from pathlib import Path

import numpy as np
import pytest
from disk_cases import (
    blob_files,
    blobs_of,
    bytes_on_disk,
    in_memory,
    open_tier,
    read_all,
    record_of,
    said,
)
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)
from properties import examples
from tier_conformance import Vanishing

from semshare.errors import NotStored, TierFull
from semshare.kv.tiers.disk_index import INDEX_BYTES
from semshare.kv.tiers.tier import ByteRange, DonorRecord

BUDGET = 2 * INDEX_BYTES  # 960 KiB for donors

donors = st.sampled_from(["a", "b", "c", "d", "e"])
sizes = st.sampled_from([(1,), (0, 10), (5000, 3000), (200_000, 100_000), (400_000,), (700_000,)])


class DiskMachine(RuleBasedStateMachine):
    """`stored` maps each donor that is to be there to its record and the version of its blobs."""

    @initialize(policy=st.sampled_from(["lru", "s3-fifo"]))
    def start(self, policy: str) -> None:
        self.policy = policy
        self.folders = in_memory()
        self.folder = next(self.folders)
        self.roots = count()
        self.versions = count()
        self.stored: dict[str, tuple[DonorRecord, int]] = {}
        self.open(self.folder / "store")

    def open(self, root: Path) -> None:
        self.root = root
        self.tier = open_tier(root, budget_bytes=BUDGET, policy=self.policy)
        self.tier.watch(Vanishing(self.evicted))

    def evicted(self, donor: str) -> None:
        record, _ = self.stored.pop(donor)
        assert not record.pinned

    @rule(donor=donors, sizes=sizes, pinned=st.sampled_from([False, False, False, True]))
    def put(self, donor: str, sizes: tuple[int, ...], pinned: bool) -> None:
        version = next(self.versions)
        record = record_of(donor, version, sizes, pinned=pinned)
        before = dict(self.stored)
        try:
            self.tier.put(record, blobs_of(donor, version, sizes))
        except TierFull:
            assert self.stored == before
            others = [one for one, _ in self.stored.values() if one.pinned and one.id != donor]
            assert sum(one.n_bytes for one in others) + sum(sizes) > BUDGET // 4
        else:
            self.stored[donor] = record, version

    @rule(donor=donors, pinned=st.booleans(), published=st.booleans())
    def update(self, donor: str, pinned: bool, published: bool) -> None:
        record, version = self.stored.get(donor, (record_of(donor), 0))
        changed = replace(
            record, pinned=pinned, published=published, history=np.ones(20, np.float32)
        )
        self.tier.update(changed)
        if donor in self.stored:
            self.stored[donor] = changed, version

    @rule(donor=donors)
    def use(self, donor: str) -> None:
        self.tier.used(donor)

    @rule(donor=donors, broken=st.booleans())
    def remove(self, donor: str, broken: bool) -> None:
        if broken:
            self.tier.quarantine(donor, "a test")
        else:
            self.tier.remove(donor)
        self.stored.pop(donor, None)

    @rule()
    def close_and_open(self) -> None:
        self.tier.close()
        self.open(self.root)

    @rule()
    def crash_and_open(self) -> None:
        copy = self.folder / f"copy{next(self.roots)}"
        shutil.copytree(self.root, copy)
        self.tier.close()
        shutil.rmtree(self.root)
        self.open(copy)

    @invariant()
    def holds_what_was_put(self) -> None:
        found = {record.id: said(record) for record in self.tier.records()}
        assert found == {donor: said(record) for donor, (record, _) in self.stored.items()}
        for donor, (record, version) in self.stored.items():
            assert read_all(self.tier, record) == blobs_of(donor, version, record.group_bytes)
        for donor in {"a", "b", "c", "d", "e"} - set(self.stored):
            with pytest.raises(NotStored):
                self.tier.read(donor, 0, [ByteRange(0, 0)])

    @invariant()
    def takes_no_more_than_it_may(self) -> None:
        files = sum(len(record.group_bytes) for record, _ in self.stored.values())
        assert len(blob_files(self.root)) == files
        assert sum(record.n_bytes for record, _ in self.stored.values()) <= self.tier.used_bytes
        assert self.tier.used_bytes <= BUDGET
        assert bytes_on_disk(self.root) <= BUDGET
        counts = self.tier.counts
        assert counts["errors"] == counts["orphans"] == counts["rebuilt"] == counts["reopened"] == 0

    def teardown(self) -> None:
        with suppress(AttributeError):  # nothing was begun
            self.tier.close()
            self.folders.close()


def test_any_order_of_calls() -> None:
    run_state_machine_as_test(DiskMachine, settings=examples(60))  # type: ignore[no-untyped-call]
