"""Two processes on one store: the second is told who the first is."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from disk_cases import FINGERPRINT, blobs_of, open_tier, read_all, record_of

from semshare.errors import StoreLocked, TierUnavailable
from semshare.kv.tiers.store_lock import StoreLock

HOLD = """
import sys
from pathlib import Path
from semshare.kv.tiers.disk import DiskTier
tier = DiskTier(Path(sys.argv[1]), sys.argv[2], 4 << 20)
print("open", flush=True)
sys.stdin.read()
"""


def test_another_process_is_named_and_its_death_frees_the_store(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, tmp_path, FINGERPRINT]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, **pipes) as other:  # type: ignore[call-overload] # noqa: S603
        assert other.stdout.readline() == b"open\n"
        with pytest.raises(StoreLocked, match=rf"process {other.pid} on \S+ since 20.*stop that"):
            open_tier(tmp_path)
        other.send_signal(signal.SIGKILL)
    tier = open_tier(tmp_path)
    tier.put(record_of("a"), blobs_of("a", 0))
    assert read_all(tier, record_of("a")) == blobs_of("a", 0)
    tier.close()


def test_two_tiers_of_one_process(tmp_path: Path) -> None:
    tier = open_tier(tmp_path)
    with pytest.raises(StoreLocked, match=f"process {os.getpid()}"):
        open_tier(tmp_path)
    tier.close()
    open_tier(tmp_path).close()


def test_models_do_not_share_a_folder(tmp_path: Path) -> None:
    from semshare.kv.tiers.disk import DiskTier  # noqa: PLC0415

    one, other = (DiskTier(tmp_path, name, 4 << 20) for name in ("one", "other"))
    one.put(record_of("a"), blobs_of("a", 0))
    assert list(other.records()) == []
    one.close()
    other.close()


def test_a_store_that_somebody_took_while_it_was_away(tmp_path: Path) -> None:
    tier = open_tier(tmp_path / "root")
    (tmp_path / "root").rename(tmp_path / "away")
    (tmp_path / "root").mkdir()
    with pytest.raises(TierUnavailable, match="has gone"):
        tier.put(record_of("a"), blobs_of("a", 0))
    other = open_tier(tmp_path / "root")
    with pytest.raises(TierUnavailable, match="is in use by process"):
        tier.put(record_of("a"), blobs_of("a", 0))
    other.close()
    tier.put(record_of("a"), blobs_of("a", 0))
    tier.close()


def test_a_holder_that_says_nothing(tmp_path: Path) -> None:
    lock = StoreLock(tmp_path / "lock")
    for said in (b"", b"[1]", b"\xff{"):
        (tmp_path / "lock").write_bytes(said)
        with pytest.raises(StoreLocked, match="has not said which it is"):
            StoreLock(tmp_path / "lock")
    lock.release()
    lock.release()
    StoreLock(tmp_path / "lock").release()
