"""Kills a process at many steps of its writes and looks each time at what it left behind.

`python disk_kills.py FOLDER KILLS`: prints a JSON record, `failures` of which are to be none. Each
kill is a child of this process (which has one thread and no torch, so that forking is cheap and
safe) that works on the store and is gone at a step drawn from the seed. It says through a pipe what
it has finished; what it was doing when it went may be done or not, but nothing between.
"""

from __future__ import annotations

import json
import logging
import os
import random
import shutil
import signal
import sys
from collections import Counter
from pathlib import Path

import disk_cases as cases
from tier_conformance import Vanishing

from semshare.kv.tiers import disk_files
from semshare.kv.tiers.disk import DiskTier
from semshare.kv.tiers.disk_index import INDEX_BYTES

disk_files.WRITE_BYTES = 50_000  # so that some are killed with a part of a blob written
KILLS_A_FOLDER = 20
DONORS = [f"donor-{number}" for number in range(6)]
SIZES = [(5000, 3000), (100_000,), (1, 2, 3), (160_000, 90_000), (300_000, 1000)]
POINTS = [
    *("create", "write", "fsync", "rename", "fsync folder", "commit", "committed", "unlink"),
    *("set aside", "checkpoint"),
]
MOST_S = 0.05  # before a kill that waits for no step
NOTHING = -1

# What each donor may be after a kill: versions, `NOTHING` among them where it may be gone.
Possible = dict[str, set[int]]


class Child:
    """Works on the store until it is killed: at a step, or by the timer, whose signal ends it."""

    def __init__(self, root: Path, seed: int, said: int) -> None:
        self.random = random.Random(seed)  # noqa: S311 - the same kills in every run
        self.target = self.random.choice(POINTS)
        self.left = self.random.randrange(4)
        self.said = said
        self.tier = cases.open_tier(root, budget_bytes=budget(seed), at=self.at)
        self.tier.watch(Vanishing(lambda donor: self.say("evicted", donor, NOTHING)))
        if seed % 5 == 0:  # at any moment, within SQLite's own steps too
            self.target = ""
            signal.setitimer(signal.ITIMER_REAL, self.random.uniform(1e-4, MOST_S))

    def at(self, point: str) -> None:
        if point == self.target:
            if self.left == 0:
                self.say("killed", point, NOTHING)
                os.kill(os.getpid(), signal.SIGKILL)
            self.left -= 1

    def say(self, what: str, donor: str, version: int) -> None:
        os.write(self.said, json.dumps([what, donor, version]).encode() + b"\n")

    def work(self, version: int) -> None:
        while True:
            version += 1
            donor = self.random.choice(DONORS)
            kind = self.random.choices(["put", "remove", "quarantine", "update"], [8, 1, 1, 2])[0]
            self.say(f"begin {kind}", donor, version)
            if kind == "put":
                sizes = self.random.choice(SIZES)
                pinned = self.random.random() < 0.1
                record = cases.record_of(donor, version, sizes, pinned=pinned)
                self.tier.put(record, cases.blobs_of(donor, version, sizes))
            elif kind == "update":
                for record in self.tier.records():
                    if record.id == donor:
                        self.tier.update(record)
            else:
                getattr(self.tier, kind)(donor, *["a test"] * (kind == "quarantine"))
            self.say(f"end {kind}", donor, version)


def budget(seed: int) -> int:
    """Large enough for everything, or for a few donors."""
    return 2 * INDEX_BYTES + (0 if seed // KILLS_A_FOLDER % 2 else 8 << 20)


def work_until_killed(root: Path, seed: int, version: int) -> list[list[object]]:
    receive, send = os.pipe()
    if (pid := os.fork()) == 0:
        try:
            Child(root, seed, send).work(version)
        finally:
            os._exit(1)  # it was to be killed
    os.close(send)
    with os.fdopen(receive) as lines:
        events = [json.loads(line) for line in lines]
    _, status = os.waitpid(pid, 0)
    if not os.WIFSIGNALED(status):
        raise SystemExit(f"seed {seed}: the child was not killed; it said {events[-3:]}")
    return events


def follow(possible: Possible, events: list[list[object]], small: bool) -> int:
    """What may be there after these events; returns the last version."""
    last = 0
    for what, donor, version in events:
        if what == "killed":
            continue
        if what == "evicted":
            possible[donor] = {NOTHING}
            continue
        last = version
        kind = what.split()[1]
        if what.startswith("begin"):
            if kind == "put":
                possible[donor] = possible[donor] | {version}
                for other in DONORS if small else ():
                    possible[other] = possible[other] | {NOTHING}  # evicted, perhaps
            elif kind != "update":
                possible[donor] = possible[donor] | {NOTHING}
        elif kind == "put":
            possible[donor] = {version}
        elif kind != "update":
            possible[donor] = {NOTHING}
    return last


def look(root: Path, seed: int, possible: Possible) -> tuple[list[str], DiskTier]:
    """What is wrong in a store after a kill."""
    wrong = []
    if (taken := cases.bytes_on_disk(root)) > budget(seed):
        wrong.append(f"{taken} bytes on disk, {budget(seed)} allowed")
    tier = cases.open_tier(root, budget_bytes=budget(seed))
    records = {record.id: record for record in tier.records()}
    for donor in DONORS:
        record = records.get(donor)
        version = NOTHING if record is None else int(record.created_at - 1000)
        if version not in possible[donor]:
            wrong.append(f"{donor} is version {version}, not of {possible[donor]}")
        if record is None:
            continue
        pinned = record.pinned
        expected = cases.record_of(donor, version, record.group_bytes, pinned=pinned)
        if cases.said(record) != cases.said(expected):
            wrong.append(f"the record of {donor} is not what was written")
        if cases.read_all(tier, record) != cases.blobs_of(donor, version, record.group_bytes):
            wrong.append(f"the blobs of {donor} are not what was written")
        possible[donor] = {version}
    for donor in DONORS:
        possible[donor] = possible[donor] if donor in records else {NOTHING}
    files = sum(len(record.group_bytes) for record in records.values())
    if files != len(cases.blob_files(root)):
        wrong.append(f"{len(cases.blob_files(root))} files for {files} blobs")
    if tier.used_bytes > budget(seed) or cases.bytes_on_disk(root) > budget(seed):
        wrong.append("more than the budget after opening")
    return [f"seed {seed}: {one}" for one in wrong], tier


def main(folder: Path, kills: int) -> None:
    logging.disable()
    failures: list[str] = []
    points: Counter[str] = Counter()
    totals: Counter[str] = Counter()
    possible: Possible = {}
    version = 0
    root = folder / "store"
    for seed in range(kills):
        if seed % KILLS_A_FOLDER == 0:
            shutil.rmtree(root, ignore_errors=True)
            possible = {donor: {NOTHING} for donor in DONORS}
        events = work_until_killed(root, seed, version)
        points[str(events[-1][1]) if events and events[-1][0] == "killed" else "any"] += 1
        small = budget(seed) == 2 * INDEX_BYTES
        version = max(version, follow(possible, events, small))
        wrong, tier = look(root, seed, possible)
        failures += wrong
        totals.update(orphans=tier.counts["orphans"], broken=tier.counts["quarantined"])
        totals["evictions"] += sum(event[0] == "evicted" for event in events)
        tier.close()
    print(json.dumps({"kills": kills, "points": points, **totals, "failures": failures}))  # noqa: T201 - read by the test


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
