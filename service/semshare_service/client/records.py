"""What the clients return of donors, KV, models and requests; answers are in `results`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeVar

from semshare.types import DonorInfo
from semshare_service.client.results import Match, Reuse, parse_donor, parse_match, parse_reuse

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class DonorPage:
    """Some donors of a namespace, oldest first. Iterating it gives the donors."""

    donors: tuple[DonorInfo, ...]
    has_more: bool  # ask again with `after` the last one's id

    def __iter__(self) -> Iterator[DonorInfo]:
        return iter(self.donors)

    def __len__(self) -> int:
        return len(self.donors)


@dataclass(frozen=True, slots=True)
class DonorText:
    """A donor and what it holds."""

    donor: DonorInfo
    text: str  # decoded, special tokens included


@dataclass(frozen=True, slots=True)
class PromptPiece:
    """A run of a prompt with one source, and what of its donor stands for it."""

    text: str
    source: str  # "fresh", "prefix", "span" or "fuzzy"
    donor: str | None  # donor id
    donor_start: int | None  # the donor's position of the first token
    donor_text: str | None
    reason: str | None  # why it is computed, of a fresh run


@dataclass(frozen=True, slots=True)
class Inspection:
    """A prompt's reuse plan with its text, run by run. Nothing was computed."""

    match: Match
    pieces: tuple[PromptPiece, ...]


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """A request that the service has answered."""

    id: str
    route: str  # "completions", "chat" …
    namespace: str
    ended: float  # seconds since the epoch
    prompt_tokens: int
    completion_tokens: int
    tokens: dict[str, int]  # prompt tokens by source
    compute_fraction: float
    mode: str
    exact: bool
    ttft_s: float
    queue_s: float


@dataclass(frozen=True, slots=True)
class InspectedRequest:
    """A request that the service has answered, and where each run of its prompt came from."""

    request: RequestRecord
    pieces: tuple[PromptPiece, ...]


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """A model that the service serves."""

    id: str
    created: int  # seconds since the epoch
    owned_by: str
    max_model_len: int  # tokens of prompt and answer together


@dataclass(frozen=True, slots=True)
class Prefilled:
    """The KV of a prompt, kept by the service until it is released or expires."""

    handle: str
    prompt_tokens: int
    expires: float | None  # seconds since the epoch
    reuse: Reuse


def parse_donor_page(body: Mapping[str, Any]) -> DonorPage:
    """From the body of `GET /v1/donors`."""
    donors = tuple(parse_donor(item) for item in body["data"])
    return DonorPage(donors, has_more=body.get("has_more", False))


def parse_donor_text(body: Mapping[str, Any]) -> DonorText:
    """From the body of `GET /v1/donors/{id}`."""
    return DonorText(parse_donor(body), body["text"])


def parse_inspection(body: Mapping[str, Any]) -> Inspection:
    """From the body of `POST /v1/inspect`."""
    return Inspection(parse_match(body), _parse_pieces(body))


def parse_request(body: Mapping[str, Any]) -> RequestRecord:
    """From one request's body."""
    return _parse(RequestRecord, body)


def parse_requests(body: Mapping[str, Any]) -> tuple[RequestRecord, ...]:
    """From the body of `GET /v1/requests`."""
    return tuple(parse_request(item) for item in body["data"])


def parse_inspected_request(body: Mapping[str, Any]) -> InspectedRequest:
    """From the body of `GET /v1/requests/{id}`."""
    return InspectedRequest(parse_request(body), _parse_pieces(body))


def parse_models(body: Mapping[str, Any]) -> tuple[ModelInfo, ...]:
    """From the body of `GET /v1/models`."""
    return tuple(_parse(ModelInfo, item) for item in body["data"])


def parse_prefilled(body: Mapping[str, Any]) -> Prefilled:
    """From the body of `POST /v1/prefill`."""
    return Prefilled(
        handle=body["handle"],
        prompt_tokens=body["prompt_tokens"],
        expires=body["expires"],
        reuse=parse_reuse(body["semshare"]),
    )


def _parse_pieces(body: Mapping[str, Any]) -> tuple[PromptPiece, ...]:
    return tuple(_parse(PromptPiece, piece) for piece in body["pieces"])


def _parse(kind: type[T], body: Mapping[str, Any]) -> T:
    """A dataclass from the fields of a body that have its fields' names."""
    return kind(**{field.name: body[field.name] for field in fields(kind)})  # type: ignore[arg-type]
