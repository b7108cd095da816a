"""What each method of a client sends, and how its answer is read: shared by both clients."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Generic, TypeVar
from urllib.parse import quote, urlencode

import numpy as np

from semshare.config import ReusePolicy
from semshare.errors import SemShareError
from semshare.types import ChatMessage, DonorInfo, GenerateOptions, Prompt
from semshare_service.client.results import (
    Completion,
    Health,
    Match,
    Readiness,
    parse_completion,
    parse_donor,
    parse_donors,
    parse_health,
    parse_match,
    parse_readiness,
)
from semshare_service.errors import ServiceError, error_from_reply
from semshare_service.wire import MediaType, decode, request_media_type

T = TypeVar("T")


class GenerationOptions(GenerateOptions, total=False):
    """Keyword arguments of `complete` and `chat`: those of `SemShare.generate`, and `model`.

    What is left out is the service's default.
    """

    model: str


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """One request and the reading of its answer. `path` carries the query."""

    method: str
    path: str
    parse: Callable[[Mapping[str, Any]], T]
    body: dict[str, Any] | None = None
    answers: tuple[int, ...] = (200,)  # statuses whose body `parse` reads


def complete(prompt: str | Sequence[int], options: Mapping[str, Any]) -> Call[Completion]:
    """`POST /v1/completions`."""
    field = prompt if isinstance(prompt, str) else [int(item) for item in prompt]
    body = {"prompt": field, **_generation_fields(options)}
    return Call("POST", "/v1/completions", parse_completion, body)


def chat(messages: Sequence[ChatMessage], options: Mapping[str, Any]) -> Call[Completion]:
    """`POST /v1/chat/completions`."""
    fields = _generation_fields(options)
    alternatives = fields.pop("logprobs", None)
    if alternatives is not None:
        fields |= {"logprobs": True, "top_logprobs": alternatives}
    body = {"messages": list(messages), **fields}
    return Call("POST", "/v1/chat/completions", parse_completion, body)


def remember(prompt: Prompt, *, namespace: str, pinned: bool) -> Call[DonorInfo]:
    """`PUT /v1/donors`."""
    body = {**_prompt_fields(prompt), "namespace": namespace, "pinned": pinned}
    return Call("PUT", "/v1/donors", parse_donor, body)


def donors(*, namespace: str) -> Call[list[DonorInfo]]:
    """`GET /v1/donors`."""
    return Call("GET", f"/v1/donors?{urlencode({'namespace': namespace})}", parse_donors)


def forget(donor_id: str, *, namespace: str) -> Call[None]:
    """`DELETE /v1/donors/{id}`."""
    query = urlencode({"namespace": namespace})
    return Call("DELETE", f"/v1/donors/{quote(donor_id, safe='')}?{query}", lambda _: None)


def match(prompt: Prompt, *, policy: ReusePolicy | None, namespace: str) -> Call[Match]:
    """`POST /v1/match`."""
    extension = {"namespace": namespace, **({} if policy is None else asdict(policy))}
    body = {**_prompt_fields(prompt), "semshare": extension}
    return Call("POST", "/v1/match", parse_match, body)


def health() -> Call[Health]:
    """`GET /health`."""
    return Call("GET", "/health", parse_health)


def ready() -> Call[Readiness]:
    """`GET /ready`; not being ready is an answer, not an error."""
    return Call("GET", "/ready", parse_readiness, answers=(200, 503))


def read_reply(
    call: Call[T], *, status: int, content_type: str | None, retry_after: str | None, body: bytes
) -> T:
    """What `call` returns, or the exception that the service's answer stands for."""
    try:
        value = decode(body, request_media_type(content_type))
    except SemShareError:
        value = None  # not ours: `error_from_reply` says so
    if status in call.answers and isinstance(value, Mapping) and "error" not in value:
        try:
            return call.parse(value)
        except (KeyError, TypeError, IndexError) as error:
            raise ServiceError(
                f"the answer of {call.path.partition('?')[0]} is not of the form this client "
                f"reads ({error}): use a client of the service's version",
                status=status,
            ) from None
    delay = float(retry_after) if retry_after is not None and retry_after.isdecimal() else None
    raise error_from_reply(status, value, retry_after_s=delay)


def media_type(name: str) -> MediaType:
    """`"json"` or `"msgpack"` as the form it names."""
    try:
        return MediaType[name.upper()]
    except KeyError:
        raise ServiceError(f"wire is {name!r}: choose 'msgpack' or 'json'") from None


def _generation_fields(options: Mapping[str, Any]) -> dict[str, Any]:
    fields = dict(options)
    policy, namespace = fields.pop("policy", None), fields.pop("namespace", None)
    extension: dict[str, Any] = {} if policy is None else asdict(policy)
    if namespace is not None:
        extension["namespace"] = namespace
    if extension:
        fields["semshare"] = extension
    bias = fields.get("logit_bias")
    if bias is not None:
        fields["logit_bias"] = {str(token): value for token, value in bias.items()}
    stop = fields.get("stop")
    if stop is not None and not isinstance(stop, str):
        fields["stop"] = list(stop)
    return fields


def _prompt_fields(prompt: Prompt) -> dict[str, Any]:
    if isinstance(prompt, str):
        return {"text": prompt}
    if isinstance(prompt, np.ndarray):
        return {"ids": prompt.tolist()}
    items = list(prompt)
    if items and isinstance(items[0], Mapping):
        return {"messages": items}
    return {"ids": [int(item) for item in items]}  # type: ignore[call-overload]  # ids by now
