"""KV on its way into the pool from a tier below it, the first layers first."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import numpy as np

from semshare.errors import StorageError, TierUnavailable
from semshare.types import Pages


class TooLate(TierUnavailable):
    """KV did not come within the time that is given to it."""


class Arrival:
    """Pages of the pool that are being filled, a part of the layers at a time, in any order.

    Plans may use the pages from the beginning; whoever reads them waits for the layer that it is
    about to read. Thread-safe.

    Args:
        pages: of the pool.
        parts: in which the layers come.
        timeout_s: seconds from now after which nobody waits any longer.
        undo: see `settle`.
        on_failed: called once if something does not come, in the thread that finds out.
        on_over: called once when no part is being written any more, in the last writer's thread.

    """

    def __init__(
        self,
        pages: Pages,
        parts: int,
        timeout_s: float,
        *,
        undo: Callable[[], None],
        on_failed: Callable[[StorageError], None],
        on_over: Callable[[], None],
    ) -> None:
        self.pages = pages
        self._parts_left = parts
        self._deadline = time.monotonic() + timeout_s
        self._undo: Callable[[], None] | None = undo
        self._on_failed = on_failed
        self._on_over = on_over
        self._changed = threading.Condition()
        self._layers = 0  # that are there, from the first on
        self._beyond: dict[int, int] = {}  # parts that came before others: first layer → end
        self._error: StorageError | None = None

    @property
    def has_failed(self) -> bool:
        """Whether some of it will not come."""
        return self._error is not None

    def fills(self, pages: Pages) -> bool:
        """Whether it is about any of these pages."""
        return bool(np.isin(self.pages, pages).any())

    def arrived(self, layers: range) -> None:
        """A part is there."""
        with self._changed:
            self._beyond[layers.start] = layers.stop
            while self._layers in self._beyond:
                self._layers = self._beyond.pop(self._layers)
            self._changed.notify_all()

    def fail(self, error: StorageError) -> None:
        """What is not there yet will not come."""
        with self._changed:
            if self._error is not None:
                return
            self._error = error
            self._changed.notify_all()
        self._on_failed(error)

    def part_over(self) -> None:
        """A part is written, or will not be."""
        with self._changed:
            self._parts_left -= 1
            is_over = self._parts_left == 0
            self._changed.notify_all()
        if is_over:
            self._on_over()

    def settle(self) -> bool:
        """Let nobody begin with KV that did not come; whoever calls holds the engine's lock.

        Returns:
            Whether no part is being written any more, so that the pages may be given to others.

        """
        if self._error is not None and self._undo is not None:
            self._undo()
            self._undo = None
        return self._parts_left == 0

    def wait_until_over(self) -> bool:
        """Wait, in the time that is left, until no part is being written; whether it is so."""
        with self._changed:
            return self._changed.wait_for(lambda: self._parts_left == 0, self._time_left)

    @property
    def _time_left(self) -> float:
        return max(self._deadline - time.monotonic(), 0.0)

    def wait(self, layers: int) -> None:
        """Wait for the first `layers` layers.

        Raises:
            StorageError: they will not come, or not in time; the pages must not be read.

        """
        with self._changed:
            in_time = self._changed.wait_for(
                lambda: self._error is not None or self._layers >= layers, self._time_left
            )
        if not in_time:
            self.fail(TooLate("a donor's KV did not come in time: it is computed"))
        if self._error is not None:
            raise self._error
