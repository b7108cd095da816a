"""Donors below the pool: loaded when a plan wants them, within a bound of time.

`wanted` and `load` are what a request waits for; `semshare.engine.storage_writer` does the rest
behind requests. No tier is called with the engine's lock held, since a disk or a server may take
its time.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock

import numpy as np
import torch
from torch import Tensor

from semshare.donors.library import DonorLibrary
from semshare.engine.fair_lock import FairLock
from semshare.engine.storage_writer import StorageWriter
from semshare.errors import NotStored, PoolExhausted, StorageError
from semshare.kv.compressed import CompressedView
from semshare.kv.pool import KVPool
from semshare.kv.tiers.stack import TierStack
from semshare.types import STORED, ReusePlan, Slots, StorageUse, TierUse
from semshare_kernels import write_slots

_READERS = 2  # threads: one waits for bytes while the other checks and decodes
_FIRST_PAUSE_S, _LAST_PAUSE_S = 1.0, 30.0  # without loads, after one that took too long


@dataclass(frozen=True, slots=True)
class Wanted:
    """Tokens of one donor that a plan wants and the pool does not have."""

    donor: str
    chunks: tuple[int, ...]  # of `BlobFormat.chunk_tokens` tokens, ascending


class DonorStorage:
    """The tiers below one engine's pool.

    Args:
        library, pool, compressed: of the engine; `compressed` if its donors are kept in int8.
        lock: the engine's. Whatever touches library or pool takes it.
        stack: the tiers.
        load_timeout_s: most seconds that a request waits.

    """

    def __init__(
        self,
        library: DonorLibrary,
        pool: KVPool,
        compressed: CompressedView | None,
        lock: FairLock,
        stack: TierStack,
        *,
        load_timeout_s: float,
    ) -> None:
        self.stack = stack
        self.counters: Counter[str] = Counter()
        self.writer = StorageWriter(library, pool, compressed, lock, stack)
        self._library = library
        self._pool = pool
        self._lock = lock
        self._load_timeout_s = load_timeout_s
        self._readers = ThreadPoolExecutor(_READERS, thread_name_prefix="semshare-load")
        self._loading: dict[str, Lock] = {}
        self._quiet_until, self._pause_s = 0.0, _FIRST_PAUSE_S

    def wanted(self, plan: ReusePlan) -> list[Wanted]:
        """What of a plan is to be loaded first. The caller holds the lock."""
        if time.monotonic() < self._quiet_until:
            return []
        stored = plan.slots == STORED
        wanted = []
        for index in np.unique(plan.donor[stored]).tolist():
            positions = plan.position[stored & (plan.donor == index)]
            chunks = np.unique(positions // self.stack.format.chunk_tokens)
            wanted.append(Wanted(plan.donors[index], tuple(chunks.tolist())))
        return wanted

    def load(self, wanted: Sequence[Wanted]) -> None:
        """Bring tokens into the pool. What can't be had in time is computed by whoever wants it."""
        deadline = time.monotonic() + self._load_timeout_s
        for one in wanted:
            try:
                with self._alone(one.donor, deadline):
                    self._load(one, deadline)
                self._pause_s = _FIRST_PAUSE_S
            except TimeoutError:
                self.counters["load_timeouts"] += 1
                self._quiet_until = time.monotonic() + self._pause_s
                self._pause_s = min(2 * self._pause_s, _LAST_PAUSE_S)
                return
            except (StorageError, PoolExhausted) as error:
                self.counters[f"loads_failed:{type(error).__name__}"] += 1
                if isinstance(error, NotStored):
                    self.writer.check(one.donor)

    @property
    def use(self) -> StorageUse:
        """What lies in the tiers, and what has happened to it since the start."""
        parts = (self.counters, self.writer.counters, self.stack.counters)
        return StorageUse(
            tuple(TierUse(t.name, t.used_bytes, t.budget_bytes) for t in self.stack.tiers),
            self.writer.jobs.depth,
            dict(sum(parts, Counter({"donors_demoted": self._library.demoted_donors}))),
        )

    def close(self, timeout_s: float) -> None:
        """Write what waits, as far as it can be done in this time, and let go of all tiers."""
        self.writer.close(timeout_s)
        self._readers.shutdown(wait=False, cancel_futures=True)
        self.stack.close()

    @contextmanager
    def _alone(self, donor: str, deadline: float) -> Iterator[None]:
        """Requests that want the same donor read it once."""
        lock = self._loading.setdefault(donor, Lock())
        if not lock.acquire(timeout=max(deadline - time.monotonic(), 0.0)):
            raise TimeoutError
        try:
            yield
        finally:
            self._loading.pop(donor, None)
            lock.release()

    def _load(self, wanted: Wanted, deadline: float) -> None:
        size, chunk_tokens = self._pool.page_size, self.stack.format.chunk_tokens
        with self._lock:
            donor = self._library.find_by_id(wanted.donor)
            if donor is None:
                return
            chunks = [at for at in wanted.chunks if donor.slots[at * chunk_tokens] == STORED]
            if not chunks:
                return
            n = len(donor.ids)
            tokens = sum(min(chunk_tokens, n - at * chunk_tokens) for at in chunks)
            pages = self._pool.allocate(tokens)
        landed = False
        reads: list[Future[Tensor]] = []
        try:
            for group in range(self.stack.format.n_groups):
                read = self._readers.submit(self.stack.read, donor.id, donor.ids, group, chunks)
                reads.append(read)
            slots = self._pool.slots_of(pages)[:tokens]
            for group, read in enumerate(reads):
                self._write(group, slots, read.result(max(deadline - time.monotonic(), 0.0)))
            with self._lock:
                if self._library.find_by_id(donor.id) is donor:
                    numbers = np.array(chunks)[:, None] * (chunk_tokens // size)
                    numbers = (numbers + np.arange(chunk_tokens // size)).reshape(-1)
                    self._library.residency.loaded(donor, numbers[: len(pages)], pages)
                    landed = True
        finally:
            for read in reads:
                read.cancel()
            if not landed:
                with self._lock:
                    self._pool.release(pages)
        self.counters["loads"] += 1
        self.counters["loaded_tokens"] += tokens
        self.writer.loaded(donor)

    def _write(self, group: int, slots: Slots, kv: Tensor) -> None:
        """`kv` `[tokens, layers, 2, kv_heads, d]` into plain slots of the pool."""
        device = self._pool.all_keys.device
        at, kv = torch.from_numpy(slots).to(device), kv.to(device)
        with self._lock, torch.inference_mode():
            for index, layer in enumerate(self.stack.format.layers(group)):
                keys, values = self._pool.keys[layer], self._pool.values[layer]
                write_slots(keys, values, at, kv[:, index, 0], kv[:, index, 1])
