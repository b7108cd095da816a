"""When a request may be sent again, and after how long."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from semshare.errors import SemShareError


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often a request is sent, and how long is waited in between.

    Before the second, third … try a random time passes, drawn evenly from nothing to
    `first_wait_s` × 1, 2, 4 … (full jitter, so that clients which failed together don't come back
    together). Where the service says `Retry-After`, the random time is added to that.

    tries:          at most; 1: never again.
    first_wait_s:   longest wait before the second try, in seconds.
    longest_wait_s: bound of the doubling, in seconds.
    total_s:        a wait that would end later than this after the first try is not begun: the
                    error is raised at once.
    draw:           a number from 0 to 1.
    sleep, clock:   how to wait, and the time that `total_s` is counted in.
    """

    tries: int = 4
    first_wait_s: float = 0.25
    longest_wait_s: float = 8.0
    total_s: float = 30.0
    draw: Callable[[], float] = random.random
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    clock: Callable[[], float] = time.monotonic

    def wait_s(self, tried: int, elapsed_s: float, retry_after_s: float | None) -> float | None:
        """Seconds until the next try after `tried` ones; None where there is none."""
        if tried >= self.tries:
            return None
        longest = min(self.first_wait_s * 2 ** (tried - 1), self.longest_wait_s)
        wait_s = (retry_after_s or 0.0) + longest * self.draw()
        return wait_s if elapsed_s + wait_s <= self.total_s else None


NO_RETRIES = RetryPolicy(tries=1)


class Refused(Exception):
    """One try ended with `error`, and sending the request again can do no harm."""

    def __init__(self, error: SemShareError, retry_after_s: float | None = None) -> None:
        super().__init__(str(error))
        self.error = error
        self.retry_after_s = retry_after_s
