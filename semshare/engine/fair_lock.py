"""A lock that goes round."""

from __future__ import annotations

import threading
from collections import deque
from types import TracebackType


class FairLock:
    """A reentrant lock that goes to whoever has waited longest.

    A thread that runs step after step would take a plain lock again before others wake up.
    """

    def __init__(self) -> None:
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
        with self._inner:
            self._depth -= 1
            if self._depth:
                return
            self._owner = None
            if self._queue:
                self._owner, mine = self._queue.popleft()
                self._depth = 1
                mine.set()
