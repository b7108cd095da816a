"""The OpenAPI document: the router's routes, their docstrings and the models that validate."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Mapping
from http import HTTPStatus

from aiohttp import web
from pydantic import BaseModel

from semshare.errors import NotFound, SemShareError
from semshare_service.auth import OPEN_PATHS
from semshare_service.description.answers import Error
from semshare_service.description.openai_answers import ChatChunk, CompletionChunk
from semshare_service.description.operations import EVENTS, OPERATIONS, Operation
from semshare_service.description.schemas import (
    Schema,
    component_schemas,
    first_paragraph,
    query_schemas,
    ref,
)
from semshare_service.errors import KINDS, ErrorKind, ServiceUnavailable, UnsupportedMediaType
from semshare_service.generation_schemas import CompletionRequest
from semshare_service.routes.operations import service_version
from semshare_service.wire import MediaType

_ABOUT = """\
Semantic KV-cache reuse for large language models, over HTTP.

Bodies are JSON or msgpack, as `Content-Type` says; the answer has the form that `Accept` prefers,
by default that of the request. Where the service has tenants, every path but those without security
needs a key; where it has none, no key is asked for.

Every error has one form, `Error`. Besides those of each operation, a path that does not exist is a
404 (`not_found`), another method a 405 (`method_not_allowed`), and while no more connections are
taken the answer is a 503 (`unavailable`). What can't be read as HTTP is a 400 in no special form.\
"""
_SECURITY: Mapping[str, Schema] = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
}
_HEADERS: Mapping[str, Schema] = {
    "X-Request-Id": {
        "description": "The request's name in logs: its client's, or a new one.",
        "required": True,
        "schema": {"type": "string"},
    },
    "Retry-After": {
        "description": "Seconds after which another try makes sense, if that is known.",
        "schema": {"type": "integer", "minimum": 0},
    },
    "WWW-Authenticate": {
        "description": "How to send a key.",
        "required": True,
        "schema": {"type": "string"},
    },
}
# In place of docstrings that speak of the library, or to the service's own client.
_REASONS: Mapping[type[SemShareError], str] = {
    NotFound: "The caller has nothing of that name.",
    UnsupportedMediaType: "The body's `Content-Type` is none of those above.",
    ServiceUnavailable: "The model is loading or could not be loaded, the service is stopping, or "
    "the request broke off inside of it.",
    SemShareError: "A fault of ours; the service's log says where.",
}
_HEADERS_OF: Mapping[int, tuple[str, ...]] = {
    HTTPStatus.UNAUTHORIZED: ("WWW-Authenticate",),
    HTTPStatus.TOO_MANY_REQUESTS: ("Retry-After",),
    HTTPStatus.SERVICE_UNAVAILABLE: ("Retry-After",),
}
_PATH_PARAMETERS = {
    "handle": "as `POST /v1/prefill` named it",
    "id": "as the list has it",
    "name": "of a file",
}


def openapi_document(routes: Iterable[web.AbstractRouteDef]) -> Schema:
    """The service in OpenAPI 3.1, as a map that JSON can carry.

    Args:
        routes: all of them; each has its row in `operations.OPERATIONS`.

    """
    paths: dict[str, Schema] = {}
    for route in routes:
        if not isinstance(route, web.RouteDef):  # a folder of files, which is no operation
            continue
        path = re.sub(r"\{(\w+):[^}]*\}", r"{\1}", route.path)
        operation = OPERATIONS[route.method, path]
        paths.setdefault(path, {})[route.method.lower()] = _operation(route, path, operation)
    return {
        "openapi": "3.1.0",
        "info": {"title": "semshare", "version": service_version(), "description": _ABOUT},
        "servers": [{"url": "/"}],
        "security": [{name: []} for name in _SECURITY],
        "tags": [{"name": tag} for tag in dict.fromkeys(row.tag for row in OPERATIONS.values())],
        "paths": paths,
        "components": {
            "schemas": component_schemas(*_bodies()),
            "securitySchemes": dict(_SECURITY),
            "headers": dict(_HEADERS),
        },
    }


def _operation(route: web.RouteDef, path: str, operation: Operation) -> Schema:
    text = inspect.getdoc(route.handler) or ""
    paragraphs = [one.replace("\n", " ") for one in text.split("\n\n")]
    described: Schema = {
        "tags": [operation.tag],
        "operationId": f"{route.handler.__module__.rpartition('.')[2]}_{route.handler.__name__}",
        "summary": paragraphs[0].partition(". ")[0].rstrip("."),
        "description": "\n\n".join(paragraphs),
        "responses": _responses(path, operation),
    }
    if parameters := _parameters(path, operation.query):
        described["parameters"] = parameters
    if body := _request_body(operation):
        described["requestBody"] = body
    if path in OPEN_PATHS:
        described["security"] = []
    return described


def _parameters(path: str, query: type[BaseModel] | None) -> list[Schema]:
    parameters: list[Schema] = [
        {
            "name": name,
            "in": "path",
            "required": True,
            "description": _PATH_PARAMETERS[name],
            "schema": {"type": "string", "minLength": 1},
        }
        for name in re.findall(r"\{(\w+)\}", path)
    ]
    if query is not None:
        parameters += [
            {
                "name": name,
                "in": "query",
                "required": False,
                "description": schema.pop("description"),
                "schema": schema,
            }
            for name, schema in query_schemas(query).items()
        ]
    return parameters


def _request_body(operation: Operation) -> Schema | None:
    if operation.raw_body is not None:
        return {"required": True, "content": {operation.raw_body: _bytes()}}
    if operation.body is None:
        return None
    content: Schema = {"schema": ref(operation.body), "example": operation.example}
    return {"required": True, "content": _in_both_forms(content)}


def _responses(path: str, operation: Operation) -> Schema:
    responses: Schema = {}
    content: Schema = {}
    if operation.answer is not None:
        content |= _in_both_forms({"schema": ref(operation.answer)})
    for media_type in operation.raw:
        content[media_type] = _raw(media_type, operation)
    if content:
        responses["200"] = _response("The answer.", content)
    for status, body in operation.others.items():
        responses[str(status)] = _response(
            first_paragraph(body), _in_both_forms({"schema": ref(body)})
        )
    raised = operation.all_errors(path)
    kinds = [kind for kind in KINDS if kind.exception in raised]
    for status in sorted({kind.status for kind in kinds}):
        key = str(status)
        if key not in responses:
            responses[key] = _refusal([kind for kind in kinds if kind.status == status])
    return responses


def _refusal(kinds: list[ErrorKind]) -> Schema:
    """The response of one status, with the codes that it may have."""
    text = "\n\n".join(f"`{kind.code}`: {_reason(kind.exception)}" for kind in kinds)
    codes = {"type": "object", "properties": {"code": {"enum": [kind.code for kind in kinds]}}}
    schema = {"allOf": [ref(Error), {"type": "object", "properties": {"error": codes}}]}
    response = _response(text, _in_both_forms({"schema": schema}))
    for name in _HEADERS_OF.get(kinds[0].status, ()):
        response["headers"][name] = {"$ref": f"#/components/headers/{name}"}
    return response


def _reason(exception: type[SemShareError]) -> str:
    return _REASONS.get(exception) or first_paragraph(exception)


def _response(text: str, content: Schema) -> Schema:
    return {
        "description": text,
        "content": content,
        "headers": {"X-Request-Id": {"$ref": "#/components/headers/X-Request-Id"}},
    }


def _raw(media_type: str, operation: Operation) -> Schema:
    if media_type == EVENTS:
        chunk = CompletionChunk if operation.body is CompletionRequest else ChatChunk
        text = (
            f"With `stream`: `data: ` and a `{chunk.__name__}` in JSON and a blank line each, at "
            "the end `data: [DONE]`. What goes wrong meanwhile is an `Error`, and the end."
        )
        return {"schema": {"type": "string", "description": text}}
    if media_type == "application/json":
        return {"schema": {"type": "object"}}
    return {"schema": {"type": "string"}} if media_type.startswith("text/") else _bytes()


def _in_both_forms(content: Schema) -> Schema:
    """`content` by media type."""
    return {form.value: dict(content) for form in MediaType}


def _bytes() -> Schema:
    # OpenAPI 3.1 describes bytes by the media type alone.
    return {}


def _bodies() -> tuple[set[type[BaseModel]], set[type[BaseModel]]]:
    """The models of all requests, and of all answers."""
    sent: set[type[BaseModel]] = {row.body for row in OPERATIONS.values() if row.body is not None}
    told: set[type[BaseModel]] = {Error, ChatChunk, CompletionChunk}
    for row in OPERATIONS.values():
        told.update(row.others.values(), () if row.answer is None else (row.answer,))
    return sent, told
