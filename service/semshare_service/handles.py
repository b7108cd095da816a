"""Prefilled prompts that wait to be read, each under a name that only its tenant is told."""

from __future__ import annotations

import asyncio
import secrets
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from aiohttp import web

from semshare.errors import NotFound
from semshare_service.errors import TooManyHandles
from semshare_service.kv_wire import KVHeader

if TYPE_CHECKING:
    from semshare.engine.kv_export import PrefilledPrompt


_RELEASE_S = 1.0  # at the end: a process that goes need not give slots back


@dataclass(frozen=True, slots=True, eq=False)
class HeldKV:
    """A prompt whose KV is held, and what its stream begins with."""

    header: KVHeader
    prompt: PrefilledPrompt


@dataclass(eq=False, slots=True)
class _Entry:
    tenant: str
    held: HeldKV | None = None  # None while it is being prefilled
    expires: float = 0.0  # seconds since the epoch
    readers: int = 0
    dropped: bool = False


class Handles:
    """All handles. Thread-safe; no method waits for the engine.

    KV is released once its handle has gone and nobody reads it any more, in a thread of its own,
    because that waits for the engine's lock.

    Args:
        most: handles that one tenant may have at a time, those that are being prefilled included.

    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._lock = threading.Lock()  # guards what follows
        self._entries: dict[str, _Entry] = {}
        self._releasing: list[threading.Thread] = []

    def reserve(self, tenant: str) -> str:
        """A name for KV that is to be computed.

        Raises:
            TooManyHandles: the tenant has as many as it may have.

        """
        with self._lock:
            mine = [entry for entry in self._entries.values() if entry.tenant == tenant]
            if len(mine) >= self._most:
                now = time.time()
                ends = min((one.expires for one in mine if one.held is not None), default=now)
                raise TooManyHandles(
                    f"{len(mine)} handles are open, which is the limit (max_handles): delete one, "
                    "or wait until one expires",
                    retry_after_s=max(1.0, ends - now),
                )
            name = f"kv-{secrets.token_hex(16)}"
            self._entries[name] = _Entry(tenant)
            return name

    def fill(self, name: str, held: HeldKV, *, ttl_s: float) -> float:
        """The KV of a reserved name is there; it is released where the name was dropped meanwhile.

        Returns:
            When it expires, in seconds since the epoch.

        """
        expires = time.time() + ttl_s
        with self._lock:
            entry = self._entries.get(name)
            if entry is None:
                self._release(held)
            else:
                entry.held, entry.expires = held, expires
        return expires

    @contextmanager
    def reading(self, tenant: str, name: str) -> Iterator[HeldKV]:
        """What a handle stands for, held until the block ends even if the handle goes before.

        Raises:
            NotFound: the tenant has no such handle.

        """
        with self._lock:
            entry, held = self._find(tenant, name)
            entry.readers += 1
        try:
            yield held
        finally:
            with self._lock:
                entry.readers -= 1
                if entry.dropped and not entry.readers:
                    self._release(held)

    def drop(self, tenant: str, name: str) -> None:
        """End a handle.

        Raises:
            NotFound: the tenant has no such handle.

        """
        with self._lock:
            self._find(tenant, name)
            self._drop(name)

    def discard(self, name: str) -> None:
        """End a handle, if there is one of that name: it has expired, or nobody waits for it."""
        with self._lock:
            self._drop(name)

    async def close(self, timeout_s: float) -> None:
        """End all handles and wait for their KV to be released, at most so many seconds."""
        with self._lock:
            for name in list(self._entries):
                self._drop(name)
            releasing = list(self._releasing)
        ends = time.monotonic() + timeout_s
        for thread in releasing:
            await asyncio.to_thread(thread.join, max(ends - time.monotonic(), 0.0))

    # With the lock held.

    def _find(self, tenant: str, name: str) -> tuple[_Entry, HeldKV]:
        entry = self._entries.get(name)
        if entry is None or entry.tenant != tenant or entry.held is None:
            raise NotFound(
                "no such handle: it has expired or was deleted; prefill the prompt again"
            )
        return entry, entry.held

    def _drop(self, name: str) -> None:
        entry = self._entries.pop(name, None)
        if entry is None:
            return
        entry.dropped = True
        if entry.held is not None and not entry.readers:
            self._release(entry.held)

    def _release(self, held: HeldKV) -> None:
        self._releasing = [thread for thread in self._releasing if thread.is_alive()]
        # A daemon: a process that ends need not give slots back.
        thread = threading.Thread(target=held.prompt.release, name="semshare-release", daemon=True)
        self._releasing.append(thread)
        thread.start()


HANDLES: web.AppKey[Handles] = web.AppKey("handles", Handles)


async def handles_life(app: web.Application) -> AsyncIterator[None]:
    """Of an application: at its end nothing stays held."""
    yield
    await app[HANDLES].close(_RELEASE_S)
