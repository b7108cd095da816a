"""What a kill or a loss of power leaves behind: whole donors, and nothing else after opening."""

from __future__ import annotations

import json
import os
import random
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from disk_cases import (
    BUDGET,
    blob_files,
    blobs_of,
    bytes_on_disk,
    folder_of,
    in_memory,
    open_tier,
    read_all,
    record_of,
    said,
)

from semshare.kv.tiers.disk_index import INDEX_BYTES

KILLS = 240
SMALL = 2 * INDEX_BYTES  # room for three donors of `BIG` bytes
BIG = (150_000, 100_000)


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    yield from in_memory()


def test_kill_at_every_step_leaves_whole_donors(tmp_path: Path) -> None:
    """Nothing was torn, mixed or lost in any of these, and the budget held; see `disk_kills`."""
    script = Path(__file__).with_name("disk_kills.py")
    paths = [str(script.parent), str(Path(__file__).parents[3]), *sys.path]
    done = subprocess.run(  # noqa: S603 - our own script
        [sys.executable, script, tmp_path, str(KILLS)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OPENBLAS_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        check=True,
    )
    found = json.loads(done.stdout)
    assert found["failures"] == []
    assert found["broken"] == 0  # a kill alone breaks nothing; half-written files are orphans
    assert found["kills"] == KILLS
    assert found["evictions"] > 20
    assert found["orphans"] > 100
    assert len(found["points"]) == 11
    assert min(found["points"].values()) >= 10, found["points"]


class Power:
    """Knows at any moment what a disk that loses its power may lose, and makes a copy without it.

    Bytes are safe once their file is synced, names once their folder is. What SQLite writes is not
    watched: it syncs by itself before a commit returns, with `synchronous = FULL`.
    """

    def __init__(self, root: Path, spare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = root
        self.spare = spare
        self.trace: list[tuple[str, str]] = []
        self.names: list[tuple[str, Path, Path]] = []  # changed, and not yet safe
        self.unsafe: set[int] = set()  # inodes
        self.real = {name: getattr(os, name) for name in ("write", "fsync", "rename", "unlink")}
        for name in self.real:
            monkeypatch.setattr(os, name, getattr(self, name))

    def write(self, fd: int, data: bytes) -> int:
        self.unsafe.add(os.fstat(fd).st_ino)
        self.note("write", Path(f"/proc/self/fd/{fd}").readlink())
        return self.real["write"](fd, data)  # type: ignore[no-any-return]

    def fsync(self, fd: int) -> None:
        path = Path(f"/proc/self/fd/{fd}").readlink()
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            self.names = [change for change in self.names if change[1].parent != path]
            self.note("fsync folder", path)
        else:
            self.unsafe.discard(os.fstat(fd).st_ino)
            self.note("fsync", path)

    def rename(self, old: Path, new: Path) -> None:
        self.note("rename", Path(new))
        self.names.append(("rename", Path(old), Path(new)))
        self.real["rename"](old, new)

    def unlink(self, path: Path) -> None:
        kept = self.spare / f"{len(self.names)}.{Path(path).name}"
        if Path(path).exists():
            os.link(path, kept)
            self.names.append(("unlink", Path(path), kept))
        self.note("unlink", Path(path))
        self.real["unlink"](path)

    def note(self, what: str, path: Path) -> None:
        self.trace.append((what, path.name))

    def at(self, point: str) -> None:
        if point in {"commit", "committed"}:
            self.trace.append((point, ""))

    def cut(self, copy: Path, chance: random.Random) -> None:
        """Copy the folder as it may be found after losing power now."""
        shutil.copytree(self.root, copy)
        for path in blob_files(self.root):
            if path.stat().st_ino in self.unsafe:
                found = copy / path.relative_to(self.root)
                os.truncate(found, chance.randrange(found.stat().st_size + 1))
        for what, old, new in reversed(self.names):
            if chance.random() < 0.3:
                continue  # some changes reach the disk by themselves
            was = copy / old.relative_to(self.root)
            if what == "unlink":
                shutil.copy(new, was)
            elif (now := copy / new.relative_to(self.root)).exists():
                self.real["rename"](now, was)


@pytest.fixture
def power(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Power:
    (tmp_path / "spare").mkdir()
    return Power(tmp_path / "store", tmp_path / "spare", monkeypatch)


def test_bytes_then_names_then_the_row(power: Power) -> None:
    tier = open_tier(power.root, at=power.at)
    tier.put(record_of("a", 1), blobs_of("a", 1))
    old = [path.name for path in blob_files(power.root)]
    power.trace.clear()
    tier.put(record_of("a", 2), blobs_of("a", 2))
    new = [path.name for path in blob_files(power.root)]
    assert power.trace == [
        *[(step, f"{name}.tmp") for name in new for step in ("write", "fsync")],
        *[("rename", name) for name in new],
        ("fsync folder", "blobs"),
        ("commit", ""),
        ("committed", ""),
        *[("unlink", name) for name in old],
    ]
    tier.close()


def test_evicted_rows_go_before_their_files(power: Power) -> None:
    tier = open_tier(power.root, budget_bytes=SMALL, at=power.at)
    for donor in "abc":
        tier.put(record_of(donor, sizes=BIG), blobs_of(donor, 0, BIG))
    power.trace.clear()
    tier.put(record_of("d", sizes=BIG), blobs_of("d", 0, BIG))
    steps = [what for what, _ in power.trace]
    assert steps[:4] == ["commit", "committed", "unlink", "unlink"]
    assert steps[4] == "write"
    tier.close()


@pytest.mark.parametrize("seed", range(3))
def test_power_lost_at_every_step(
    tmp_path: Path, power: Power, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    chance = random.Random(seed)  # noqa: S311
    possible: dict[str, set[int | None]] = {donor: {None} for donor in "abcd"}
    cuts = 0

    def at(point: str) -> None:
        nonlocal cuts
        copy = tmp_path / f"copy{cuts}"
        cuts += 1
        power.cut(copy, chance)
        with monkeypatch.context() as plain:
            for name, function in power.real.items():
                plain.setattr(os, name, function)
            check_copy(copy, possible)

    tier = open_tier(power.root, budget_bytes=SMALL, at=at)
    for version, donor in enumerate("abacdbda"):
        if version > 2:  # somebody goes for it, perhaps
            possible = {other: versions | {None} for other, versions in possible.items()}
        possible[donor] = possible[donor] | {version}
        tier.put(record_of(donor, version, BIG), blobs_of(donor, version, BIG))
        here = {int(record.created_at) - 1000 for record in tier.records()}
        possible = {
            other: {one for one in versions if one in here} or {None}
            for other, versions in possible.items()
        }
        assert possible[donor] == {version}
    tier.close()
    assert cuts > 80


def check_copy(copy: Path, possible: dict[str, set[int | None]]) -> None:
    assert bytes_on_disk(copy) < BUDGET
    tier = open_tier(copy, budget_bytes=SMALL)
    records = {record.id: record for record in tier.records()}
    for donor, versions in possible.items():
        record = records.get(donor)
        version = None if record is None else int(record.created_at) - 1000
        assert version in versions
        if record is not None and version is not None:
            assert said(record) == said(record_of(donor, version, BIG))
            assert read_all(tier, record) == blobs_of(donor, version, BIG)
    assert len(blob_files(copy)) == 2 * len(records)
    assert bytes_on_disk(copy) <= SMALL
    tier.close()
    shutil.rmtree(copy)


def test_files_of_nobody_are_collected_at_start(tmp_path: Path) -> None:
    tier = open_tier(tmp_path)
    tier.put(record_of("a"), blobs_of("a", 0))
    tier.close()
    blobs = folder_of(tmp_path) / "blobs"
    (blobs / "b.00000001.0.kv").write_bytes(b"whole, but no row came")
    (blobs / "c.00000002.0.kv.tmp").write_bytes(b"ha")
    tier = open_tier(tmp_path)
    assert tier.counts["orphans"] == 2
    assert len(blob_files(tmp_path)) == 2
    assert [record.id for record in tier.records()] == ["a"]
    tier.close()
