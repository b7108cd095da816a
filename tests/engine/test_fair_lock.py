"""The lock goes to whoever has waited longest. Threads wait for each other, never for the clock."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from semshare.engine.fair_lock import FairLock


class Line(deque[Any]):
    """A lock's queue that says when somebody has joined it."""

    def __init__(self, waiting: Iterable[Any]) -> None:
        super().__init__(waiting)
        self.longer = threading.Event()

    def append(self, turn: Any) -> None:
        super().append(turn)
        self.longer.set()


def in_line(lock: FairLock, work: Callable[[], None]) -> threading.Thread:
    """A thread that does `work` under the lock, started once it waits for it."""

    def run() -> None:
        with lock:
            work()

    lock._queue = line = Line(lock._queue)
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert line.longer.wait(10.0)
    return thread


def test_who_came_first_goes_first() -> None:
    lock, order = FairLock(lambda: None), []
    with lock:
        threads = [in_line(lock, lambda at=at: order.append(at)) for at in range(5)]  # type: ignore[misc]
        assert order == []
    for thread in threads:
        thread.join(10.0)
    assert order == [0, 1, 2, 3, 4]


def test_who_takes_it_again_at_once_comes_after_those_who_wait() -> None:
    lock, order = FairLock(lambda: None), []
    lock.__enter__()
    thread = in_line(lock, lambda: order.append("waiting"))
    lock.__exit__(None, None, None)
    with lock:
        order.append("again")
    thread.join(10.0)
    assert order == ["waiting", "again"]


def test_the_holder_may_take_it_again() -> None:
    lock, order = FairLock(lambda: None), []
    with lock:
        with lock:
            thread = in_line(lock, lambda: order.append("other"))
        assert order == [], "the outer block still holds it"
        order.append("mine")
    thread.join(10.0)
    assert order == ["mine", "other"]


def test_an_error_gives_it_back() -> None:
    lock = FairLock(lambda: None)
    with pytest.raises(RuntimeError), lock:
        raise RuntimeError
    with lock:
        pass


class Interrupting(threading.Event):
    """An event whose wait is broken off as by Ctrl-C, after `before` has happened."""

    before: Callable[[], object]

    def wait(self, timeout: float | None = None) -> bool:
        type(self).before()
        raise KeyboardInterrupt


def interrupted_while(
    lock: FairLock, before: Callable[[], object], patch: pytest.MonkeyPatch
) -> None:
    """This thread waits for the lock, which another one holds, and is interrupted."""
    Interrupting.before = staticmethod(before)  # type: ignore[assignment]
    patch.setattr("semshare.engine.fair_lock.threading.Event", Interrupting)
    with pytest.raises(KeyboardInterrupt), lock:
        raise AssertionError("it was never ours")
    patch.undo()


def held_by_another(lock: FairLock) -> Callable[[], None]:
    """Lets a thread take the lock; returns what makes it let go and waits until it has."""
    taken, over = threading.Event(), threading.Event()

    def hold() -> None:
        with lock:
            taken.set()
            over.wait(10.0)

    thread = threading.Thread(target=hold, daemon=True)
    thread.start()
    assert taken.wait(10.0)

    def let_go() -> None:
        over.set()
        thread.join(10.0)

    return let_go


def test_who_is_interrupted_while_waiting_leaves_the_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    lock = FairLock(lambda: None)
    let_go = held_by_another(lock)
    interrupted_while(lock, lambda: None, monkeypatch)
    let_go()
    with lock:
        assert not lock._queue


def test_who_is_interrupted_when_it_is_his_turn_passes_it_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The holder has handed the lock over, but the waiting thread never gets to run with it."""
    lock = FairLock(lambda: None)
    interrupted_while(lock, held_by_another(lock), monkeypatch)
    order: list[int] = []
    thread = threading.Thread(target=lambda: [order.append(1) for _ in [0] if not lock.__enter__()])
    thread.start()
    thread.join(10.0)
    assert order == [1], "nobody could take it any more"
