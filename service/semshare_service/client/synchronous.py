"""The client for programs without asyncio: `AsyncClient` on a thread with an event loop."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import EllipsisType
from typing import Any, Self, Unpack

from semshare.config import DEFAULT_NAMESPACE, ReusePolicy
from semshare.types import ChatMessage, DonorInfo, Prompt
from semshare_service.client.asynchronous import AsyncClient, Chunks
from semshare_service.client.calls import GenerationOptions
from semshare_service.client.loop_thread import LoopThread
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
from semshare_service.client.streams import AnswerStream
from semshare_service.client.transport import DEFAULT_URL, ClientOptions


@dataclass(frozen=True, slots=True)
class KVHandle:
    """KV that the service keeps for this client; as a context manager it is released."""

    prefilled: Prefilled
    client: Client

    def chunks(self) -> Iterator[bytes]:
        """The KV, as `download_kv` gives it."""
        return self.client.download_kv(self.prefilled.handle)

    def release(self) -> None:
        """Let the service drop it; `NotFound` where it has expired."""
        self.client.release(self.prefilled.handle)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


class Client:
    """`AsyncClient` without `await`: the same arguments, methods and errors.

    Use it as a context manager or `close` it, which ends its thread. Threads may share it.
    """

    def __init__(self, base_url: str = DEFAULT_URL, **options: Unpack[ClientOptions]) -> None:
        self._client = AsyncClient(base_url, **options)
        self._thread = LoopThread()

    def complete(
        self, prompt: str | Sequence[int], **options: Unpack[GenerationOptions]
    ) -> Completion:
        """Answer a text or token ids."""
        return self._thread.run(self._client.complete(prompt, **options))

    def chat(
        self, messages: Sequence[ChatMessage], **options: Unpack[GenerationOptions]
    ) -> Completion:
        """Answer a chat; the model's chat template is applied."""
        return self._thread.run(self._client.chat(messages, **options))

    def stream(
        self, prompt: str | Sequence[int], **options: Unpack[GenerationOptions]
    ) -> AnswerStream:
        """Answer a text or token ids, piece by piece."""
        return AnswerStream(self._client.stream(prompt, **options), self._thread)

    def stream_chat(
        self, messages: Sequence[ChatMessage], **options: Unpack[GenerationOptions]
    ) -> AnswerStream:
        """Answer a chat, piece by piece."""
        return AnswerStream(self._client.stream_chat(messages, **options), self._thread)

    def remember(
        self,
        prompt: Prompt,
        *,
        namespace: str = DEFAULT_NAMESPACE,
        pinned: bool = False,
        ttl_s: float | None = None,
    ) -> DonorInfo:
        """Compute a prompt in full and keep it as a donor, for `ttl_s` seconds if given."""
        return self._thread.run(
            self._client.remember(prompt, namespace=namespace, pinned=pinned, ttl_s=ttl_s)
        )

    def donors(
        self,
        *,
        namespace: str = DEFAULT_NAMESPACE,
        limit: int | None = None,
        after: str | None = None,
    ) -> DonorPage:
        """Some donors of a namespace, oldest first: at most `limit`, those after a donor's id."""
        return self._thread.run(self._client.donors(namespace=namespace, limit=limit, after=after))

    def all_donors(self, *, namespace: str = DEFAULT_NAMESPACE) -> Iterator[DonorInfo]:
        """All donors of a namespace, oldest first, page by page."""
        return self._thread.iterate(self._client.all_donors(namespace=namespace))

    def donor(self, donor_id: str, *, namespace: str = DEFAULT_NAMESPACE) -> DonorText:
        """One donor with its text; `NotFound` where there is none."""
        return self._thread.run(self._client.donor(donor_id, namespace=namespace))

    def update_donor(
        self,
        donor_id: str,
        *,
        namespace: str = DEFAULT_NAMESPACE,
        pinned: bool | None = None,
        ttl_s: float | EllipsisType | None = ...,
    ) -> DonorInfo:
        """Pin or unpin a donor, or let it expire in `ttl_s` seconds (None: never; `...`: as is)."""
        return self._thread.run(
            self._client.update_donor(donor_id, namespace=namespace, pinned=pinned, ttl_s=ttl_s)
        )

    def forget(self, donor_id: str, *, namespace: str = DEFAULT_NAMESPACE) -> None:
        """Drop a donor; `NotFound` where there is none."""
        self._thread.run(self._client.forget(donor_id, namespace=namespace))

    def publish_donor(
        self, donor_id: str, *, namespace: str = DEFAULT_NAMESPACE, tenant: str | None = None
    ) -> DonorInfo:
        """Let all tenants find a donor of `tenant`, the caller's own by default. Operators only."""
        return self._thread.run(
            self._client.publish_donor(donor_id, namespace=namespace, tenant=tenant)
        )

    def match(
        self,
        prompt: Prompt,
        *,
        policy: ReusePolicy | None = None,
        namespace: str = DEFAULT_NAMESPACE,
    ) -> Match:
        """The reuse plan of a prompt; nothing is computed."""
        return self._thread.run(self._client.match(prompt, policy=policy, namespace=namespace))

    def inspect(
        self,
        prompt: Prompt,
        *,
        policy: ReusePolicy | None = None,
        namespace: str = DEFAULT_NAMESPACE,
    ) -> Inspection:
        """The reuse plan of a prompt beside its text and its donors'; nothing is computed."""
        return self._thread.run(self._client.inspect(prompt, policy=policy, namespace=namespace))

    def prefill(
        self,
        prompt: Prompt,
        *,
        policy: ReusePolicy | None = None,
        namespace: str = DEFAULT_NAMESPACE,
        ttl_s: float | None = None,
    ) -> KVHandle:
        """Compute a prompt's KV, reusing what the policy allows, and keep it under a handle."""
        handle = self._thread.run(
            self._client.prefill(prompt, policy=policy, namespace=namespace, ttl_s=ttl_s)
        )
        return KVHandle(handle.prefilled, self)

    def download_kv(self, handle: str) -> Iterator[bytes]:
        """The KV of a handle, a msgpack stream in chunks of any length."""
        return self._thread.iterate(self._client.download_kv(handle))

    def upload_kv(
        self,
        chunks: Chunks,
        *,
        namespace: str = DEFAULT_NAMESPACE,
        pinned: bool = False,
        ttl_s: float | None = None,
    ) -> DonorInfo:
        """Bring exact KV computed elsewhere, in the form `download_kv` gives, as a donor."""
        return self._thread.run(
            self._client.upload_kv(chunks, namespace=namespace, pinned=pinned, ttl_s=ttl_s)
        )

    def release(self, handle: str) -> None:
        """Drop the KV of a handle; `NotFound` where there is none."""
        self._thread.run(self._client.release(handle))

    def models(self) -> tuple[ModelInfo, ...]:
        """What the service serves."""
        return self._thread.run(self._client.models())

    def stats(self) -> dict[str, Any]:
        """The service's counters, as `GET /v1/stats` tells them."""
        return self._thread.run(self._client.stats())

    def requests(self, *, limit: int | None = None) -> tuple[RequestRecord, ...]:
        """Requests answered lately, newest first."""
        return self._thread.run(self._client.requests(limit=limit))

    def request(self, request_id: str) -> InspectedRequest:
        """One answered request, with its prompt; `NotFound` where it is no longer kept."""
        return self._thread.run(self._client.request(request_id))

    def metrics(self) -> str:
        """What Prometheus reads."""
        return self._thread.run(self._client.metrics())

    def health(self) -> Health:
        """Whether the process answers."""
        return self._thread.run(self._client.health())

    def ready(self) -> Readiness:
        """How the model and its queue stand."""
        return self._thread.run(self._client.ready())

    def close(self) -> None:
        """Close the connections and end the thread. Closing again does nothing."""
        self._thread.close(self._client.close())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
