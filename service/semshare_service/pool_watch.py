"""The pool's use as it was last told, so that whoever asks need not wait for the model."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

from semshare.errors import SemShareError
from semshare.types import PoolUse
from semshare_service.engine import Engine
from semshare_service.replies import Body
from semshare_service.tenants import Tenant
from semshare_service.worker import Abandoned, ModelWorker


@dataclass(frozen=True, slots=True)
class _Told:
    use: PoolUse
    at: float  # of the watch's clock


class PoolWatch:
    """Asks the engine who holds its pool, whenever somebody looks.

    The engine answers between two steps of the model, and not before a thread of the worker is
    free. Under load the last answer is told, with its age.

    Args:
        worker: runs the question on the engine.
        patience_s: most seconds that a look waits for a new answer.
        clock: seconds, for the age.

    """

    def __init__(
        self,
        worker: ModelWorker,
        *,
        patience_s: float = 0.1,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._worker = worker
        self._patience_s = patience_s
        self._clock = clock
        self._told: _Told | None = None
        self._asking: asyncio.Task[None] | None = None

    async def body(self, tenant: Tenant) -> Body:
        """A tenant's part of `GET /v1/stats`, of which `pool` is null before the first answer.

        What all tenants share (what runs, what is free, evictions) is told where there is only
        one, and null elsewhere: it tells of others.
        """
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask())
        await asyncio.wait((self._asking,), timeout=self._patience_s)
        told = self._told
        if told is None:
            return {"pool": None, "donors": None, "evictions": None}
        use, alone = told.use, not tenant.name
        mine = [kept for name, kept in use.namespaces.items() if name.startswith(tenant.space(""))]
        return {
            "pool": {
                "age_s": self._clock() - told.at,
                "donors": sum(kept.donor_bytes for kept in mine),
                "prefixes": sum(kept.prefix_bytes for kept in mine),
                "running": use.running_bytes if alone else None,
                "free": use.free_bytes if alone else None,
            },
            "donors": sum(kept.donors for kept in mine),
            "evictions": use.donors_evicted if alone else None,
        }

    async def _ask(self) -> None:
        def operation(engine: Engine, _: Abandoned) -> _Told:
            return _Told(engine.pool_use(), self._clock())

        try:
            self._told = (await self._worker.submit(operation)).value
        except SemShareError:
            return  # loading, stopping, or a full queue: what was told before still is
