"""Engines whose donors lie below the pool, and tiers that misbehave when they are told to."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from tiny import tiny_engine

from semshare import SemShare, StorageConfig, TierUnavailable
from semshare.kv.tiers.host import HostTier
from semshare.kv.tiers.tier import Buffer, ByteRange, DonorRecord

HOST = StorageConfig(host_bytes=64 << 20)


def storing_engine(
    family: str = "llama", *, storage: StorageConfig = HOST, **more: Any
) -> SemShare:
    return tiny_engine(family, storage=storage, **more)


def push_out(engine: SemShare) -> None:
    """Everything that may leave the pool leaves it, once it has been written."""
    settle(engine)
    with engine.session.lock:
        engine.pool.release(engine.pool.allocate(engine.pool.n_slots))
    assert engine.pool.used_bytes == 0


def settle(engine: SemShare) -> None:
    """Everything that was begun behind requests is over."""
    assert engine.session.storage.until_idle(30)
    assert engine.flush(30)


def counters(engine: SemShare) -> dict[str, int]:
    use = engine.pool_use().storage
    assert use is not None
    return dict(use.counters)


class Moody(HostTier):
    """A tier in memory that fails, waits, or damages what it gives."""

    def __init__(self) -> None:
        super().__init__(64 << 20)
        self.down = False
        self.held = threading.Event()
        self.held.set()
        self.asked = threading.Event()  # somebody waits, or has waited
        self.damage: Callable[[Buffer], Buffer] = lambda part: part
        self.bytes_read = 0
        self.quarantined: list[str] = []

    def put(self, record: DonorRecord, blobs: Sequence[Buffer]) -> None:
        self._answer()
        super().put(record, blobs)

    def read(self, donor: str, group: int, ranges: Sequence[ByteRange]) -> list[Buffer]:
        self._answer()
        parts = [self.damage(part) for part in super().read(donor, group, ranges)]
        self.bytes_read += sum(len(part) for part in parts)
        return parts

    def update(self, record: DonorRecord) -> None:
        self._answer()
        super().update(record)

    def remove(self, donor: str) -> None:
        self._answer()
        super().remove(donor)

    def quarantine(self, donor: str, reason: str) -> None:
        self.quarantined.append(donor)
        super().quarantine(donor, reason)

    def close(self) -> None:
        """What it has outlives its engine, as on a disk."""

    @contextmanager
    def stuck(self) -> Iterator[None]:
        """Whoever asks meanwhile waits."""
        self.held.clear()
        self.asked.clear()
        try:
            yield
        finally:
            self.held.set()

    def _answer(self) -> None:
        self.asked.set()
        assert self.held.wait(30)
        if self.down:
            raise TierUnavailable("the tier is down: wait until it is up")
