"""Counters that several threads add to."""

from __future__ import annotations

import threading
from collections.abc import Iterable

# Of every tier; `Tier.counts` says what each is.
TIER_COUNTS = (
    "puts", "reads", "removes", "bytes_written", "bytes_read", "evictions", "quarantined"
)  # fmt: skip


class Counts:
    """Named counters.

    Args:
        names: those that are told before anything was counted, as 0.

    """

    def __init__(self, names: Iterable[str] = ()) -> None:
        self._lock = threading.Lock()
        self._counts = dict.fromkeys(names, 0)

    def add(self, name: str, n: int = 1) -> None:
        """Count `n` more."""
        with self._lock:
            self._counts[name] = self._counts.get(name, 0) + n

    def read(self) -> dict[str, int]:
        """All of them, as they stand now."""
        with self._lock:
            return dict(self._counts)
