"""Clients of the semshare service: `Client` and `AsyncClient`, the same methods on both."""

from semshare_service.client.asynchronous import AsyncClient, AsyncKVHandle
from semshare_service.client.calls import GenerationOptions
from semshare_service.client.records import (
    DonorPage,
    DonorText,
    InspectedRequest,
    Inspection,
    ModelInfo,
    Prefilled,
    PromptPiece,
    RequestRecord,
)
from semshare_service.client.results import (
    Completion,
    CompletionChoice,
    Health,
    Match,
    NamedLogprob,
    Piece,
    Readiness,
    Reuse,
    TokenRun,
)
from semshare_service.client.retries import NO_RETRIES, RetryPolicy
from semshare_service.client.streams import AnswerStream, AsyncAnswerStream
from semshare_service.client.synchronous import Client, KVHandle
from semshare_service.client.transport import TLS, ClientOptions

__all__ = [
    "NO_RETRIES",
    "TLS",
    "AnswerStream",
    "AsyncAnswerStream",
    "AsyncClient",
    "AsyncKVHandle",
    "Client",
    "ClientOptions",
    "Completion",
    "CompletionChoice",
    "DonorPage",
    "DonorText",
    "GenerationOptions",
    "Health",
    "InspectedRequest",
    "Inspection",
    "KVHandle",
    "Match",
    "ModelInfo",
    "NamedLogprob",
    "Piece",
    "Prefilled",
    "PromptPiece",
    "Readiness",
    "RequestRecord",
    "RetryPolicy",
    "Reuse",
    "TokenRun",
]
