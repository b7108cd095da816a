"""The engine's counters for whoever asks, without waiting for the model.

`Engine.stats` takes the engine's lock, which a step holds while it computes. So a thread asks, and
who reads gets the latest snapshot there is, with its age.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass

from semshare.engine.failures import log_failure
from semshare_service.engine import Engine, EngineLoader


@dataclass(frozen=True, slots=True)
class StatsSnapshot:
    """`Engine.stats` as it was at `taken`, in seconds of `time.monotonic`."""

    values: Mapping[str, int | float]
    taken: float

    @property
    def age_s(self) -> float:
        """Seconds since it was taken."""
        return time.monotonic() - self.taken


class EngineStats:
    """Snapshots of one engine's counters. Its methods are called on the event loop."""

    def __init__(self) -> None:
        self._engine: Engine | None = None
        self._snapshot: StatsSnapshot | None = None
        self._refresh: Future[None] | None = None

    def watching(self, load: EngineLoader) -> EngineLoader:
        """`load`, after which this object knows the engine."""

        def load_and_watch() -> Engine:
            self._engine = load()
            return self._engine

        return load_and_watch

    async def latest(self, *, wait_s: float = 0.1) -> StatsSnapshot | None:
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
                self._snapshot = StatsSnapshot(engine.stats(), time.monotonic())
            except Exception as error:
                log_failure("the engine's counters could not be read", error, level=logging.ERROR)
            finally:
                done.set_result(None)

        threading.Thread(target=ask, name="semshare-stats", daemon=True).start()
        return done
