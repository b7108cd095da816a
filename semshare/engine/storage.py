"""Donors below the pool: loaded when a plan wants them, within a bound of time.

Loading begins as soon as a plan is known (`begin_loading`); threads read and write, the first
layers first, and layers are computed as they come (`semshare.kv.arrival`). All that has to be
carried down is done behind requests by `semshare.engine.storage_writer`. No tier is called with the
engine's lock held, since a disk or a server may take its time.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from itertools import pairwise
from threading import Condition

import numpy as np
import torch
from torch import Tensor

from semshare.donors.library import DonorLibrary
from semshare.donors.namespace import Donor
from semshare.engine.daemon_threads import DaemonThreads
from semshare.engine.failures import log_failure
from semshare.engine.fair_lock import FairLock
from semshare.engine.storage_writer import StorageWriter
from semshare.errors import NotStored, PoolExhausted, StorageError, TierUnavailable
from semshare.kv.arrival import Arrival, TooLate
from semshare.kv.compressed import CompressedView
from semshare.kv.pool import KVPool
from semshare.kv.tiers.breaker import Breaker
from semshare.kv.tiers.stack import TierStack
from semshare.kv.tiers.tier import Tier
from semshare.types import STORED, ReusePlan, Slots, StorageUse, TierUse

_READERS = 2  # threads: one waits for bytes while the other checks and decodes
REMOVAL_TIMEOUT_S = 5.0  # that whoever forgets a donor waits for its tiers
_FIRST_PAUSE_S, _LAST_PAUSE_S = 1.0, 30.0  # without loads, after one that took too long


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
        self.writer = StorageWriter(library, pool, compressed, lock, stack)
        self._library = library
        self._pool = pool
        self._lock = lock
        self._load_timeout_s = load_timeout_s
        self._readers = DaemonThreads(_READERS, "semshare-load")
        self._idle = Condition()
        # No loads for a while after one that took too long.
        self._breaker = Breaker(
            failures=1, first_s=_FIRST_PAUSE_S, longest_s=_LAST_PAUSE_S, clock=time.monotonic
        )

    def begin_loading(
        self, plan: ReusePlan, namespace: str, *, within_s: float = math.inf
    ) -> list[Arrival]:
        """Let what a plan reuses come into the pool; what can't come is computed.

        The caller holds the lock.

        Args:
            plan: made with what is stored.
            namespace: of the request.
            within_s: seconds after which nobody waits any longer; `load_timeout_s` at most.

        Returns:
            All that the plan's tokens are still waiting for, other requests' loads among it.

        """
        self._pool.settle()
        stored = plan.slots == STORED
        arrivals = self._pool.arriving(plan.slots[plan.slots >= 0])
        if not stored.any() or self._breaker.seconds_to_wait():
            return arrivals
        self._library.touch(namespace, plan.donors)  # so that none makes room for another
        for index in np.unique(plan.donor[stored]).tolist():
            donor = self._library.find_by_id(plan.donors[index])
            if donor is None:
                continue
            positions = plan.position[stored & (plan.donor == index)]
            chunks = self.stack.format.chunks_for(positions)
            try:
                begun = self._begin(donor, chunks, min(within_s, self._load_timeout_s))
            except PoolExhausted:
                self.stack.counts.add("loads_without_room")
            else:
                arrivals += [] if begun is None else [begun]
        return arrivals

    def wait(self, arrivals: Sequence[Arrival], *, whole: bool) -> None:
        """Wait, without the lock, until a plan may begin to use what comes.

        Args:
            arrivals: what it waits for.
            whole: wait for all of it. Otherwise only until the tiers have shown that they answer:
                the rest comes while the first layers are computed.

        """
        n_layers = self.stack.format.n_layers
        for arrival in arrivals:
            with suppress(StorageError):  # counted where it failed
                arrival.wait(n_layers if whole else 1)

    def until_idle(self, timeout_s: float) -> bool:
        """Wait until nothing is on its way into the pool; whether it came to that."""
        with self._idle:
            return self._idle.wait_for(lambda: not self._pool.arrivals, timeout_s)

    @property
    def use(self) -> StorageUse:
        """What lies in the tiers, and what has happened to it since the start."""
        return StorageUse(
            tuple(map(_use_of, self.stack.tiers)),
            self.writer.jobs.depth,
            self.stack.counts.read() | {"donors_demoted": self._library.demoted_donors},
        )

    def restore(self) -> None:
        """Let all donors of the tiers be found, without their KV."""
        self.writer.restore()

    def flush(self, timeout_s: float) -> bool:
        """Wait until each job behind requests was tried at least once; whether it came to that."""
        return self.writer.jobs.flush(timeout_s)

    def wait_for_removal(self, donor_id: str) -> None:
        """Wait until the tiers that answer have dropped a donor, a few seconds at most."""
        self.writer.jobs.wait_for(("remove", donor_id), REMOVAL_TIMEOUT_S)

    def close(self, timeout_s: float) -> None:
        """Write what waits, as far as it can be done in this time, and let go of all tiers."""
        self.writer.jobs.close(timeout_s)
        self._readers.close()
        self.stack.close()

    def _begin(self, donor: Donor, chunks: list[int], within_s: float) -> Arrival | None:
        """Take pages for chunks of a donor, and let threads fill them; None if it has expired.

        From now on the donor has these tokens in the pool.

        Raises:
            PoolExhausted: no pages, and nothing left to evict.

        """
        size, chunk_tokens = self._pool.page_size, self.stack.format.chunk_tokens
        # What is there of a chunk, or on its way, is read once more: donors load whole chunks.
        n = len(donor.ids)
        tokens = sum(min(chunk_tokens, n - at * chunk_tokens) for at in chunks)
        pages = self._pool.allocate(tokens)
        if self._library.find_by_id(donor.id) is not donor:  # its time was over meanwhile
            self._pool.release(pages)
            return None
        numbers = np.array(chunks)[:, None] * (chunk_tokens // size)
        numbers = (numbers + np.arange(chunk_tokens // size)).reshape(-1)[: len(pages)]
        self._pool.share(pages)  # for as long as threads write to them, whatever comes first
        reads: list[Future[None]] = []
        arrival = Arrival(
            pages,
            self.stack.format.n_groups,
            within_s,
            undo=lambda: self._library.not_loaded(donor, pages),
            on_failed=lambda error: self._failed(donor, reads, error),
            on_over=lambda: self._over(donor, tokens, arrival),
        )
        self._library.residency.expect(donor, numbers, pages)
        self._pool.arrivals.append(arrival)
        slots = self._pool.slots_of(pages)[:tokens]
        for group in range(self.stack.format.n_groups):
            read = self._readers.submit(partial(self._read, donor, group, chunks, slots, arrival))
            read.add_done_callback(lambda _: arrival.part_over())
            reads.append(read)
        return arrival

    def _read(
        self, donor: Donor, group: int, chunks: list[int], slots: Slots, arrival: Arrival
    ) -> None:
        """Bring one layer group into the pool, in a thread."""
        if arrival.has_failed:
            return
        try:
            kv = self.stack.read(donor.id, donor.ids, group, chunks)
            layers = self.stack.format.layers(group)
            with arrival.writing():
                for index, layer in enumerate(layers):
                    write_rows(self._pool.keys[layer], slots, kv[:, index, 0])
                    write_rows(self._pool.values[layer], slots, kv[:, index, 1])
            arrival.arrived(layers)
        except StorageError as error:
            arrival.fail(error)
        except BaseException as error:  # a part that is over without KV would pass for one with it
            log_failure("a donor could not be loaded", error)
            arrival.fail(StorageError(f"{type(error).__name__} while a donor was loaded"))

    # Both may be called in any thread, so they leave what needs the lock to a job.

    def _failed(self, donor: Donor, reads: Sequence[Future[None]], error: StorageError) -> None:
        self.stack.counts.add(f"loads_failed:{type(error).__name__}")
        for read in reads:
            read.cancel()
        if isinstance(error, TooLate) and error.waited_s >= self._load_timeout_s:
            self._breaker.failed()  # a request in a hurry says little about the tier
        if isinstance(error, NotStored):
            self.writer.check(donor.id)
        self.writer.jobs.add("settle", self._settle)

    def _over(self, donor: Donor, tokens: int, arrival: Arrival) -> None:
        if not arrival.has_failed:
            self._breaker.worked()
            self.stack.counts.add("loads")
            self.stack.counts.add("loaded_tokens", tokens)
            self.writer.loaded(donor)
        self.writer.jobs.add("settle", self._settle)

    def _settle(self) -> bool:
        with self._lock:
            self._pool.settle()
        with self._idle:
            self._idle.notify_all()
        return True


def _use_of(tier: Tier) -> TierUse:
    try:
        used = tier.used_bytes
    except TierUnavailable:
        used = None
    return TierUse(tier.name, used, tier.budget_bytes, tier.counts)


def write_rows(layer: Tensor, slots: Slots, rows: Tensor) -> None:
    """Copy `rows` `[n, kv_heads, d]`, on the CPU, into plain slots `[n]` of a layer of the pool.

    By NumPy, in the calling thread alone: torch would keep a team of threads for it, beside the
    one that computes meanwhile (`docs/decisions.md`, "Whoever waits computes").
    """
    if layer.is_cuda:
        layer[torch.from_numpy(slots).to(layer.device)] = rows.to(layer.device)
        return
    target, source = layer.view(torch.uint8).numpy(), rows.view(torch.uint8).numpy()
    edges = [0, *(np.flatnonzero(np.diff(slots) != 1) + 1).tolist(), len(slots)]
    for start, stop in pairwise(edges):  # a slice is copied four times as fast as single rows
        target[slots[start] : slots[start] + stop - start] = source[start:stop]
