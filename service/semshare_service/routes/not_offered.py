"""Parts of OpenAI's interface that programs ask for and that this service does not have."""

from __future__ import annotations

from typing import NoReturn

from aiohttp import web

from semshare_service.errors import NotOffered

routes = web.RouteTableDef()


@routes.post("/v1/embeddings")
async def embeddings(_: web.Request) -> NoReturn:
    """Refused in words, since a bare 404 would look like a wrong address."""
    raise NotOffered(
        "embeddings are not offered: the model served here answers prompts; send this request to a "
        "service with an embedding model"
    )
