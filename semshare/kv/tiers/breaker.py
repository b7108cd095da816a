"""Not asking a server that does not answer, for a while."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Breaker:
    """Opens after failures in a row, and lets one call through from time to time to see.

    An open breaker makes calls fail at once that would each wait for a time-out. The wait before
    the next try doubles with each that fails. Thread-safe.

    Args:
        failures: in a row after which it opens.
        first_s, longest_s: the shortest and the longest wait before a try, in seconds.
        clock: seconds that only grow.

    """

    def __init__(
        self, *, failures: int, first_s: float, longest_s: float, clock: Callable[[], float]
    ) -> None:
        self._limit = failures
        self._first_s = first_s
        self._longest_s = longest_s
        self._clock = clock
        self._lock = threading.Lock()
        self._failures = 0
        self._wait_s = first_s
        self._closed_until = 0.0  # while open: calls before this time fail

    def seconds_to_wait(self) -> float:
        """0 if the call may be made, which must then be told to `worked` or `failed`.

        Of several that ask when a try is due only the first is let through.
        """
        with self._lock:
            if self._failures < self._limit:
                return 0.0
            now = self._clock()
            if now < self._closed_until:
                return self._closed_until - now
            # Nobody else tries before this one can have come to an end.
            self._closed_until = now + self._wait_s
            return 0.0

    def worked(self) -> None:
        """The server answered."""
        with self._lock:
            self._failures = 0
            self._wait_s = self._first_s

    def failed(self) -> None:
        """The server did not answer."""
        with self._lock:
            self._failures += 1
            if self._failures >= self._limit:
                self._closed_until = self._clock() + self._wait_s
                self._wait_s = min(self._longest_s, 2 * self._wait_s)
