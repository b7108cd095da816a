"""What the service asks of an engine: the part of `semshare.SemShare` that it calls.

Methods run in the worker's threads, several at a time. Locks, counters and the like are the
engine's own business.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol, TypeAlias, Unpack

from semshare.config import ReusePolicy
from semshare.types import DonorInfo, GenerateOptions, Prompt, ReusePlan, TextDelta


class Engine(Protocol):
    """`semshare.SemShare` as the service sees it."""

    @property
    def model_name(self) -> str:
        """The name under which the model is listed."""

    @property
    def max_context(self) -> int:
        """Most tokens, prompt and answer together."""

    def remember(self, prompt: Prompt, *, namespace: str = ..., pinned: bool = ...) -> DonorInfo:
        """Compute the prompt in full and keep it as a donor."""

    def donors(self, *, namespace: str = ...) -> list[DonorInfo]:
        """The donors of one namespace."""

    def forget(self, donor_id: str, *, namespace: str = ...) -> None:
        """Drop a donor; `NotFound` where there is none."""

    def stream(self, prompt: Prompt, **options: Unpack[GenerateOptions]) -> Iterator[TextDelta]:
        """The answer piece by piece, the last with the whole. Closing it early is allowed."""

    def plan(
        self, prompt: Prompt, *, policy: ReusePolicy | None = ..., namespace: str = ...
    ) -> ReusePlan:
        """Which tokens would be reused; no model runs."""

    def token_bytes(self, token_id: int) -> bytes:
        """A token's text in UTF-8; where it is part of a character, the bytes it stands for."""

    def stats(self) -> dict[str, int | float]:
        """Counters since the start, and the pool's present state; takes the engine's lock."""

    def complete_pending(self, *, limit: int | None = ...) -> list[DonorInfo]:
        """Compute in full what was answered from approximate KV and is to be remembered."""


EngineLoader: TypeAlias = Callable[[], Engine]
