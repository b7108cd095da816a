"""Donors on a disk: what a restart finds, and what it must not find."""

from __future__ import annotations

import os
import stat
import time
from dataclasses import replace
from pathlib import Path

import pytest
from below import Moody, push_out, storing_engine
from prompts import answerable, words

from semshare import InvalidRequest, ReusePolicy, SemShare, StorageConfig, StoreLocked

STEM = words(400, 1)
SPAN = ReusePolicy(mode="span")
PREFIX = ReusePolicy(mode="prefix")


def on_disk(folder: Path, **more: object) -> SemShare:
    return storing_engine(storage=StorageConfig(disk_path=str(folder)), **more)


def moved(seed: int) -> str:
    return answerable(words(50, 20 + seed) + STEM, seed)


def test_a_restart_finds_donors_and_reads_none_of_their_kv(tmp_path: Path) -> None:
    with on_disk(tmp_path) as before:
        full = before.score(moved(1), "hello", policy=ReusePolicy(mode="off")).logits
        before.remember(STEM)
        expected = before.score(moved(1), "hello", policy=SPAN).logits
        assert before.flush(30)
        told = [replace(one, last_used=0.0) for one in before.donors()]
    with on_disk(tmp_path) as after:
        assert [replace(one, last_used=0.0) for one in after.donors()] == told
        (tier,) = after.session.storage.stack.tiers
        assert tier.counts["bytes_read"] == 0
        got = after.score(moved(1), "hello", policy=SPAN)
        assert got.provenance.counts["span"] > 300
        assert tier.counts["bytes_read"] > 0
        assert (got.logits == expected).all()
        assert not (got.logits == full).all()
        assert after.score(STEM + words(40, 9), "a", policy=PREFIX).provenance.counts["prefix"]


@pytest.mark.parametrize("compression", ["none", "zstd"])
@pytest.mark.parametrize("donor_format", ["full", "int8"])
def test_every_form_comes_back(tmp_path: Path, compression: str, donor_format: str) -> None:
    storage = StorageConfig(
        disk_path=str(tmp_path), compression=compression, donor_format=donor_format
    )
    with storing_engine(storage=storage) as before:
        before.remember(STEM)
    with storing_engine(storage=storage) as after:
        answer = after.generate(moved(1), max_tokens=1, policy=SPAN)
        assert answer.provenance.counts["span"] > 300


def test_other_models_and_other_forms_are_not_found(tmp_path: Path) -> None:
    with on_disk(tmp_path) as before:
        before.remember(STEM)
    with on_disk(tmp_path, seed=1) as another_model:
        assert another_model.donors() == []
    int8 = StorageConfig(disk_path=str(tmp_path), donor_format="int8")
    with storing_engine(storage=int8) as another_form:
        assert another_form.donors() == []
    with on_disk(tmp_path) as after:
        assert len(after.donors()) == 1


def test_one_process_a_folder(tmp_path: Path) -> None:
    with on_disk(tmp_path), pytest.raises(StoreLocked, match=str(os.getpid())):
        on_disk(tmp_path)
    on_disk(tmp_path).close()
    with pytest.raises(InvalidRequest):  # the folder is let go of where another tier fails
        storing_engine(storage=StorageConfig(disk_path=str(tmp_path), redis_url="nonsense"))
    on_disk(tmp_path).close()


def test_what_expired_while_no_process_lived_leaves_the_disk(tmp_path: Path) -> None:
    now = 1_000.0
    with on_disk(tmp_path, now=lambda: now) as before:
        before.remember(STEM, ttl_s=10)
    assert list(tmp_path.glob("*/blobs/*"))
    now = 2_000.0
    with on_disk(tmp_path, now=lambda: now) as after:
        assert after.donors() == []
    assert not list(tmp_path.glob("*/blobs/*"))


@pytest.mark.parametrize("timeout_s", [0.0, 30.0])
def test_what_is_forgotten_does_not_come_back(tmp_path: Path, timeout_s: float) -> None:
    before = on_disk(tmp_path)
    for seed in range(20):
        before.remember(words(200, seed))
    assert before.flush(30)
    before.forget_all()
    before.close(timeout_s)
    with on_disk(tmp_path) as after:
        assert after.donors() == []


def test_what_was_not_written_yet_is_written_at_the_close(tmp_path: Path) -> None:
    before = on_disk(tmp_path)
    told = [before.remember(words(200, seed)) for seed in range(5)]
    before.close()
    with on_disk(tmp_path) as after:
        assert {one.id for one in after.donors()} == {one.id for one in told}


def test_closing_takes_no_longer_than_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    tier = Moody()
    monkeypatch.setattr("semshare.engine.storage_setup.HostTier", lambda *_: tier)
    engine = storing_engine()
    with tier.stuck():
        engine.remember(STEM)
        assert tier.asked.wait(30)
        started = time.monotonic()
        engine.close(0.2)
        assert time.monotonic() - started < 2.0  # and not the half minute that the tier takes


def test_prompts_on_disk_are_the_users_own(tmp_path: Path) -> None:
    with on_disk(tmp_path / "store") as engine:
        engine.remember(STEM)
    for path in (tmp_path / "store").rglob("*"):
        others = stat.S_IRWXG | stat.S_IRWXO
        assert not path.stat().st_mode & others or not path.parent.stat().st_mode & others
    assert stat.S_IMODE((tmp_path / "store").stat().st_mode) == 0o700


def test_bad_storage_is_refused_in_words(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"disk_bytes is 100: .* between 2097152"):
        StorageConfig(disk_path=str(tmp_path), disk_bytes=100)
    assert "secret" not in repr(StorageConfig(redis_url="redis://:secret@host"))


def test_a_disk_that_loses_a_file_costs_the_donor_only(tmp_path: Path) -> None:
    with on_disk(tmp_path) as engine:
        engine.remember(STEM)
        push_out(engine)
        for blob in tmp_path.glob("*/blobs/*"):
            blob.unlink()
        assert engine.generate(moved(1), max_tokens=1, policy=SPAN).provenance.reused == 0
        engine.session.storage.until_idle(30)
        assert engine.flush(30)
        assert engine.donors() == []
        engine.remember(STEM)
        push_out(engine)
        assert engine.generate(moved(2), max_tokens=1, policy=SPAN).provenance.counts["span"] > 300
