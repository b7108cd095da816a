"""KV on its way into the pool: who may read it, and when its pages are free again."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from semshare import StorageError
from semshare.kv.arrival import Arrival, Departure, TooLate


class Counted:
    """An arrival that counts what it calls back."""

    def __init__(self, parts: int = 1, timeout_s: float = 30.0) -> None:
        self.undone = self.failed = self.over = 0
        self.arrival = Arrival(
            np.arange(3),
            parts,
            timeout_s,
            undo=lambda: self._count("undone"),
            on_failed=lambda _: self._count("failed"),
            on_over=lambda: self._count("over"),
        )

    def _count(self, what: str) -> None:
        setattr(self, what, getattr(self, what) + 1)


def test_what_fails_between_two_looks_is_undone_before_it_is_let_go_of(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A reader may fail, and be over, at any moment of `settle`."""
    counted = Counted()
    arrival = counted.arrival
    reader: list[threading.Thread] = []

    def ends_badly() -> None:
        arrival.fail(StorageError("gone"))
        arrival.part_over()

    def look(self: Arrival) -> StorageError | None:
        before: StorageError | None = vars(self)["_error"]
        if not reader:
            reader.append(threading.Thread(target=ends_badly))
            reader[0].start()
            reader[0].join(0.5)
        return before

    def keep(self: Arrival, error: StorageError | None) -> None:
        vars(self)["_error"] = error

    monkeypatch.setattr(Arrival, "_error", property(look, keep), raising=False)
    while not arrival.settle():
        reader[0].join()
    assert counted.undone == 1
    assert counted.over == 1


def test_a_reader_that_hangs_keeps_no_pages() -> None:
    """Only what is being copied into them does, for as long as that takes."""
    counted = Counted(parts=2, timeout_s=0.05)
    arrival = counted.arrival
    with arrival.writing():
        with pytest.raises(TooLate):
            arrival.wait(1)
        assert counted.failed == 1
        assert not arrival.settle()
        assert counted.undone == 1
    assert arrival.settle()
    with pytest.raises(TooLate), arrival.writing():
        raise AssertionError("the pages are others' by now")


def test_whoever_needs_the_pages_waits_no_longer_than_readers_do() -> None:
    counted = Counted(timeout_s=0.05)
    assert not counted.arrival.settle()
    assert counted.arrival.wait_until_over()
    assert counted.failed == 1
    assert counted.arrival.settle()


def test_pages_that_are_read_without_the_lock_are_waited_for() -> None:
    departure = Departure(np.arange(3), np.arange(48))
    assert not departure.settle()
    threading.Timer(0.05, departure.over).start()
    assert departure.wait_until_over()
    assert departure.settle()
