"""The client for programs without asyncio: `AsyncClient` on an event loop in a thread of its own.

A thread, so that it also works where a loop already runs (a notebook), and may be shared between
threads.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Sequence
from concurrent.futures import CancelledError
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

from semshare.config import DEFAULT_NAMESPACE, ReusePolicy
from semshare.types import ChatMessage, DonorInfo, Prompt
from semshare_service.client.asynchronous import DEFAULT_TIMEOUT_S, DEFAULT_URL, AsyncClient
from semshare_service.client.calls import GenerationOptions
from semshare_service.client.results import Completion, Health, Match, Readiness
from semshare_service.errors import ServiceError

T = TypeVar("T")


class Client:
    """`AsyncClient` without `await`: the same arguments, methods and errors.

    Use it as a context manager or `close` it, which ends its thread.
    """

    def __init__(
        self,
        base_url: str = DEFAULT_URL,
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        wire: str = "msgpack",
    ) -> None:
        self._client = AsyncClient(base_url, timeout_s=timeout_s, wire=wire)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="semshare-client", daemon=True
        )
        self._thread.start()

    def complete(
        self, prompt: str | Sequence[int], **options: Unpack[GenerationOptions]
    ) -> Completion:
        """Answer a text or token ids."""
        return self._wait(self._client.complete(prompt, **options))

    def chat(
        self, messages: Sequence[ChatMessage], **options: Unpack[GenerationOptions]
    ) -> Completion:
        """Answer a chat; the model's chat template is applied."""
        return self._wait(self._client.chat(messages, **options))

    def remember(
        self, prompt: Prompt, *, namespace: str = DEFAULT_NAMESPACE, pinned: bool = False
    ) -> DonorInfo:
        """Compute a prompt in full and keep it as a donor."""
        return self._wait(self._client.remember(prompt, namespace=namespace, pinned=pinned))

    def donors(self, *, namespace: str = DEFAULT_NAMESPACE) -> list[DonorInfo]:
        """The donors of one namespace."""
        return self._wait(self._client.donors(namespace=namespace))

    def forget(self, donor_id: str, *, namespace: str = DEFAULT_NAMESPACE) -> None:
        """Drop a donor; `NotFound` where there is none."""
        self._wait(self._client.forget(donor_id, namespace=namespace))

    def match(
        self,
        prompt: Prompt,
        *,
        policy: ReusePolicy | None = None,
        namespace: str = DEFAULT_NAMESPACE,
    ) -> Match:
        """The reuse plan of a prompt; nothing is computed."""
        return self._wait(self._client.match(prompt, policy=policy, namespace=namespace))

    def health(self) -> Health:
        """Whether the process answers."""
        return self._wait(self._client.health())

    def ready(self) -> Readiness:
        """How the model and its queue stand."""
        return self._wait(self._client.ready())

    def _wait(self, coroutine: Coroutine[Any, Any, T]) -> T:
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

    def close(self) -> None:
        """Close the connections and end the thread. Closing again does nothing."""
        if self._loop.is_closed():
            return
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _end(self) -> None:
        running = asyncio.all_tasks() - {asyncio.current_task()}
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        await self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
