"""What the clients return. Frozen, and parsed in one place from the service's bodies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from semshare.types import DonorInfo, FinishReason, RememberState, Timings


@dataclass(frozen=True, slots=True)
class TokenRun:
    """Consecutive prompt tokens, `start` to `end` (half-open), with one source."""

    start: int
    end: int
    source: str  # "fresh", "prefix", "span" or "fuzzy"
    donor: str | None  # donor id
    donor_start: int | None  # the donor's position of the first token; the others follow it
    reason: str | None  # why fresh tokens are computed; only a match tells


@dataclass(frozen=True, slots=True)
class Reuse:
    """Which KV an answer was made from."""

    mode: str
    exact: bool  # no approximate KV was used
    fallback: str | None  # why the request was computed in full after all, if it was
    retained: float  # share of the prompt's (token, layer) pairs that the answer saw
    repaired_after: int | None  # answer tokens given when all KV had been made exact
    compute_fraction: float
    tokens: dict[str, int]  # prompt tokens by source
    spans: tuple[TokenRun, ...]


@dataclass(frozen=True, slots=True)
class NamedLogprob:
    r"""How likely the model found a token and the likeliest others, in natural logarithms.

    Tokens go by their texts; one that is part of a character is written `bytes:\xe2\x82`.
    """

    token: str
    logprob: float
    top: tuple[tuple[str, float], ...]  # of `complete`, with the token itself


@dataclass(frozen=True, slots=True)
class CompletionChoice:
    """One continuation of a prompt."""

    text: str
    finish_reason: FinishReason
    logprobs: tuple[NamedLogprob, ...]  # one for each token; empty where not asked for


@dataclass(frozen=True, slots=True)
class Piece:
    """Part of a streamed answer, as soon as it is there."""

    text: str
    index: int  # of the continuation it goes on with
    finish_reason: FinishReason | None  # of the continuation's last piece
    logprobs: tuple[NamedLogprob, ...]


@dataclass(frozen=True, slots=True)
class Completion:
    """An answer, of `complete` and of `chat` alike.

    `text` and `finish_reason` are those of the first of `choices`; `completion_tokens` counts all.
    """

    id: str
    model: str
    text: str
    finish_reason: FinishReason
    choices: tuple[CompletionChoice, ...]
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int  # reused without loss
    reuse: Reuse
    queue_s: float  # seconds the request waited for its turn
    timings: Timings
    remembered: RememberState
    donor: DonorInfo | None


@dataclass(frozen=True, slots=True)
class Match:
    """The reuse plan of a prompt."""

    prompt_tokens: int
    exact: bool
    compute_fraction: float  # as planned
    tokens: dict[str, int]  # prompt tokens by source
    spans: tuple[TokenRun, ...]


@dataclass(frozen=True, slots=True)
class Health:
    """The process answers."""

    status: str
    version: str


@dataclass(frozen=True, slots=True)
class Readiness:
    """How the model and its queue stand."""

    ready: bool
    status: str  # "loading", "ready", "failed" or "stopped"
    model: str | None
    max_context: int | None
    waiting: int
    queue_limit: int
    running: bool
    reason: str | None


def parse_completion(body: Mapping[str, Any]) -> Completion:
    """From the body of either completion route."""
    return assemble_completion(body, [_parse_choice(choice) for choice in body["choices"]])


def assemble_completion(body: Mapping[str, Any], choices: Sequence[CompletionChoice]) -> Completion:
    """The answer whose `id`, `model`, `usage` and `semshare` are those of `body`."""
    usage, extension = body["usage"], body["semshare"]
    timings = {field.name: extension["timings"][field.name] for field in fields(Timings)}
    return Completion(
        id=body["id"],
        model=body["model"],
        text=choices[0].text,
        finish_reason=choices[0].finish_reason,
        choices=tuple(choices),
        prompt_tokens=usage["prompt_tokens"],
        completion_tokens=usage["completion_tokens"],
        cached_tokens=usage["prompt_tokens_details"]["cached_tokens"],
        reuse=parse_reuse(extension),
        queue_s=extension["timings"]["queue_s"],
        timings=Timings(**timings),
        remembered=extension["remembered"],
        donor=None if extension["donor"] is None else parse_donor(extension["donor"]),
    )


def parse_reuse(body: Mapping[str, Any]) -> Reuse:
    """From the field `semshare` of an answer."""
    return Reuse(
        mode=body["mode"],
        exact=body["exact"],
        fallback=body["fallback"],
        retained=body["retained"],
        repaired_after=body["repaired_after"],
        compute_fraction=body["compute_fraction"],
        tokens=body["tokens"],
        spans=_parse_runs(body["spans"]),
    )


def parse_logprobs(found: Mapping[str, Any] | None) -> tuple[NamedLogprob, ...]:
    """From the field `logprobs` of a choice, of a chat's or a completion's."""
    if found is None:
        return ()
    if "content" in found:  # of a chat
        return tuple(
            NamedLogprob(
                entry["token"],
                entry["logprob"],
                tuple((other["token"], other["logprob"]) for other in entry["top_logprobs"]),
            )
            for entry in found["content"]
        )
    columns = found["tokens"], found["token_logprobs"], found["top_logprobs"]
    return tuple(
        NamedLogprob(token, logprob, tuple(top.items()))
        for token, logprob, top in zip(*columns, strict=True)
    )


def parse_pieces(chunk: Mapping[str, Any]) -> list[Piece]:
    """What a streamed chunk, of either route, adds to the answer; empty deltas left out."""
    pieces = []
    for choice in chunk["choices"]:
        text = choice["delta"].get("content") if "delta" in choice else choice["text"]
        reason = choice["finish_reason"]
        logprobs = parse_logprobs(choice.get("logprobs"))
        if text or reason or logprobs:
            pieces.append(Piece(text or "", choice["index"], reason, logprobs))
    return pieces


def _parse_choice(choice: Mapping[str, Any]) -> CompletionChoice:
    return CompletionChoice(
        text=choice["message"]["content"] if "message" in choice else choice["text"],
        finish_reason=choice["finish_reason"],
        logprobs=parse_logprobs(choice["logprobs"]),
    )


def parse_match(body: Mapping[str, Any]) -> Match:
    """From the body of `POST /v1/match`."""
    return Match(
        prompt_tokens=body["prompt_tokens"],
        exact=body["exact"],
        compute_fraction=body["compute_fraction"],
        tokens=body["tokens"],
        spans=_parse_runs(body["spans"]),
    )


def parse_donor(body: Mapping[str, Any]) -> DonorInfo:
    """From one donor's body."""
    return DonorInfo(**{field.name: body[field.name] for field in fields(DonorInfo)})


def parse_health(body: Mapping[str, Any]) -> Health:
    """From the body of `GET /health`."""
    return Health(status=body["status"], version=body["version"])


def parse_readiness(body: Mapping[str, Any]) -> Readiness:
    """From the body of `GET /ready`."""
    queue = body["queue"]
    return Readiness(
        ready=body["status"] == "ready",
        status=body["status"],
        model=body["model"],
        max_context=body["max_context"],
        waiting=queue["waiting"],
        queue_limit=queue["limit"],
        running=queue["running"],
        reason=body["reason"],
    )


def _parse_runs(runs: list[Mapping[str, Any]]) -> tuple[TokenRun, ...]:
    names = [field.name for field in fields(TokenRun)]
    return tuple(TokenRun(**{name: run[name] for name in names}) for run in runs)
