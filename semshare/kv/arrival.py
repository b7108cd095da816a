"""KV on its way between the pool and the tiers below it: into it the first layers first."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np

from semshare.errors import StorageError, TierUnavailable
from semshare.types import Pages, Slots

_WRITE_S = 5.0  # for a copy in memory that has begun
_ENCODE_S = 10.0  # for a donor to be made into blobs


class TooLate(TierUnavailable):
    """KV did not come within the time that was given to it, `waited_s` seconds."""

    def __init__(self, waited_s: float) -> None:
        super().__init__(
            f"a donor's KV did not come within {waited_s:.3g} s: it is computed; see whether the "
            "tier is slow, or allow more (load_timeout_s)"
        )
        self.waited_s = waited_s


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
        self._writing = 0  # parts that are being copied into the pages
        self._timeout_s = timeout_s
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

    @contextmanager
    def writing(self) -> Iterator[None]:
        """While a part is copied into the pages, which go to others once the arrival has failed.

        Raises:
            StorageError: it has failed, so nothing may be written.

        """
        with self._changed:
            if self._error is not None:
                raise self._error
            self._writing += 1
        try:
            yield
        finally:
            with self._changed:
                self._writing -= 1
                self._changed.notify_all()

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
            Whether nothing will be written any more, so that the pages may be given to others.

        """
        with self._changed:  # both at once: a reader may fail, and be over, at any moment
            has_failed, is_over = self._error is not None, self._is_over()
        if has_failed and self._undo is not None:
            self._undo()
            self._undo = None
        return is_over

    def wait_until_over(self) -> bool:
        """Wait until nothing will be written any more; whether it came to that.

        What has not come when its time is over has failed, so that only copies that have begun keep
        the pages, not a tier that does not answer.
        """
        with self._changed:
            if self._changed.wait_for(self._is_over, self._time_left):
                return True
        self.fail(TooLate(self._timeout_s))
        with self._changed:
            return self._changed.wait_for(self._is_over, _WRITE_S)

    def _is_over(self) -> bool:
        """The caller holds the condition."""
        return self._parts_left == 0 or (self._error is not None and self._writing == 0)

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
            self.fail(TooLate(self._timeout_s))
        if self._error is not None:
            raise self._error


class Departure:
    """Pages of the pool that a thread reads without the engine's lock, not for long.

    Args:
        pages: of the pool.
        slots: on them, whose KV is read.

    """

    def __init__(self, pages: Pages, slots: Slots) -> None:
        self.pages = pages
        self.slots = slots
        self._over = threading.Event()

    def over(self) -> None:
        """They have been read."""
        self._over.set()

    def settle(self) -> bool:
        """Whether the pages may be given to others."""
        return self._over.is_set()

    def wait_until_over(self) -> bool:
        """Wait until they have been read; whether it came to that."""
        return self._over.wait(_ENCODE_S)
