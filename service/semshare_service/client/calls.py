"""What each method of a client sends, and what reads its answer: shared by both clients."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import asdict, replace
from types import EllipsisType
from typing import Any
from urllib.parse import quote, urlencode

import numpy as np

from semshare.config import ReusePolicy
from semshare.types import ChatMessage, DonorInfo, GenerateOptions, Prompt
from semshare_service.client.call import Call
from semshare_service.client.records import (
    DonorPage,
    DonorText,
    InspectedRequest,
    Inspection,
    ModelInfo,
    Prefilled,
    RequestRecord,
    parse_donor_page,
    parse_donor_text,
    parse_inspected_request,
    parse_inspection,
    parse_models,
    parse_prefilled,
    parse_requests,
)
from semshare_service.client.results import (
    Completion,
    Health,
    Match,
    Readiness,
    parse_completion,
    parse_donor,
    parse_health,
    parse_match,
    parse_readiness,
)
from semshare_service.kv_wire import CONTENT_TYPE as KV_MEDIA_TYPE
from semshare_service.wire import MediaType


class GenerationOptions(GenerateOptions, total=False):
    """Keyword arguments of `complete` and `chat`: those of `SemShare.generate`, and `model`.

    What is left out is the service's default.
    """

    model: str


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


def streamed(call: Call[Completion]) -> Call[Completion]:
    """The same with its answer as server-sent events."""
    options = {"stream": True, "stream_options": {"include_usage": True}}
    # JSON for errors, which come in place of a stream.
    accept = f"text/event-stream, {MediaType.JSON.value};q=0.9"
    return replace(call, body={**(call.body or {}), **options}, accept=accept)


def remember(
    prompt: Prompt, *, namespace: str, pinned: bool, ttl_s: float | None
) -> Call[DonorInfo]:
    """`PUT /v1/donors`."""
    body = {**_prompt_fields(prompt), "namespace": namespace, "pinned": pinned}
    if ttl_s is not None:
        body["ttl_s"] = ttl_s
    return Call("PUT", "/v1/donors", parse_donor, body, is_repeatable=True)


def donors(*, namespace: str, limit: int | None, after: str | None) -> Call[DonorPage]:
    """`GET /v1/donors`."""
    path = _path("v1", "donors", namespace=namespace, limit=limit, after=after)
    return Call("GET", path, parse_donor_page, is_repeatable=True)


def donor(donor_id: str, *, namespace: str) -> Call[DonorText]:
    """`GET /v1/donors/{id}`."""
    path = _path("v1", "donors", donor_id, namespace=namespace)
    return Call("GET", path, parse_donor_text, is_repeatable=True)


def update_donor(
    donor_id: str, *, namespace: str, pinned: bool | None, ttl_s: float | EllipsisType | None
) -> Call[DonorInfo]:
    """`PATCH /v1/donors/{id}`."""
    body: dict[str, Any] = {} if pinned is None else {"pinned": pinned}
    if ttl_s is not ...:
        body["ttl_s"] = ttl_s
    path = _path("v1", "donors", donor_id, namespace=namespace)
    return Call("PATCH", path, parse_donor, body, is_repeatable=True)


def forget(donor_id: str, *, namespace: str) -> Call[None]:
    """`DELETE /v1/donors/{id}`."""
    path = _path("v1", "donors", donor_id, namespace=namespace)
    return Call("DELETE", path, _nothing, is_repeatable=True)


def publish_donor(donor_id: str, *, namespace: str, tenant: str | None) -> Call[DonorInfo]:
    """`POST /v1/donors/{id}/publish`."""
    path = _path("v1", "donors", donor_id, "publish", namespace=namespace, tenant=tenant)
    return Call("POST", path, parse_donor)


def match(prompt: Prompt, *, policy: ReusePolicy | None, namespace: str) -> Call[Match]:
    """`POST /v1/match`."""
    body = _matched_fields(prompt, policy, namespace)
    return Call("POST", "/v1/match", parse_match, body, is_repeatable=True)


def inspect(prompt: Prompt, *, policy: ReusePolicy | None, namespace: str) -> Call[Inspection]:
    """`POST /v1/inspect`."""
    body = _matched_fields(prompt, policy, namespace)
    return Call("POST", "/v1/inspect", parse_inspection, body, is_repeatable=True)


def prefill(
    prompt: Prompt, *, policy: ReusePolicy | None, namespace: str, ttl_s: float | None
) -> Call[Prefilled]:
    """`POST /v1/prefill`."""
    body = _matched_fields(prompt, policy, namespace)
    if ttl_s is not None:
        body["ttl_s"] = ttl_s
    return Call("POST", "/v1/prefill", parse_prefilled, body)


def download_kv(handle: str) -> Call[None]:
    """`GET /v1/kv/{handle}`, a stream of bytes."""
    # JSON for errors, which come in place of a stream.
    accept = f"{KV_MEDIA_TYPE}, {MediaType.JSON.value};q=0.9"
    return Call("GET", _path("v1", "kv", handle), _nothing, accept=accept, is_repeatable=True)


def upload_kv(
    chunks: AsyncIterator[bytes], *, namespace: str, pinned: bool, ttl_s: float | None
) -> Call[DonorInfo]:
    """`PUT /v1/kv`."""
    path = _path("v1", "kv", namespace=namespace, pinned=str(pinned).lower(), ttl_s=ttl_s)
    return Call("PUT", path, parse_donor, upload=chunks)


def release(handle: str) -> Call[None]:
    """`DELETE /v1/kv/{handle}`."""
    return Call("DELETE", _path("v1", "kv", handle), _nothing, is_repeatable=True)


def models() -> Call[tuple[ModelInfo, ...]]:
    """`GET /v1/models`."""
    return Call("GET", "/v1/models", parse_models, is_repeatable=True)


def stats() -> Call[dict[str, Any]]:
    """`GET /v1/stats`."""
    return Call("GET", "/v1/stats", dict, is_repeatable=True)


def requests(*, limit: int | None) -> Call[tuple[RequestRecord, ...]]:
    """`GET /v1/requests`."""
    return Call("GET", _path("v1", "requests", limit=limit), parse_requests, is_repeatable=True)


def request(request_id: str) -> Call[InspectedRequest]:
    """`GET /v1/requests/{id}`."""
    path = _path("v1", "requests", request_id)
    return Call("GET", path, parse_inspected_request, is_repeatable=True)


def metrics() -> Call[None]:
    """`GET /metrics`, a text."""
    return Call("GET", "/metrics", _nothing, accept="text/plain, */*;q=0.1", is_repeatable=True)


def health() -> Call[Health]:
    """`GET /health`."""
    return Call("GET", "/health", parse_health, is_repeatable=True)


def ready() -> Call[Readiness]:
    """`GET /ready`; not being ready is an answer, not an error."""
    return Call("GET", "/ready", parse_readiness, answers=(200, 503), is_repeatable=True)


def _nothing(_: Mapping[str, Any]) -> None:
    """Of an answer that says no more than that it is done."""


def _path(*parts: str, **query: str | float | None) -> str:
    """A path, with the query's fields that are not None."""
    given = urlencode({name: value for name, value in query.items() if value is not None})
    path = "".join(f"/{quote(part, safe='')}" for part in parts)
    return f"{path}?{given}" if given else path


def _matched_fields(prompt: Prompt, policy: ReusePolicy | None, namespace: str) -> dict[str, Any]:
    extension = {"namespace": namespace, **({} if policy is None else asdict(policy))}
    return {**_prompt_fields(prompt), "semshare": extension}


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
