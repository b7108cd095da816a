"""Reading requests and writing responses: the forms of `wire` over aiohttp."""

from __future__ import annotations

import asyncio
import logging
import math
import re
import uuid
from http import HTTPStatus
from typing import Any

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from semshare.engine.failures import log_failure
from semshare.errors import InvalidRequest, SemShareError
from semshare_service.errors import (
    BodyTooLarge,
    BodyTooSlow,
    NotAcceptable,
    RequestTimedOut,
    UnsupportedMediaType,
    error_body,
    error_kind,
)
from semshare_service.wire import (
    MediaType,
    decode,
    encode,
    request_media_type,
    response_media_type,
)

# The response of a request whose answer is sent as events, once it has begun.
EVENT_STREAM: web.RequestKey[web.StreamResponse] = web.RequestKey(
    "event_stream", web.StreamResponse
)
READ_TIMEOUT_S: web.AppKey[float] = web.AppKey("read_timeout_s", float)
_REQUEST_ID: web.RequestKey[str] = web.RequestKey("request_id", str)
REQUEST_ID_HEADER = "X-Request-Id"
# Bytes of a body above which it is decoded in a thread: a millisecond's work.
_LARGE = 1 << 16
_GIVEN_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")


def request_id(request: web.Request) -> str:
    """What logs and the response call this request: the name its client gave it, if any."""
    if _REQUEST_ID not in request:
        given = request.headers.get(REQUEST_ID_HEADER, "")
        request[_REQUEST_ID] = given if _GIVEN_ID.fullmatch(given) else uuid.uuid4().hex
    return request[_REQUEST_ID]


def route_of(request: web.Request) -> str:
    """The template of the request's path (`/v1/donors/{id}`), `unmatched` where no route has it.

    For logs and metrics: a path itself is text of the client's.
    """
    resource = request.match_info.route.resource
    return "unmatched" if resource is None else resource.canonical


async def read_body(request: web.Request) -> Any:
    """The decoded body. Refuses the response's form too, before any work is done."""
    media_type = request_media_type(request.headers.get("Content-Type"))
    response_media_type(request.headers.get("Accept"), media_type)
    limit, timeout_s = request.client_max_size, request.app[READ_TIMEOUT_S]
    if request.content_length is not None and request.content_length > limit:
        raise _too_large(limit)
    try:
        async with asyncio.timeout(timeout_s):
            body = await request.read()
    except TimeoutError:
        raise BodyTooSlow(
            f"the body did not arrive within {timeout_s:g} s (read_timeout_s): send it faster"
        ) from None
    except web.HTTPRequestEntityTooLarge:
        raise _too_large(limit) from None
    except web.RequestPayloadError:
        raise InvalidRequest(
            "the body is not what Content-Encoding or Transfer-Encoding says: send it plain"
        ) from None
    if len(body) > _LARGE:
        return await asyncio.to_thread(decode, body, media_type)
    return decode(body, media_type)


def _too_large(limit: int) -> BodyTooLarge:
    return BodyTooLarge(
        f"the body is larger than {limit} bytes: shorten it, or raise max_body_bytes"
    )


def respond(
    request: web.Request, body: object, *, status: int = 200, headers: dict[str, str] | None = None
) -> web.Response:
    """`body` in the form the request asks for."""
    media_type = _response_form(request)
    return web.Response(
        body=encode(body, media_type),
        status=status,
        headers={REQUEST_ID_HEADER: request_id(request), **(headers or {})},
        content_type=media_type.value,
        charset="utf-8" if media_type is MediaType.JSON else None,
    )


def _response_form(request: web.Request) -> MediaType:
    """JSON where the headers are no use, so that an error about them can be told, and in events."""
    if EVENT_STREAM in request:
        return MediaType.JSON
    try:
        default = request_media_type(request.headers.get("Content-Type"))
    except UnsupportedMediaType:
        default = MediaType.JSON
    try:
        return response_media_type(request.headers.get("Accept"), default)
    except NotAcceptable:
        return MediaType.JSON


def error_response(request: web.Request, error: SemShareError) -> web.Response:
    """The response that tells `error`."""
    kind = error_kind(error)
    retry_after_s = getattr(error, "retry_after_s", None)
    headers = None if retry_after_s is None else {"Retry-After": str(math.ceil(retry_after_s))}
    body = error_body(
        str(error),
        type_=kind.type,
        code=kind.code,
        param=getattr(error, "param", None) or kind.param,
    )
    return respond(request, body, status=kind.status, headers=headers)


def error_middleware(timeout_s: float) -> Middleware:
    """A middleware that bounds a request's time and gives every error the one form."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        timeout = asyncio.timeout(timeout_s)
        try:
            async with timeout:
                return await handler(request)
        except SemShareError as error:
            return error_response(request, error)
        except web.HTTPException as error:  # aiohttp's own: no such path, method not allowed
            if error.status < 400:
                raise
            return _http_error_response(request, error)
        except Exception as error:
            if isinstance(error, TimeoutError) and timeout.expired():
                return error_response(
                    request,
                    RequestTimedOut(
                        f"the request took longer than {timeout_s:g} s (request_timeout_s): "
                        "shorten the prompt or the answer, or try when the service is less busy"
                    ),
                )
            what = f"{request.method} {route_of(request)} failed"
            log_failure(what, error, level=logging.ERROR)
            body = error_body(
                "an unexpected error; the service's log says where",
                type_="server_error",
                code="internal_error",
            )
            return respond(request, body, status=500)

    return middleware


def _http_error_response(request: web.Request, error: web.HTTPException) -> web.Response:
    status = HTTPStatus(error.status)
    message = f"{request.method} {request.path}: {status.phrase.lower()}"
    headers = {}
    if isinstance(error, web.HTTPMethodNotAllowed):
        allowed = ", ".join(sorted(error.allowed_methods))
        headers["Allow"] = allowed
        message += f"; allowed are {allowed}"
    kind = "not_found_error" if status == HTTPStatus.NOT_FOUND else "invalid_request_error"
    body = error_body(message, type_=kind, code=status.name.lower())
    return respond(request, body, status=status, headers=headers)
