"""What the service asks of an engine: the part of `semshare.SemShare` that it calls.

Methods run in the worker's threads, several at a time. Locks, counters and the like are the
engine's own business.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from types import EllipsisType
from typing import TYPE_CHECKING, Protocol, TypeAlias, Unpack

from semshare.config import ReusePolicy
from semshare.engine.limits import LimitsOf
from semshare.types import (
    DonorInfo,
    GenerateOptions,
    Ids,
    PoolUse,
    Prompt,
    ReusePlan,
    TextDelta,
    Verification,
)

if TYPE_CHECKING:
    from semshare.engine.kv_export import PrefilledPrompt
    from semshare.kv.exchange import KVFormat, LayerKV


class Engine(Protocol):
    """`semshare.SemShare` as the service sees it."""

    @property
    def model_name(self) -> str:
        """The name under which the model is listed."""

    @property
    def max_context(self) -> int:
        """Most tokens, prompt and answer together."""

    def limit(self, limits_of: LimitsOf) -> None:
        """Bound what the requests and donors of each namespace may take."""

    def remember(
        self,
        prompt: Prompt,
        *,
        namespace: str = ...,
        pinned: bool = ...,
        ttl_s: float | None = ...,
        given_up: Callable[[], bool] | None = ...,
    ) -> DonorInfo:
        """Compute the prompt in full and keep it as a donor, for so many seconds if given."""

    @property
    def kv_format(self) -> KVFormat:
        """What KV must be for its model to use it."""

    def prefill(
        self,
        prompt: Prompt,
        *,
        policy: ReusePolicy | None = ...,
        namespace: str = ...,
        given_up: Callable[[], bool] | None = ...,
    ) -> PrefilledPrompt:
        """Prefill a prompt and hold its KV to be read, until it is released."""

    def import_donor(
        self,
        ids: Sequence[int],
        layers: Iterable[LayerKV],
        *,
        fingerprint: str,
        namespace: str = ...,
        pinned: bool = ...,
        ttl_s: float | None = ...,
    ) -> DonorInfo:
        """Make a prompt a donor with KV from elsewhere; `KVMismatch` where it does not fit."""

    def donors(self, *, namespace: str = ...) -> list[DonorInfo]:
        """The donors of one namespace, oldest first."""

    def donor(self, donor_id: str, *, namespace: str = ...) -> DonorInfo:
        """One donor; `NotFound` where there is none."""

    def donor_text(self, donor_id: str, *, namespace: str = ...) -> str:
        """The prompt of a donor that requests of the namespace find; `NotFound` otherwise."""

    def update_donor(
        self,
        donor_id: str,
        *,
        namespace: str = ...,
        pinned: bool | None = ...,
        ttl_s: float | EllipsisType | None = ...,
    ) -> DonorInfo:
        """Pin a donor or not, or give it seconds to live; `NotFound` where there is none."""

    def publish(self, donor_id: str, *, namespace: str = ...) -> DonorInfo:
        """Let requests of all namespaces find a donor; `NotFound` where there is none."""

    def forget(self, donor_id: str, *, namespace: str = ...) -> None:
        """Drop a donor; `NotFound` where there is none."""

    def stream(self, prompt: Prompt, **options: Unpack[GenerateOptions]) -> Iterator[TextDelta]:
        """The answer piece by piece, the last with the whole. Closing it early is allowed."""

    def plan(
        self, prompt: Prompt, *, policy: ReusePolicy | None = ..., namespace: str = ...
    ) -> ReusePlan:
        """Which tokens would be reused; no model runs."""

    def encode(self, prompt: Prompt) -> Ids:
        """Token ids `[n]` int32 of a prompt, as a request for it would have them."""

    def donor_ids(self, donor_id: str, *, namespace: str = ...) -> Ids:
        """Token ids `[n]` int32 of a donor; `NotFound` where there is none."""

    def pool_use(self) -> PoolUse:
        """Who holds the KV pool at present; takes the engine's lock."""

    def token_bytes(self, token_id: int) -> bytes:
        """A token's text in UTF-8; where it is part of a character, the bytes it stands for."""

    def complete_pending(self, *, limit: int | None = ...) -> list[DonorInfo]:
        """Compute in full what was answered from approximate KV and is to be remembered."""

    def verify_answer(
        self,
        prompt: Prompt,
        answer: Sequence[int],
        *,
        policy: ReusePolicy | None = ...,
        namespace: str = ...,
        between: Callable[[], None] = ...,
    ) -> Verification:
        """Score an answer in full and with reuse; `between` is called after each bounded piece."""

    def close(self, timeout_s: float = ...) -> None:
        """Let donors be written below the pool for about so long, and let go of what lies there."""


EngineLoader: TypeAlias = Callable[[], Engine]
