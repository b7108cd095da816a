"""A lock that goes round."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from types import TracebackType


class FairLock:
    """A reentrant lock that goes to whoever has waited longest.

    A thread that runs step after step would take a plain lock again before others wake up.

    Args:
        on_release: called by a thread that is about to let go of it.

    """

    def __init__(self, on_release: Callable[[], None]) -> None:
        self._on_release = on_release
        self._inner = threading.Lock()  # guards what follows
        self._owner: int | None = None
        self._depth = 0
        self._queue: deque[tuple[int, threading.Event]] = deque()

    def __enter__(self) -> None:
        me = threading.get_ident()
        turn = me, threading.Event()
        with self._inner:
            if self._owner in (None, me):
                self._owner = me
                self._depth += 1
                return
            self._queue.append(turn)
        try:
            turn[1].wait()
        except BaseException:  # an interrupt, perhaps after the lock was handed over
            with self._inner:
                if turn in self._queue:
                    self._queue.remove(turn)
                    raise
            self.__exit__(None, None, None)
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._depth == 1:
            self._on_release()
        with self._inner:
            self._depth -= 1
            if self._depth:
                return
            self._owner = None
            if self._queue:
                self._owner, mine = self._queue.popleft()
                self._depth = 1
                mine.set()
