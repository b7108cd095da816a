"""The engine's end: donors that no tier has yet are written within the time that a stop allows."""

from __future__ import annotations

import asyncio
import logging
import time

from semshare.engine.daemon_threads import DaemonThreads
from semshare.engine.failures import log_failure
from semshare_service.engine import Engine

logger = logging.getLogger(__name__)

_LET_GO_S = 2.0  # on top of the time to write, for files and connections


class EngineClosing:
    """Closes an engine at the stop. Its methods are called on the event loop.

    Args:
        timeout_s: that requests and what is left to write have together, from `begin` on.

    """

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._ends: float | None = None

    def begin(self) -> None:
        """The time of the stop runs from now."""
        self._ends = time.monotonic() + self._timeout_s

    async def finish(self, engine: Engine | None) -> bool:
        """Close the engine, if one was loaded and once no request runs on it; whether that ended.

        A disk or a server that hangs keeps a thread, which dies with the process, and nobody else.
        """
        if engine is None:
            return True
        ends = time.monotonic() + self._timeout_s if self._ends is None else self._ends
        left_s = max(ends - time.monotonic(), 0.0)
        thread = DaemonThreads(1, "semshare-close")
        waiting = asyncio.wrap_future(thread.submit(lambda: engine.close(left_s)))
        thread.close()
        ended, _ = await asyncio.wait({waiting}, timeout=left_s + _LET_GO_S)
        if not ended:
            waiting.cancel()  # the loop may be gone when the thread comes to its end
            logger.warning(
                "storage is still busy %.0f s after the last request: donors that were not "
                "written yet are lost",
                left_s + _LET_GO_S,
            )
        elif (error := waiting.exception()) is not None:
            log_failure("closing the engine failed", error, level=logging.ERROR)
        return bool(ended)
