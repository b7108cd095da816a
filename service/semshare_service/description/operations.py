"""What each route takes, answers and may refuse: what its code does not say by itself.

A test compares this table with the router's, so that a route can't be added without its row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel

from semshare.errors import (
    DeadlineExceeded,
    InvalidPolicy,
    InvalidRequest,
    KVMismatch,
    NotFound,
    PoolExhausted,
    PromptOverLimit,
    PromptTooLong,
    QuotaExceeded,
    SemShareError,
    StepFailed,
)
from semshare_service.auth import OPEN_PATHS
from semshare_service.description import answers, observed_answers, openai_answers
from semshare_service.donor_schemas import DonorChanges, DonorListQuery, PublishQuery
from semshare_service.errors import (
    BodyTooLarge,
    BodyTooSlow,
    ConcurrencyExceeded,
    InvalidKey,
    InvalidParameter,
    NotAcceptable,
    NotOffered,
    PermissionDenied,
    QueueFull,
    RequestTimedOut,
    ServiceUnavailable,
    TooManyHandles,
    UnknownModel,
    UnsupportedMediaType,
)
from semshare_service.generation_schemas import ChatRequest, CompletionRequest
from semshare_service.kv_wire import CONTENT_TYPE
from semshare_service.routes.dashboard import RecentQuery
from semshare_service.routes.kv import ImportQuery, PrefillRequest
from semshare_service.schemas import (
    DonorRequest,
    MatchRequest,
    NamespaceFields,
    StrictModel,
)

Errors = tuple[type[SemShareError], ...]

_BODY: Errors = (
    InvalidRequest,
    InvalidParameter,
    BodyTooLarge,
    BodyTooSlow,
    UnsupportedMediaType,
    NotAcceptable,
)
# Of whatever waits for its turn on the engine.
_ENGINE: Errors = (QueueFull, ConcurrencyExceeded, ServiceUnavailable)
_PROMPT: Errors = (InvalidRequest, PromptTooLong, PromptOverLimit)
_COMPUTED: Errors = (*_PROMPT, PoolExhausted)
_ANSWERED: Errors = (*_COMPUTED, InvalidPolicy, UnknownModel, DeadlineExceeded, StepFailed)

EVENTS = "text/event-stream"


@dataclass(frozen=True, slots=True)
class Operation:
    """One row.

    tag:      the chapter it belongs to.
    answer:   the body of status 200, in JSON or msgpack.
    raw:      media types of status 200 that are neither.
    query:    validates the query.
    body:     validates the body, in JSON or msgpack.
    raw_body: the media type of a body that is neither.
    example:  of the body.
    errors:   besides those that follow from the rest.
    engine:   whether it waits for the engine.
    others:   bodies by other statuses that are no errors' form.
    """

    tag: str
    answer: type[BaseModel] | None = None
    raw: tuple[str, ...] = ()
    query: type[StrictModel] | None = None
    body: type[StrictModel] | None = None
    raw_body: str | None = None
    example: Mapping[str, Any] | None = None
    errors: Errors = ()
    engine: bool = False
    others: Mapping[int, type[BaseModel]] = field(default_factory=dict)

    def all_errors(self, path: str) -> Errors:
        """Every error that the operation may answer with, each once."""
        found = [*self.errors, PermissionDenied, RequestTimedOut, SemShareError]
        if path not in OPEN_PATHS:
            found.append(InvalidKey)
        if self.query is not None:
            found.append(InvalidParameter)
        if self.body is not None:
            found.extend(_BODY)
        if self.engine:
            found.extend(_ENGINE)
        return tuple(dict.fromkeys(found))


_SPAN = {"mode": "span", "recompute": 0.1}
_PAPER = "A long text that later prompts will share or paraphrase."
_QUESTION = f"{_PAPER}\n\nWhat is it about?"

OPERATIONS: Mapping[tuple[str, str], Operation] = {
    ("POST", "/v1/completions"): Operation(
        "Generation",
        openai_answers.Completion,
        raw=(EVENTS,),
        body=CompletionRequest,
        example={"prompt": _QUESTION, "max_tokens": 40, "semshare": _SPAN},
        errors=_ANSWERED,
        engine=True,
    ),
    ("POST", "/v1/chat/completions"): Operation(
        "Generation",
        openai_answers.ChatCompletion,
        raw=(EVENTS,),
        body=ChatRequest,
        example={
            "messages": [{"role": "user", "content": _QUESTION}],
            "max_tokens": 40,
            "semshare": _SPAN,
        },
        errors=_ANSWERED,
        engine=True,
    ),
    ("GET", "/v1/models"): Operation("Models", answers.ModelList, errors=(ServiceUnavailable,)),
    ("GET", "/v1/models/{id}"): Operation(
        "Models", answers.Model, errors=(ServiceUnavailable, UnknownModel)
    ),
    ("POST", "/v1/embeddings"): Operation("Models", errors=(NotOffered,)),
    ("PUT", "/v1/donors"): Operation(
        "Donors",
        answers.Donor,
        body=DonorRequest,
        example={"text": _PAPER, "namespace": "papers", "ttl_s": 3600.0},
        errors=(*_COMPUTED, QuotaExceeded),
        engine=True,
    ),
    ("GET", "/v1/donors"): Operation(
        "Donors", answers.DonorPage, query=DonorListQuery, errors=(NotFound,), engine=True
    ),
    ("GET", "/v1/donors/{id}"): Operation(
        "Donors", answers.DonorWithText, query=NamespaceFields, errors=(NotFound,), engine=True
    ),
    ("PATCH", "/v1/donors/{id}"): Operation(
        "Donors",
        answers.Donor,
        query=NamespaceFields,
        body=DonorChanges,
        example={"pinned": True, "ttl_s": None},
        errors=(NotFound,),
        engine=True,
    ),
    ("DELETE", "/v1/donors/{id}"): Operation(
        "Donors", answers.DeletedDonor, query=NamespaceFields, errors=(NotFound,), engine=True
    ),
    ("POST", "/v1/donors/{id}/publish"): Operation(
        "Donors",
        answers.Donor,
        query=PublishQuery,
        errors=(NotFound,),
        engine=True,
    ),
    ("POST", "/v1/match"): Operation(
        "Donors",
        answers.Match,
        body=MatchRequest,
        example={"text": _QUESTION, "semshare": _SPAN},
        errors=(*_PROMPT, InvalidPolicy),
        engine=True,
    ),
    ("POST", "/v1/inspect"): Operation(
        "Donors",
        answers.Inspection,
        body=MatchRequest,
        example={"text": _QUESTION, "semshare": _SPAN},
        errors=(*_PROMPT, InvalidPolicy),
        engine=True,
    ),
    ("POST", "/v1/prefill"): Operation(
        "KV",
        answers.Prefilled,
        body=PrefillRequest,
        example={"text": _PAPER, "semshare": {"mode": "prefix"}, "ttl_s": 60.0},
        errors=(*_COMPUTED, InvalidPolicy, TooManyHandles),
        engine=True,
    ),
    ("GET", "/v1/kv/{handle}"): Operation("KV", raw=(CONTENT_TYPE,), errors=(NotFound,)),
    ("DELETE", "/v1/kv/{handle}"): Operation("KV", answers.DroppedHandle, errors=(NotFound,)),
    ("PUT", "/v1/kv"): Operation(
        "KV",
        answers.Donor,
        query=ImportQuery,
        raw_body=CONTENT_TYPE,
        errors=(
            *_COMPUTED,
            KVMismatch,
            QuotaExceeded,
            BodyTooLarge,
            BodyTooSlow,
            UnsupportedMediaType,
        ),
        engine=True,
    ),
    ("GET", "/v1/stats"): Operation("Observation", observed_answers.Stats),
    ("GET", "/v1/requests"): Operation(
        "Observation", observed_answers.RecentRequestList, query=RecentQuery
    ),
    ("GET", "/v1/requests/{id}"): Operation(
        "Observation", observed_answers.InspectedRequest, errors=(NotFound,), engine=True
    ),
    ("GET", "/metrics"): Operation("Observation", raw=("text/plain",)),
    ("GET", "/health"): Operation("Observation", answers.Health),
    ("GET", "/ready"): Operation("Observation", answers.Readiness, others={503: answers.Readiness}),
    ("GET", "/"): Operation("Pages", raw=("text/html",)),
    ("GET", "/dashboard/{name}"): Operation(
        "Pages",
        raw=("text/html", "text/javascript", "text/css", "image/svg+xml"),
        errors=(NotFound,),
    ),
    ("GET", "/openapi.json"): Operation("Pages", raw=("application/json",)),
    ("GET", "/reference"): Operation("Pages", raw=("text/html",)),
}
