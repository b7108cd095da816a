"""Who holds the engine's pool, for whoever asks, without waiting for the model.

`Engine.pool_use` takes the engine's lock, which a step holds while it computes. So a thread asks,
and who reads gets the latest answer there is, with its age. It takes no place in the worker's
queue, and idle work goes on meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass

from semshare.engine.failures import log_failure
from semshare.types import PoolUse, StorageUse
from semshare_service.engine import Engine, EngineLoader
from semshare_service.replies import Body
from semshare_service.tenants import Tenant


@dataclass(frozen=True, slots=True)
class PoolSnapshot:
    """`Engine.pool_use` as it was at `taken`, in seconds of `time.monotonic`."""

    use: PoolUse
    taken: float

    @property
    def age_s(self) -> float:
        """Seconds since it was taken."""
        return time.monotonic() - self.taken


class PoolWatch:
    """Snapshots of one engine's pool. Its methods are called on the event loop."""

    def __init__(self) -> None:
        self._engine: Engine | None = None
        self._snapshot: PoolSnapshot | None = None
        self._refresh: Future[None] | None = None

    def watching(self, load: EngineLoader) -> EngineLoader:
        """`load`, after which this object knows the engine."""

        def load_and_watch() -> Engine:
            self._engine = load()
            return self._engine

        return load_and_watch

    async def latest(self, *, wait_s: float = 0.1) -> PoolSnapshot | None:
        """A new snapshot if the engine gives one within `wait_s`, otherwise the last one.

        None before the first. One thread asks at a time, however many wait for it.
        """
        if self._engine is None:
            return None
        if self._refresh is None or self._refresh.done():
            self._refresh = self._begin(self._engine)
        await asyncio.wait({asyncio.wrap_future(self._refresh)}, timeout=wait_s)
        return self._snapshot

    def _begin(self, engine: Engine) -> Future[None]:
        done: Future[None] = Future()
        done.set_running_or_notify_cancel()  # who stops waiting must not cancel it for others

        def ask() -> None:
            try:
                self._snapshot = PoolSnapshot(engine.pool_use(), time.monotonic())
            except Exception as error:
                log_failure("the pool's use could not be read", error, level=logging.ERROR)
            finally:
                done.set_result(None)

        threading.Thread(target=ask, name="semshare-pool", daemon=True).start()
        return done


def pool_body(told: PoolSnapshot | None, tenant: Tenant) -> Body:
    """A tenant's part of `GET /v1/stats`, of which `pool` is null before the first snapshot.

    What all tenants share (what runs, what is free, evictions) is told where there is only one,
    and null elsewhere: it tells of others. `storage`, in which nobody's part is counted, is told to
    operators, and null where nothing lies below the pool.
    """
    if told is None:
        return {"pool": None, "donors": None, "evictions": None, "storage": None}
    use, alone = told.use, not tenant.name
    mine = [kept for name, kept in use.namespaces.items() if name.startswith(tenant.prefix)]
    return {
        "pool": {
            "age_s": told.age_s,
            "donors": sum(kept.donor_bytes for kept in mine),
            "prefixes": sum(kept.prefix_bytes for kept in mine),
            "running": use.running_bytes if alone else None,
            "free": use.free_bytes if alone else None,
        },
        "donors": sum(kept.donors for kept in mine),
        "evictions": use.donors_evicted if alone else None,
        "storage": _storage_body(use.storage) if tenant.operator else None,
    }


def _storage_body(use: StorageUse | None) -> Body | None:
    if use is None:
        return None
    names = ("name", "used_bytes", "budget_bytes")
    tiers = [{name: getattr(tier, name) for name in names} for tier in use.tiers]
    return {"tiers": tiers, "waiting": use.waiting}
