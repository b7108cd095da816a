"""The client for asyncio programs."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Self, TypeVar, Unpack

import aiohttp
from yarl import URL

from semshare.config import DEFAULT_NAMESPACE, ReusePolicy
from semshare.types import ChatMessage, DonorInfo, Prompt
from semshare_service.client import calls
from semshare_service.client.calls import Call, GenerationOptions
from semshare_service.client.results import Completion, Health, Match, Readiness
from semshare_service.errors import ServiceUnavailable
from semshare_service.wire import encode

T = TypeVar("T")
DEFAULT_URL = "http://127.0.0.1:8765"
DEFAULT_TIMEOUT_S = 330.0  # a little over the service's own, whose error says more


class AsyncClient:
    """Calls a semshare service; use it as an async context manager or `close` it.

    timeout_s: seconds one request may take, waiting included.
    wire:      `"msgpack"` or `"json"`.

    Methods raise what the engine would have raised (`InvalidRequest`, `NotFound`,
    `PoolExhausted` …), `QueueFull` with `retry_after_s`, `RequestTimedOut`, and
    `ServiceUnavailable` where no answer could be had; all of them are `SemShareError`s.
    """

    def __init__(
        self,
        base_url: str = DEFAULT_URL,
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        wire: str = "msgpack",
    ) -> None:
        self._base_url = base_url.rstrip("/")
        self._timeout_s = timeout_s
        self._media_type = calls.media_type(wire)
        self._session: aiohttp.ClientSession | None = None

    async def complete(
        self, prompt: str | Sequence[int], **options: Unpack[GenerationOptions]
    ) -> Completion:
        """Answer a text or token ids."""
        return await self.send(calls.complete(prompt, options))

    async def chat(
        self, messages: Sequence[ChatMessage], **options: Unpack[GenerationOptions]
    ) -> Completion:
        """Answer a chat; the model's chat template is applied."""
        return await self.send(calls.chat(messages, options))

    async def remember(
        self, prompt: Prompt, *, namespace: str = DEFAULT_NAMESPACE, pinned: bool = False
    ) -> DonorInfo:
        """Compute a prompt in full and keep it as a donor."""
        return await self.send(calls.remember(prompt, namespace=namespace, pinned=pinned))

    async def donors(self, *, namespace: str = DEFAULT_NAMESPACE) -> list[DonorInfo]:
        """The donors of one namespace."""
        return await self.send(calls.donors(namespace=namespace))

    async def forget(self, donor_id: str, *, namespace: str = DEFAULT_NAMESPACE) -> None:
        """Drop a donor; `NotFound` where there is none."""
        await self.send(calls.forget(donor_id, namespace=namespace))

    async def match(
        self,
        prompt: Prompt,
        *,
        policy: ReusePolicy | None = None,
        namespace: str = DEFAULT_NAMESPACE,
    ) -> Match:
        """The reuse plan of a prompt; nothing is computed."""
        return await self.send(calls.match(prompt, policy=policy, namespace=namespace))

    async def health(self) -> Health:
        """Whether the process answers."""
        return await self.send(calls.health())

    async def ready(self) -> Readiness:
        """How the model and its queue stand."""
        return await self.send(calls.ready())

    async def send(self, call: Call[T]) -> T:
        """Send one call and read its answer."""
        form = self._media_type
        headers = {"Accept": form.value}
        if call.body is not None:
            headers["Content-Type"] = form.value
        url = URL(self._base_url + call.path, encoded=True)
        try:
            async with self._open_session().request(
                call.method,
                url,
                data=None if call.body is None else encode(call.body, form),
                headers=headers,
            ) as response:
                body = await response.read()
        except TimeoutError:
            raise ServiceUnavailable(
                f"{self._base_url} gave no answer in {self._timeout_s:g} s (timeout_s)"
            ) from None
        except (aiohttp.ClientError, OSError) as error:
            raise ServiceUnavailable(
                f"{self._base_url} can't be reached ({error}): is `semshare serve` running there?"
            ) from error
        return calls.read_reply(
            call,
            status=response.status,
            content_type=response.headers.get("Content-Type"),
            retry_after=response.headers.get("Retry-After"),
            body=body,
        )

    def _open_session(self) -> aiohttp.ClientSession:
        # Made at the first call: a session belongs to the loop that runs then.
        if self._session is None or self._session.closed:
            self._session = aiohttp.ClientSession(
                timeout=aiohttp.ClientTimeout(total=self._timeout_s)
            )
        return self._session

    async def close(self) -> None:
        """Close the connections. A later call opens new ones."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()
