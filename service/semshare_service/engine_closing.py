"""The engine's end: donors that no tier has yet are written within the time that a stop allows."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from concurrent.futures import Future

from semshare.engine.failures import log_failure
from semshare_service.engine import Engine, EngineLoader

logger = logging.getLogger(__name__)

_LET_GO_S = 2.0  # on top of the time to write, for files and connections


class EngineClosing:
    """Closes one engine at the stop. Its methods are called on the event loop.

    Args:
        timeout_s: that requests and what is left to write have together, from `begin` on.

    """

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._engine: Engine | None = None
        self._ends: float | None = None

    def knowing(self, load: EngineLoader) -> EngineLoader:
        """`load`, after which this object knows the engine."""

        def load_and_know() -> Engine:
            self._engine = load()
            return self._engine

        return load_and_know

    def begin(self) -> None:
        """The time of the stop runs from now."""
        self._ends = time.monotonic() + self._timeout_s

    async def finish(self) -> bool:
        """Close the engine once no request runs on it; returns whether that came to its end.

        A disk or a server that hangs keeps a thread, which dies with the process, and nobody else.
        """
        engine = self._engine
        if engine is None:  # not loaded
            return True
        ends = time.monotonic() + self._timeout_s if self._ends is None else self._ends
        left_s = max(ends - time.monotonic(), 0.0)
        done: Future[None] = Future()
        done.set_running_or_notify_cancel()  # who stops waiting leaves the thread alone

        def close() -> None:
            try:
                engine.close(left_s)
            except Exception as error:
                log_failure("closing the engine failed", error, level=logging.ERROR)
            finally:
                done.set_result(None)

        threading.Thread(target=close, name="semshare-close", daemon=True).start()
        waiting = asyncio.wrap_future(done)
        ended, _ = await asyncio.wait({waiting}, timeout=left_s + _LET_GO_S)
        if not ended:
            waiting.cancel()  # the loop may be gone when the thread comes to its end
            logger.warning(
                "storage is still busy %.0f s after the last request: donors that were not "
                "written yet are lost",
                left_s + _LET_GO_S,
            )
        return bool(ended)
