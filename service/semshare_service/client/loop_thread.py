"""An event loop in a thread of its own, for programs without asyncio.

A thread, so that it also works where a loop already runs (a notebook), and may be shared between
threads.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Iterator
from concurrent.futures import CancelledError
from typing import Any, TypeVar

from semshare_service.errors import ServiceError

T = TypeVar("T")


class LoopThread:
    """Runs coroutines until it is closed."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="semshare-client", daemon=True
        )
        self._thread.start()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """The coroutine's result, or what it raised; `ServiceError` where the thread is closed."""
        if self._loop.is_closed():
            coroutine.close()
            raise ServiceError("the client is closed: make another one")
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result()
        except CancelledError:
            raise ServiceError("the client was closed while the request ran") from None
        except BaseException:
            future.cancel()  # an interrupt of the caller ends the request too
            raise

    def iterate(self, items: AsyncIterator[T]) -> Iterator[T]:
        """The items of an asynchronous iterator, which is closed where the loop over it ends."""
        while True:
            try:
                item = self.run(_next(items))
            except StopAsyncIteration:
                return
            try:
                yield item
            except GeneratorExit:
                if isinstance(items, AsyncGenerator) and not self._loop.is_closed():
                    # Not waited for: at the program's end the thread may not run any more.
                    asyncio.run_coroutine_threadsafe(_closed(items), self._loop)
                raise

    def close(self, last: Coroutine[Any, Any, None]) -> None:
        """End what runs, then run `last`, then end the thread. Closing again does nothing."""
        if self._loop.is_closed():
            last.close()
            return
        asyncio.run_coroutine_threadsafe(self._end(last), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _end(self, last: Coroutine[Any, Any, None]) -> None:
        running = asyncio.all_tasks() - {asyncio.current_task()}
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        await self._loop.shutdown_asyncgens()  # streams that were left in the middle
        await last


async def _next(items: AsyncIterator[T]) -> T:
    return await anext(items)


async def _closed(items: AsyncGenerator[Any, None]) -> None:
    await items.aclose()
