"""What storage has to do behind requests: jobs in the order they came, in one thread."""

from __future__ import annotations

import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass

from semshare.engine.failures import log_failure

FIRST_RETRY_S = 0.5
LAST_RETRY_S = 30.0
URGENT_S = 2.0  # for what is urgent, where the time to close is over


@dataclass(slots=True)
class _Waiting:
    """A job that could not be done, and when it is tried again."""

    perform: Callable[[], bool]
    due: float
    delay: float


class Jobs:
    """One thread that does jobs, each known by a name that is in the queue at most once.

    A job returns whether it is done; one that is not, because a tier does not answer, is tried
    again after a pause that doubles. It never blocks those behind it.

    Args:
        clock: seconds, for the pauses.

    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._changed = threading.Condition()
        self._queue: OrderedDict[Hashable, Callable[[], bool]] = OrderedDict()
        self._waiting: dict[Hashable, _Waiting] = {}
        self._urgent: set[Hashable] = set()
        self._busy = False
        self._current: Hashable | None = None
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="semshare-storage", daemon=True)
        self._thread.start()

    @property
    def depth(self) -> int:
        """Jobs not done yet."""
        with self._changed:
            return len(self._queue) + len(self._waiting) + self._busy

    def add(self, name: Hashable, perform: Callable[[], bool], *, urgent: bool = False) -> None:
        """Do a job once those before it are done, in place of one of that name that waits.

        Args:
            name: of the job.
            perform: does it, and says whether it is done.
            urgent: it is the next one, and done in any case before the thread ends.

        """
        with self._changed:
            if self._closed:
                return
            self._waiting.pop(name, None)  # what is asked for again is tried at once
            self._queue[name] = perform
            if urgent:
                self._urgent.add(name)
                self._queue.move_to_end(name, last=False)
            self._changed.notify_all()

    def wait_for(self, name: Hashable, timeout_s: float) -> bool:
        """Wait until no job of that name is queued or being done; whether it came to that."""
        with self._changed:
            return self._changed.wait_for(
                lambda: name not in self._queue and name != self._current, timeout_s
            )

    def flush(self, timeout_s: float) -> bool:
        """Wait until each job that is there now was tried at least once; whether it came to that.

        Those that wait to be tried again are tried at once.
        """
        with self._changed:
            self._wake(math.inf)
            self._changed.notify_all()
            return self._changed.wait_for(lambda: not self._queue and not self._busy, timeout_s)

    def close(self, timeout_s: float) -> bool:
        """Do what is there, then end, within about `timeout_s`; whether all of it was tried.

        What is urgent is tried even after that, as long as no job is stuck.
        """
        deadline = time.monotonic() + timeout_s
        done = self.flush(timeout_s)
        with self._changed:
            self._closed = True
            for name in [name for name in self._queue if name not in self._urgent]:
                del self._queue[name]
            least = URGENT_S if self._queue else 0.0
            self._changed.notify_all()
        self._thread.join(max(deadline - time.monotonic(), least))
        return done

    def _wake(self, until: float) -> None:
        """Let jobs that are due by `until` queue again. The caller holds the condition."""
        for name in [name for name, one in self._waiting.items() if one.due <= until]:
            self._queue.setdefault(name, self._waiting[name].perform)
            if name in self._urgent:
                self._queue.move_to_end(name, last=False)

    def _run(self) -> None:
        while True:
            with self._changed:
                if not self._closed:
                    self._wake(self._clock())
                if self._closed and not self._queue:
                    return
                if not self._queue:
                    next_due = min((one.due for one in self._waiting.values()), default=None)
                    pause = None if next_due is None else max(next_due - self._clock(), 0.0)
                    self._changed.wait(pause)
                    continue
                name, perform = self._queue.popitem(last=False)
                self._busy, self._current = True, name
            try:
                done = perform()
            except Exception as error:  # the next job must not suffer from it
                log_failure("a storage job failed", error)
                done = True
            with self._changed:
                self._busy, self._current = False, None
                if done:
                    self._urgent.discard(name)
                before = self._waiting.pop(name, None)
                if not done and name not in self._queue:
                    delay = FIRST_RETRY_S if before is None else min(2 * before.delay, LAST_RETRY_S)
                    self._waiting[name] = _Waiting(perform, self._clock() + delay, delay)
                self._changed.notify_all()
