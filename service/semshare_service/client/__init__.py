"""Clients of the semshare service: `Client` and `AsyncClient`, the same methods on both."""

from semshare_service.client.asynchronous import AsyncClient
from semshare_service.client.calls import GenerationOptions
from semshare_service.client.results import (
    Completion,
    CompletionChoice,
    Health,
    Match,
    NamedLogprob,
    Readiness,
    Reuse,
    TokenRun,
)
from semshare_service.client.synchronous import Client

__all__ = [
    "AsyncClient",
    "Client",
    "Completion",
    "CompletionChoice",
    "GenerationOptions",
    "Health",
    "Match",
    "NamedLogprob",
    "Readiness",
    "Reuse",
    "TokenRun",
]
