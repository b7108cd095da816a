"""How the service stands, and what it serves."""

from __future__ import annotations

from functools import cache
from importlib.metadata import PackageNotFoundError, version

from aiohttp import web
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4

from semshare_service.context import POOL, SERVICE, Service, tenant_of
from semshare_service.errors import ServiceUnavailable, UnknownModel
from semshare_service.exchange import request_id, respond
from semshare_service.metrics import Metrics
from semshare_service.replies import Body, list_body

routes = web.RouteTableDef()
METRICS: web.AppKey[Metrics] = web.AppKey("metrics", Metrics)


@routes.get("/health")
async def health(request: web.Request) -> web.Response:
    """Liveness: the process answers."""
    return respond(request, {"status": "ok", "version": service_version()})


@routes.get("/ready")
async def ready(request: web.Request) -> web.Response:
    """Readiness: the model is loaded and its worker alive. 503 with the same form if not."""
    status = request.app[SERVICE].worker.status()
    body = {
        "status": status.state,
        "model": status.model,
        "max_context": status.max_context,
        "queue": {"waiting": status.waiting, "limit": status.limit, "running": status.running},
        "reason": status.reason,
    }
    return respond(request, body, status=200 if status.state == "ready" else 503)


@routes.get("/v1/models")
async def models(request: web.Request) -> web.Response:
    """The one model, in OpenAI's form."""
    return respond(request, list_body([_model(request.app[SERVICE])]))


@routes.get("/v1/models/{id:.+}")
async def model(request: web.Request) -> web.Response:
    """The one model, by its name; a hub's names have slashes in them."""
    loaded, wanted = _model(request.app[SERVICE]), request.match_info["id"]
    if wanted != loaded["id"]:
        raise UnknownModel(f"the model {wanted!r} is not served here: this is {loaded['id']!r}")
    return respond(request, loaded)


def _model(service: Service) -> Body:
    status = service.worker.status()
    if status.model is None:
        raise ServiceUnavailable(
            "the model is not loaded: GET /ready says how it stands", retry_after_s=1.0
        )
    return {
        "id": status.model,
        "object": "model",
        "created": service.started,
        "owned_by": "semshare",
        "max_model_len": status.max_context,
    }


@routes.get("/metrics")
async def metrics(request: web.Request) -> web.Response:
    """Metrics in Prometheus' text form; a tenant sees its own only, an operator all.

    It answers while the model computes: `semshare:engine_stats_age_seconds` says how old what it
    tells of the engine is.
    """
    service, tenant = request.app[SERVICE], tenant_of(request)
    text = request.app[METRICS].exposition(
        service.worker.status(),
        await request.app[POOL].latest() if tenant.operator else None,
        service.shadow.counts(),
        tenant=None if tenant.operator else tenant.name,
    )
    return web.Response(
        body=text,
        headers={
            "Content-Type": CONTENT_TYPE_PLAIN_0_0_4,
            "X-Request-Id": request_id(request),
        },
    )


@cache
def service_version() -> str:
    """Of the installed package, whose metadata is a file."""
    try:
        return version("semshare")
    except PackageNotFoundError:  # run from a checkout that is not installed
        return "unknown"
