"""What threads hand to coroutines: items in order, and one wake-up for all that come together."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Generic, TypeVar

T = TypeVar("T")


class LoopCalls:
    """Calls functions on the running event loop, on behalf of threads.

    `loop.call_soon_threadsafe` writes to a socket each time, and the thread that writes may then
    wait for Python's lock. The tokens of a step, which several threads bring, would each wake the
    loop; here only the first does, and the loop finds the others.
    """

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self._waiting: deque[Callable[[], object]] = deque()
        self._is_woken = False

    def soon(self, function: Callable[[], object]) -> None:
        """Call `function`, which doesn't raise, soon and in turn. Any thread may ask for it."""
        self._waiting.append(function)
        if not self._is_woken and not self.loop.is_closed():  # after a stop that was not waited for
            self._is_woken = True
            self.loop.call_soon_threadsafe(self._call_all)

    def _call_all(self) -> None:
        self._is_woken = False  # before it looks, so that nothing comes that is not looked for
        for _ in range(len(self._waiting)):
            self._waiting.popleft()()


class Inbox(Generic[T]):
    """Items that any thread may put in, for one coroutine, in their order.

    Args:
        calls: of the coroutine's event loop.

    """

    def __init__(self, calls: LoopCalls) -> None:
        self._calls = calls
        self._items: deque[T] = deque()
        self._arrival: asyncio.Future[None] | None = None  # what the coroutine waits for

    def put(self, item: T) -> None:
        """Add an item; never waits."""
        self._calls.soon(partial(self._add, item))

    def _add(self, item: T) -> None:
        self._items.append(item)
        if self._arrival is not None and not self._arrival.done():
            self._arrival.set_result(None)

    async def take(self, most: int) -> list[T]:
        """The oldest items, at most so many; waits for the first one."""
        if not self._items:
            self._arrival = self._calls.loop.create_future()
            await self._arrival
        return [self._items.popleft() for _ in range(min(most, len(self._items)))]
