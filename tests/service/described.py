"""Holds what a service is asked and answers to its `/openapi.json`.

`service_helpers.running` does so in every test, so that the description is tried on all that any
test makes happen.
"""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import jsonschema_rs
from aiohttp import web
from aiohttp.typedefs import Handler

from semshare_service.description.document import openapi_document
from semshare_service.routes import all_routes
from semshare_service.wire import MediaType, decode, request_media_type

DOCUMENT = openapi_document(all_routes())
_FORMS = {form.value: form for form in MediaType}


def closed(schema: Any) -> Any:
    """`schema` where an object has no field that is not described."""
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    inner = {key: closed(value) for key, value in schema.items()}
    if inner.get("type") == "object" and "properties" in inner:
        inner.setdefault("additionalProperties", False)
    return inner


# Clients should bear a new field in an answer, so the document leaves them open; we should not.
_OPEN = {"schemas": DOCUMENT["components"]["schemas"]}
_CLOSED = closed(_OPEN)


def validator(name: str) -> Any:
    """Of one of the document's objects, which has no field that is not described."""
    return _validator(json.dumps({"$ref": f"#/components/schemas/{name}"}), is_closed=True)


@cache
def _validator(schema: str, *, is_closed: bool) -> Any:
    components = _CLOSED if is_closed else _OPEN
    return jsonschema_rs.Draft202012Validator(json.loads(schema) | {"components": components})


class Witness:
    """A middleware that notes in `deviations` what the description does not say."""

    def __init__(self) -> None:
        self.deviations: list[str] = []

    @web.middleware
    async def middleware(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        response = await handler(request)
        resource = request.match_info.route.resource
        if resource is not None:  # otherwise there is no such path, or no such method
            item = DOCUMENT["paths"][resource.canonical]
            operation = item["get" if request.method == "HEAD" else request.method.lower()]
            found = _of_answer(operation, response)
            if response.status == 200 and not found:
                found = _of_body(operation, request, await request.read())
            if found:
                self.deviations.append(f"{request.method} {resource.canonical}: {found}")
        return response


def _of_answer(operation: dict[str, Any], response: web.StreamResponse) -> str | None:
    described = operation["responses"].get(str(response.status))
    if described is None:
        return f"a {response.status} is not described: {getattr(response, 'text', '')}"
    told, needed = set(response.headers), DOCUMENT["components"]["headers"]
    for name in described["headers"]:
        if needed[name].get("required") and name not in told:
            return f"a {response.status} without {name}"
    if set(DOCUMENT["components"]["headers"]) & told - set(described["headers"]):
        return f"a {response.status} with other headers: {told}"
    content = described["content"].get(response.content_type)
    if content is None:
        return f"a {response.status} of the type {response.content_type}"
    form = _FORMS.get(response.content_type)
    if form is None or not isinstance(response, web.Response):  # a stream has tests of its own
        return None
    assert isinstance(response.body, bytes)
    value = decode(response.body, form, max_values=float("inf"))
    return _of_value(content["schema"], value, is_closed=True)


def _of_body(operation: dict[str, Any], request: web.Request, body: bytes) -> str | None:
    content = operation.get("requestBody", {"content": {}})["content"]
    if not set(content) & set(_FORMS):
        return None
    form = request_media_type(request.headers.get("Content-Type"))
    return _of_value(content[form.value]["schema"], decode(body, form), is_closed=False)


def _of_value(schema: dict[str, Any], value: Any, *, is_closed: bool) -> str | None:
    try:
        _validator(json.dumps(schema), is_closed=is_closed).validate(value)
    except jsonschema_rs.ValidationError as error:
        return str(error)
    return None
