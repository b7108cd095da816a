"""The clock of a request's stages."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from semshare.types import Timings

# Stage → the field of `Timings` that it counts towards.
_FIELD = {
    "find_donors": "lookup_s",
    "align": "lookup_s",
    "guard": "plan_s",
    "plan": "plan_s",
    "fetch": "load_s",
    "load": "load_s",
    "prefill": "prefill_s",
}


class Stopwatch:
    """Seconds by stage, and which stage was last entered.

    Args:
        started: `time.perf_counter()` when the request came; now if None.
        tokenize_s: seconds already spent on tokenizing.

    """

    def __init__(self, started: float | None = None, *, tokenize_s: float = 0.0) -> None:
        self._started = time.perf_counter() if started is None else started
        self._seconds = dict.fromkeys(_FIELD.values(), 0.0)
        self._tokenize_s = tokenize_s
        self._first_token: float | None = None
        self.stage = "start"

    @contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        """Count the block's time towards `stage`."""
        self.stage = stage
        entered = time.perf_counter()
        try:
            yield
        finally:
            self.add(stage, time.perf_counter() - entered)

    def add(self, stage: str, seconds: float) -> None:
        """Count seconds that were spent for this request and others together."""
        self.stage = stage
        self._seconds[_FIELD[stage]] += seconds

    @property
    def elapsed_s(self) -> float:
        """Since the request came."""
        return time.perf_counter() - self._started

    def first_token(self) -> None:
        """The first token is there; later calls change nothing."""
        if self._first_token is None:
            self._first_token = time.perf_counter()

    def timings(self) -> Timings:
        """All of it; decoding is what came after the first token."""
        now = time.perf_counter()
        first = now if self._first_token is None else self._first_token
        return Timings(
            tokenize_s=self._tokenize_s,
            ttft_s=first - self._started,
            decode_s=now - first,
            **self._seconds,
        )
