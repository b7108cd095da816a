"""The dashboard's page, and what it and `semshare top` show."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from aiohttp import web
from pydantic import Field

from semshare_service.activity import Activity
from semshare_service.context import POOL, SERVICE, Service, run, tenant_of
from semshare_service.engine import Engine
from semshare_service.exchange import read_body, request_id, respond
from semshare_service.jobs import Abandoned
from semshare_service.pieces import prompt_pieces
from semshare_service.pool_watch import pool_body
from semshare_service.recent import RecentRequests
from semshare_service.replies import Body, list_body, match_body, token_runs
from semshare_service.schemas import MatchRequest, StrictModel

routes = web.RouteTableDef()

# Everything comes from here, and nothing is written into the page: text that looks like markup or
# script stays text.
_PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
_CONTENT_TYPES = {
    "html": "text/html",
    "js": "text/javascript",
    "css": "text/css",
    "svg": "image/svg+xml",
}


@dataclass(frozen=True, slots=True)
class Watched:
    """What the dashboard knows of the requests so far."""

    recent: RecentRequests
    activity: Activity


WATCHED: web.AppKey[Watched] = web.AppKey("watched", Watched)


def watch(app: web.Application, service: Service) -> None:
    """Listen to a service's answers from now on."""
    watched = Watched(RecentRequests(service.settings.recent_requests), Activity())
    service.listeners.extend((watched.recent, watched.activity))
    app[WATCHED] = watched


class RecentQuery(StrictModel):
    """What the list of recent requests takes, as a query.

    limit: most requests in it.
    """

    limit: int = Field(default=100, ge=1, le=1000, strict=False)


@routes.get("/")
async def page(request: web.Request) -> web.Response:
    """The dashboard. It needs no key: what it shows it asks for with its user's."""
    return _file(request, "index.html")


@routes.get("/dashboard/{name}")
async def page_file(request: web.Request) -> web.Response:
    """A file that the page loads."""
    return _file(request, request.match_info["name"])


@routes.get("/v1/stats")
async def stats(request: web.Request) -> web.Response:
    """How much was reused, how fast, and what is kept."""
    service, watched, tenant = request.app[SERVICE], request.app[WATCHED], tenant_of(request)
    pool = pool_body(await request.app[POOL].latest(), tenant)
    now, status = time.time(), service.worker.status()
    body = {
        "object": "stats",
        "now": now,
        "started": service.started,
        "model": status.model,
        "queue": {"waiting": status.waiting, "limit": status.limit, "running": status.running},
        **watched.activity.body(tenant, now),
        **pool,
    }
    return respond(request, body)


@routes.get("/v1/requests")
async def recent_requests(request: web.Request) -> web.Response:
    """The tenant's last answered requests, newest first."""
    limit = RecentQuery.parse(request.query).limit
    kept = request.app[WATCHED].recent.newest(tenant_of(request), limit)
    return respond(request, list_body([one.body() for one in kept]))


@routes.get("/v1/requests/{id}")
async def recent_request(request: web.Request) -> web.Response:
    """One of them, with its prompt in pieces."""
    kept = request.app[WATCHED].recent.find(tenant_of(request), request.match_info["id"])
    found = kept.provenance
    runs = token_runs(found.source, found.donor, found.donor_position, found.donors)

    def operation(engine: Engine, _: Abandoned) -> Body:
        ids = engine.encode(kept.prompt)
        return {**kept.body(), "pieces": prompt_pieces(engine, kept.space, ids, runs)}

    return await run(request, operation)


@routes.post("/v1/inspect")
async def inspect(request: web.Request) -> web.Response:
    """The reuse plan of a prompt, with its text in pieces. Nothing is computed."""
    fields = MatchRequest.parse(await read_body(request))
    namespace, policy = fields.reuse(measured=request.app[SERVICE].shadow.is_on)
    space = tenant_of(request).space(namespace)

    def operation(engine: Engine, _: Abandoned) -> Body:
        plan = engine.plan(fields.prompt(), policy=policy, namespace=space)
        body = match_body(plan)
        return {**body, "pieces": prompt_pieces(engine, space, plan.ids, body["spans"])}

    return await run(request, operation)


def _file(request: web.Request, name: str) -> web.Response:
    contents = _files().get(name)
    if contents is None:
        raise web.HTTPNotFound
    return web.Response(
        body=contents,
        content_type=_CONTENT_TYPES[name.rpartition(".")[2]],
        charset="utf-8",
        headers={"X-Request-Id": request_id(request), **_PAGE_HEADERS},
    )


@cache
def _files() -> dict[str, bytes]:
    """The page's files by name: the only ones that are served."""
    folder = files("semshare_service") / "dashboard"
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}
