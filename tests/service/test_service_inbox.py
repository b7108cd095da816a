"""Inboxes: items in their order from any number of threads, and few wake-ups of the loop."""

from __future__ import annotations

import asyncio
import threading

import pytest

from semshare_service.inbox import Inbox, LoopCalls


async def test_items_come_in_the_order_of_each_thread() -> None:
    calls = LoopCalls()
    inboxes: list[Inbox[int | None]] = [Inbox(calls) for _ in range(8)]

    def put(inbox: Inbox[int | None]) -> None:
        for item in (*range(500), None):
            inbox.put(item)

    async def taken(inbox: Inbox[int | None]) -> list[int | None]:
        items: list[int | None] = []
        while not items or items[-1] is not None:
            found = await inbox.take(7)
            assert 1 <= len(found) <= 7
            items.extend(found)
        return items

    threads = [threading.Thread(target=put, args=(inbox,)) for inbox in inboxes]
    for thread in threads:
        thread.start()
    async with asyncio.timeout(60):
        found = await asyncio.gather(*map(taken, inboxes))
    assert found == [[*range(500), None]] * 8
    await asyncio.to_thread(lambda: [thread.join() for thread in threads])


async def test_what_comes_together_wakes_the_loop_once(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = asyncio.get_running_loop()
    woken = 0
    call_soon_threadsafe = loop.call_soon_threadsafe

    def counted(*arguments: object) -> asyncio.Handle:
        nonlocal woken
        woken += 1
        return call_soon_threadsafe(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(loop, "call_soon_threadsafe", counted)
    calls = LoopCalls()
    inboxes: list[Inbox[int]] = [Inbox(calls) for _ in range(8)]
    for inbox in inboxes:
        for item in range(3):
            inbox.put(item)  # the loop is in this function and can't look yet
    assert [await inbox.take(9) for inbox in inboxes] == [[0, 1, 2]] * 8
    assert woken == 1
    inboxes[0].put(4)
    assert await inboxes[0].take(9) == [4]
    assert woken == 2


async def test_who_no_longer_waits_is_not_called() -> None:
    inbox: Inbox[int] = Inbox(LoopCalls())
    waiting = asyncio.create_task(inbox.take(1))
    await asyncio.sleep(0)
    waiting.cancel()
    inbox.put(1)
    assert await inbox.take(1) == [1]
    with pytest.raises(asyncio.CancelledError):
        await waiting


def test_after_the_loop_nothing_is_called() -> None:
    async def made() -> Inbox[int]:
        return Inbox(LoopCalls())

    asyncio.run(made()).put(1)
