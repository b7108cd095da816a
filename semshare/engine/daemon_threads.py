"""Threads for what may take long, or hang. A process may end while they wait."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue

Work = Callable[[], None]


class DaemonThreads:
    """A few threads: those of `ThreadPoolExecutor` would hold up the process's end.

    Args:
        count: of threads.
        name: of each of them.

    """

    def __init__(self, count: int, name: str) -> None:
        self._queue: SimpleQueue[tuple[Future[None], Work] | None] = SimpleQueue()
        self._count = count
        for _ in range(count):
            threading.Thread(target=self._run, name=name, daemon=True).start()

    def submit(self, work: Work) -> Future[None]:
        """Do something in one of the threads; it can be cancelled until it begins."""
        future: Future[None] = Future()
        self._queue.put((future, work))
        return future

    def close(self) -> None:
        """End the threads once they are done with what was submitted. Does not wait."""
        for _ in range(self._count):
            self._queue.put(None)

    def _run(self) -> None:
        while (taken := self._queue.get()) is not None:
            future, work = taken
            if not future.set_running_or_notify_cancel():
                continue
            try:
                work()
            except BaseException as error:
                future.set_exception(error)
            else:
                future.set_result(None)
