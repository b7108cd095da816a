"""The service described: for programs, and as a page for people."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from functools import cache

from aiohttp import web

from semshare_service.exchange import request_id
from semshare_service.wire import MediaType, encode

routes = web.RouteTableDef()

_PAGE_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


@dataclass(frozen=True, slots=True)
class _Description:
    openapi: bytes
    reference: str
    policy: str


@routes.get("/openapi.json")
async def openapi(request: web.Request) -> web.Response:
    """The service in OpenAPI 3.1, always JSON."""
    return web.Response(
        body=(await _described()).openapi,
        content_type=MediaType.JSON.value,
        charset="utf-8",
        headers={"X-Request-Id": request_id(request)},
    )


@routes.get("/reference")
async def reference(request: web.Request) -> web.Response:
    """The description of the service, as a page."""
    described = await _described()
    return web.Response(
        text=described.reference,
        content_type="text/html",
        headers={
            "X-Request-Id": request_id(request),
            "Content-Security-Policy": described.policy,
            **_PAGE_HEADERS,
        },
    )


async def _described() -> _Description:
    # The first time it takes some tenths of a second, in which others are to be answered.
    return await asyncio.to_thread(_description)


@cache
def _description() -> _Description:
    # These import the routes, this module among them, to describe them.
    from semshare_service.description.document import openapi_document  # noqa: PLC0415
    from semshare_service.description.page import reference_page  # noqa: PLC0415
    from semshare_service.routes import all_routes  # noqa: PLC0415

    document = openapi_document(all_routes())
    page = reference_page(document)
    return _Description(encode(document, MediaType.JSON), page.html, page.policy)
