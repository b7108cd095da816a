"""Flipped, torn and lost bytes: in blobs they come out as they lie, in the index nothing does."""

from __future__ import annotations

import random
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from disk_cases import (
    blob_files,
    blobs_of,
    folder_of,
    in_memory,
    is_stored,
    open_tier,
    read_all,
    record_of,
    said,
)

from semshare.errors import NotStored, StorageError
from semshare.kv.tiers.disk import DiskTier
from semshare.kv.tiers.tier import ByteRange

DONORS = ("a", "b", "c")
FLIPS = 1000


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    yield from in_memory()


def fill(root: Path) -> DiskTier:
    tier = open_tier(root)
    for version, donor in enumerate(DONORS):
        tier.put(record_of(donor, version, n_tokens=400), blobs_of(donor, version))
    return tier


def flip(path: Path, chance: random.Random) -> tuple[int, int]:
    """Turn one bit over; where, and what the byte is now."""
    with path.open("r+b") as file:
        offset = chance.randrange(path.stat().st_size)
        file.seek(offset)
        byte = file.read(1)[0] ^ 1 << chance.randrange(8)
        file.seek(offset)
        file.write(bytes([byte]))
    return offset, byte


def test_flips_in_blobs_come_out_where_they_lie(tmp_path: Path) -> None:
    """Finding them is the reader's part; the tier moves none of them and shortens nothing."""
    tier = fill(tmp_path)
    chance = random.Random(0)  # noqa: S311
    files = {  # found from outside: names begin with the donor and end with the group
        (path.name[0], int(path.name.split(".")[2])): path for path in blob_files(tmp_path)
    }
    for _ in range(FLIPS):
        version = chance.randrange(len(DONORS))
        donor, group = DONORS[version], chance.randrange(2)
        path = files[donor, group]
        whole = path.read_bytes()
        offset, byte = flip(path, chance)
        expected = [bytearray(blob) for blob in blobs_of(donor, version)]
        expected[group][offset] = byte
        assert read_all(tier, record_of(donor, version)) == expected
        path.write_bytes(whole)
    assert list(map(said, tier.records())) == [
        said(record_of(donor, version, n_tokens=400)) for version, donor in enumerate(DONORS)
    ]
    tier.quarantine("a", "its checksum is wrong")
    assert not is_stored(tier, "a")
    assert tier.counts["quarantined"] == 1
    tier.close()


def test_torn_blobs_are_short_and_found_at_start(tmp_path: Path) -> None:
    tier = fill(tmp_path)
    path = next(path for path in blob_files(tmp_path) if path.name.startswith("b."))
    whole = path.read_bytes()
    chance = random.Random(0)  # noqa: S311
    for _ in range(100):
        left = chance.randrange(len(whole))
        path.write_bytes(whole[:left])
        parts = tier.read("b", 0, [ByteRange(0, 1000), ByteRange(1000, 5000), ByteRange(7, 7)])
        assert parts == [whole[: min(left, 1000)], whole[1000:left], b""]
    assert {record.id for record in tier.records()} == set(DONORS)
    tier.close()
    for size in (left, len(whole) + 1):
        path.write_bytes(bytes(size))
        tier = open_tier(tmp_path)
        assert {record.id for record in tier.records()} == {"a", "c"}
        assert tier.counts["quarantined"] == 1
        assert list((folder_of(tmp_path) / "quarantine").glob(path.name))
        tier.put(record_of("b", 1), blobs_of("b", 1))
        assert read_all(tier, record_of("b", 1)) == blobs_of("b", 1)
        tier.close()
        path = next(path for path in blob_files(tmp_path) if path.name.startswith("b."))


def put_again_until_it_stays(tier: DiskTier, root: Path) -> DiskTier:
    """Damage that nobody has met yet may cost one put, and is healed by meeting it."""
    for _ in range(3):
        with suppress(StorageError):
            tier.put(record_of("new", 5), blobs_of("new", 5))
        tier.close()
        tier = open_tier(root)
        if "new" in {record.id for record in tier.records()}:
            break
        assert tier.counts["rebuilt"] + tier.counts["quarantined"]
    return tier


def check_honest(root: Path) -> int:
    """A damaged store says nothing untrue and works; returns how many donors are left."""
    tier = open_tier(root)
    records = {record.id: record for record in tier.records()}
    for donor, record in records.items():
        version = DONORS.index(donor)
        assert said(record) == said(record_of(donor, version, n_tokens=400))
        assert read_all(tier, record) == blobs_of(donor, version)
    for donor in DONORS:
        assert is_stored(tier, donor) == (donor in records)
    tier = put_again_until_it_stays(tier, root)
    assert read_all(tier, record_of("new", 5)) == blobs_of("new", 5)
    assert len(blob_files(root)) == sum(len(record.group_bytes) for record in tier.records())
    tier.close()
    return len(records)


@pytest.mark.parametrize("file", ["index.sqlite3", "index.sqlite3-wal"])
def test_flips_in_the_index_make_no_donor_up(tmp_path: Path, file: str) -> None:
    """Each in a copy of a store whose process was killed, so that part of it is in the log."""
    tier = fill(tmp_path / "store")
    if file == "index.sqlite3":
        tier.close()
    shutil.copytree(tmp_path / "store", tmp_path / "whole")
    tier.close()
    chance = random.Random(0)  # noqa: S311
    left = []
    for number in range(100):
        copy = tmp_path / f"{number}"
        shutil.copytree(tmp_path / "whole", copy)
        for _ in range(1 + number % 3):
            flip(folder_of(copy) / file, chance)
        left.append(check_honest(copy))
        shutil.rmtree(copy)
    assert len(set(left)) > 1  # some flips did harm, and some of it to some donors only


def test_a_torn_index(tmp_path: Path) -> None:
    tier = fill(tmp_path / "whole")
    tier.close()
    chance = random.Random(0)  # noqa: S311
    size = (folder_of(tmp_path / "whole") / "index.sqlite3").stat().st_size
    for number in range(40):
        copy = tmp_path / f"{number}"
        shutil.copytree(tmp_path / "whole", copy)
        with (folder_of(copy) / "index.sqlite3").open("r+b") as file:
            file.truncate(chance.randrange(size))
        check_honest(copy)


def test_an_index_that_is_none_is_set_aside(tmp_path: Path) -> None:
    fill(tmp_path).close()
    (folder_of(tmp_path) / "index.sqlite3").write_bytes(b"no database, but bytes of some kind" * 99)
    tier = open_tier(tmp_path)
    assert list(tier.records()) == []
    assert blob_files(tmp_path) == []
    assert tier.counts["rebuilt"] == 1
    assert tier.counts["orphans"] == 6
    (aside,) = (folder_of(tmp_path) / "quarantine").iterdir()
    assert aside.read_bytes().startswith(b"no database")
    with pytest.raises(NotStored):
        tier.read("a", 0, [ByteRange(0, 1)])
    tier.close()


def change(root: Path, statement: str) -> None:
    """As an outsider would."""
    database = sqlite3.connect(folder_of(root) / "index.sqlite3")
    database.execute(statement)
    database.commit()
    database.close()


def test_an_index_of_another_schema_is_set_aside(tmp_path: Path) -> None:
    fill(tmp_path).close()
    change(tmp_path, "PRAGMA user_version = 99")
    tier = open_tier(tmp_path)
    assert list(tier.records()) == []
    assert tier.counts["rebuilt"] == 1
    tier.close()


def test_a_row_that_was_changed_by_somebody_is_dropped(tmp_path: Path) -> None:
    changes = {
        "a": "UPDATE donors SET namespace = 'tenant 1' WHERE id = 'a'",
        "b": "UPDATE arrays SET ids = zeroblob(1600) WHERE generation IN "
        "(SELECT generation FROM donors WHERE id = 'b')",
        "c": "UPDATE donors SET published = 1 WHERE id = 'c'",
    }
    for donor, statement in changes.items():
        root = tmp_path / donor
        fill(root).close()
        change(root, statement)
        tier = open_tier(root)
        assert {record.id for record in tier.records()} == set(DONORS) - {donor}
        assert not is_stored(tier, donor)
        assert tier.counts["quarantined"] == 1
        tier.close()
