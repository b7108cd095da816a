"""The client for asyncio programs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Sequence
from dataclasses import dataclass
from types import EllipsisType
from typing import Any, Self, TypeAlias, Unpack

from semshare.config import DEFAULT_NAMESPACE, ReusePolicy
from semshare.types import ChatMessage, DonorInfo, Prompt
from semshare_service.client import calls
from semshare_service.client.call import Call
from semshare_service.client.calls import GenerationOptions
from semshare_service.client.records import (
    DonorPage,
    DonorText,
    InspectedRequest,
    Inspection,
    ModelInfo,
    Prefilled,
    RequestRecord,
)
from semshare_service.client.results import Completion, Health, Match, Readiness
from semshare_service.client.streams import AsyncAnswerStream
from semshare_service.client.transport import DEFAULT_URL, ClientOptions, Transport

Chunks: TypeAlias = Iterable[bytes] | AsyncIterable[bytes]
_LARGEST_PAGE = 1000  # donors; the service's limit


@dataclass(frozen=True, slots=True)
class AsyncKVHandle:
    """KV that the service keeps for this client; as an async context manager it is released."""

    prefilled: Prefilled
    client: AsyncClient

    def chunks(self) -> AsyncIterator[bytes]:
        """The KV, as `download_kv` gives it."""
        return self.client.download_kv(self.prefilled.handle)

    async def release(self) -> None:
        """Let the service drop it; `NotFound` where it has expired."""
        await self.client.release(self.prefilled.handle)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.release()


class AsyncClient:
    """Calls a semshare service; use it as an async context manager or `close` it.

    Methods raise what the engine would have raised (`InvalidRequest`, `NotFound`,
    `PoolExhausted` …), `QueueFull` with `retry_after_s`, `RequestTimedOut`, and
    `ServiceUnavailable` where no answer could be had; all of them are `SemShareError`s. For
    `options` see `ClientOptions`.
    """

    def __init__(self, base_url: str = DEFAULT_URL, **options: Unpack[ClientOptions]) -> None:
        self._transport = Transport(base_url, **options)

    async def complete(
        self, prompt: str | Sequence[int], **options: Unpack[GenerationOptions]
    ) -> Completion:
        """Answer a text or token ids."""
        return await self._transport.send(calls.complete(prompt, options))

    async def chat(
        self, messages: Sequence[ChatMessage], **options: Unpack[GenerationOptions]
    ) -> Completion:
        """Answer a chat; the model's chat template is applied."""
        return await self._transport.send(calls.chat(messages, options))

    def stream(
        self, prompt: str | Sequence[int], **options: Unpack[GenerationOptions]
    ) -> AsyncAnswerStream:
        """Answer a text or token ids, piece by piece."""
        return self._streamed(calls.complete(prompt, options))

    def stream_chat(
        self, messages: Sequence[ChatMessage], **options: Unpack[GenerationOptions]
    ) -> AsyncAnswerStream:
        """Answer a chat, piece by piece."""
        return self._streamed(calls.chat(messages, options))

    async def remember(
        self,
        prompt: Prompt,
        *,
        namespace: str = DEFAULT_NAMESPACE,
        pinned: bool = False,
        ttl_s: float | None = None,
    ) -> DonorInfo:
        """Compute a prompt in full and keep it as a donor, for `ttl_s` seconds if given."""
        call = calls.remember(prompt, namespace=namespace, pinned=pinned, ttl_s=ttl_s)
        return await self._transport.send(call)

    async def donors(
        self,
        *,
        namespace: str = DEFAULT_NAMESPACE,
        limit: int | None = None,
        after: str | None = None,
    ) -> DonorPage:
        """Some donors of a namespace, oldest first: at most `limit`, those after a donor's id."""
        return await self._transport.send(
            calls.donors(namespace=namespace, limit=limit, after=after)
        )

    async def all_donors(self, *, namespace: str = DEFAULT_NAMESPACE) -> AsyncIterator[DonorInfo]:
        """All donors of a namespace, oldest first, page by page."""
        after = None
        while True:
            page = await self.donors(namespace=namespace, limit=_LARGEST_PAGE, after=after)
            for donor in page:
                yield donor
            if not page.has_more:
                return
            after = page.donors[-1].id

    async def donor(self, donor_id: str, *, namespace: str = DEFAULT_NAMESPACE) -> DonorText:
        """One donor with its text; `NotFound` where there is none."""
        return await self._transport.send(calls.donor(donor_id, namespace=namespace))

    async def update_donor(
        self,
        donor_id: str,
        *,
        namespace: str = DEFAULT_NAMESPACE,
        pinned: bool | None = None,
        ttl_s: float | EllipsisType | None = ...,
    ) -> DonorInfo:
        """Pin or unpin a donor, or let it expire in `ttl_s` seconds (None: never; `...`: as is)."""
        call = calls.update_donor(donor_id, namespace=namespace, pinned=pinned, ttl_s=ttl_s)
        return await self._transport.send(call)

    async def forget(self, donor_id: str, *, namespace: str = DEFAULT_NAMESPACE) -> None:
        """Drop a donor; `NotFound` where there is none."""
        await self._transport.send(calls.forget(donor_id, namespace=namespace))

    async def publish_donor(
        self, donor_id: str, *, namespace: str = DEFAULT_NAMESPACE, tenant: str | None = None
    ) -> DonorInfo:
        """Let all tenants find a donor of `tenant`, the caller's own by default. Operators only."""
        call = calls.publish_donor(donor_id, namespace=namespace, tenant=tenant)
        return await self._transport.send(call)

    async def match(
        self,
        prompt: Prompt,
        *,
        policy: ReusePolicy | None = None,
        namespace: str = DEFAULT_NAMESPACE,
    ) -> Match:
        """The reuse plan of a prompt; nothing is computed."""
        return await self._transport.send(calls.match(prompt, policy=policy, namespace=namespace))

    async def inspect(
        self,
        prompt: Prompt,
        *,
        policy: ReusePolicy | None = None,
        namespace: str = DEFAULT_NAMESPACE,
    ) -> Inspection:
        """The reuse plan of a prompt beside its text and its donors'; nothing is computed."""
        return await self._transport.send(calls.inspect(prompt, policy=policy, namespace=namespace))

    async def prefill(
        self,
        prompt: Prompt,
        *,
        policy: ReusePolicy | None = None,
        namespace: str = DEFAULT_NAMESPACE,
        ttl_s: float | None = None,
    ) -> AsyncKVHandle:
        """Compute a prompt's KV, reusing what the policy allows, and keep it under a handle."""
        call = calls.prefill(prompt, policy=policy, namespace=namespace, ttl_s=ttl_s)
        return AsyncKVHandle(await self._transport.send(call), self)

    async def download_kv(self, handle: str) -> AsyncIterator[bytes]:
        """The KV of a handle, a msgpack stream in chunks of any length."""
        async with self._transport.open(calls.download_kv(handle)) as chunks:
            async for chunk in chunks:
                yield chunk

    async def upload_kv(
        self,
        chunks: Chunks,
        *,
        namespace: str = DEFAULT_NAMESPACE,
        pinned: bool = False,
        ttl_s: float | None = None,
    ) -> DonorInfo:
        """Bring exact KV computed elsewhere, in the form `download_kv` gives, as a donor."""
        call = calls.upload_kv(_async(chunks), namespace=namespace, pinned=pinned, ttl_s=ttl_s)
        return await self._transport.send(call)

    async def release(self, handle: str) -> None:
        """Drop the KV of a handle; `NotFound` where there is none."""
        await self._transport.send(calls.release(handle))

    async def models(self) -> tuple[ModelInfo, ...]:
        """What the service serves."""
        return await self._transport.send(calls.models())

    async def stats(self) -> dict[str, Any]:
        """The service's counters, as `GET /v1/stats` tells them."""
        return await self._transport.send(calls.stats())

    async def requests(self, *, limit: int | None = None) -> tuple[RequestRecord, ...]:
        """Requests answered lately, newest first."""
        return await self._transport.send(calls.requests(limit=limit))

    async def request(self, request_id: str) -> InspectedRequest:
        """One answered request, with its prompt; `NotFound` where it is no longer kept."""
        return await self._transport.send(calls.request(request_id))

    async def metrics(self) -> str:
        """What Prometheus reads."""
        async with self._transport.open(calls.metrics()) as chunks:
            return b"".join([chunk async for chunk in chunks]).decode("utf-8", "replace")

    async def health(self) -> Health:
        """Whether the process answers."""
        return await self._transport.send(calls.health())

    async def ready(self) -> Readiness:
        """How the model and its queue stand."""
        return await self._transport.send(calls.ready())

    def _streamed(self, call: Call[Completion]) -> AsyncAnswerStream:
        return AsyncAnswerStream(lambda: self._transport.open(calls.streamed(call)))

    async def close(self) -> None:
        """Close the connections. A later call opens new ones."""
        await self._transport.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


async def _async(chunks: Chunks) -> AsyncIterator[bytes]:
    """Chunks that may come from a file, read beside the event loop."""
    if isinstance(chunks, AsyncIterable):
        async for chunk in chunks:
            yield chunk
        return
    plain = iter(chunks)
    while (next_chunk := await asyncio.to_thread(next, plain, None)) is not None:
        yield next_chunk
