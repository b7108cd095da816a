"""The application: routes, one error form, and the worker's life."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from aiohttp import web
from aiohttp.typedefs import Middleware

from semshare.errors import InvalidRequest
from semshare_service.auth import KeyRing, auth_middleware, only_local_names
from semshare_service.context import POOL, SERVICE, Service
from semshare_service.engine import Engine, EngineLoader
from semshare_service.engine_closing import EngineClosing
from semshare_service.exchange import READ_TIMEOUT_S, error_middleware
from semshare_service.finished import finish_middleware, note_answer
from semshare_service.handles import HANDLES, Handles, handles_life
from semshare_service.limits import limited
from semshare_service.logs import log_access
from semshare_service.metrics import Metrics
from semshare_service.observed import Answered
from semshare_service.pool_watch import PoolWatch
from semshare_service.routes import all_routes
from semshare_service.routes.dashboard import watch
from semshare_service.routes.operations import METRICS
from semshare_service.settings import ServiceSettings
from semshare_service.shadow import Shadow
from semshare_service.streams import errors_as_events
from semshare_service.worker import ModelWorker

if TYPE_CHECKING:
    from semshare_service.tracing import Tracing


def create_app(engine: Engine | EngineLoader, settings: ServiceSettings) -> web.Application:
    """The service as an aiohttp application; nothing is bound and nothing runs yet.

    engine: a ready engine, or a function without arguments that makes one. The function is
            called in a worker's thread when the application starts, so that `/health` answers
            at once; until it has returned, `/ready` and the routes that need the model answer 503.

    Run it with `handler_cancellation=True` (`serve.run` does), otherwise requests whose client
    has gone stay in the queue.

    Raises:
        InvalidRequest: `otlp_endpoint` is set and OpenTelemetry is not installed.

    """
    shadow = Shadow(settings.shadow_share)
    pool, metrics = PoolWatch(), Metrics()
    closing = EngineClosing(settings.shutdown_timeout_s)
    shadow.on_divergence.append(metrics.observe_divergence)
    tracing = None if settings.otlp_endpoint is None else _tracing(settings.otlp_endpoint)
    worker = ModelWorker(
        pool.watching(limited(engine if callable(engine) else lambda: engine, settings)),
        queue_limit=settings.queue_limit,
        concurrency=settings.concurrency,
        idle_work=shadow,
    )

    async def worker_life(_: web.Application) -> AsyncIterator[None]:
        worker.start()
        yield
        await worker.close(settings.shutdown_timeout_s)
        await closing.finish(worker.engine)

    async def refuse_waiting(_: web.Application) -> None:
        # aiohttp calls this before it waits for requests: the running one ends, the others are told
        # at once that another service must answer them. One that takes too long is given up in
        # time to tell its client.
        worker.drain()
        closing.begin()
        asyncio.get_running_loop().call_later(settings.shutdown_timeout_s, worker.give_up_running)

    app = web.Application(
        middlewares=[
            finish_middleware(
                [
                    log_access,
                    metrics.observe_request,
                    *([] if tracing is None else [tracing.observe_request]),
                ]
            ),
            errors_as_events,
            error_middleware(settings.request_timeout_s),
            *_who_may_ask(settings),
        ],
        client_max_size=settings.max_body_bytes,
    )
    app[READ_TIMEOUT_S] = settings.read_timeout_s
    service = Service(settings, worker, started=int(time.time()), shadow=shadow)
    app[SERVICE], app[POOL], app[METRICS] = service, pool, metrics
    watch(app, service)
    service.listeners.extend(
        (note_answer, metrics.observe_answer, lambda event: _offer(event, shadow, worker))
    )
    if tracing is not None:
        app.cleanup_ctx.append(tracing.life)
    app.cleanup_ctx.append(worker_life)
    app[HANDLES] = Handles(settings.max_handles)
    app.cleanup_ctx.append(handles_life)  # ends before the worker does
    app.on_shutdown.append(refuse_waiting)
    app.add_routes(all_routes())
    return app


def _who_may_ask(settings: ServiceSettings) -> list[Middleware]:
    if settings.tenants:
        return [auth_middleware(KeyRing(settings))]
    return [] if settings.allow_remote else [only_local_names]


def _offer(event: Answered, shadow: Shadow, worker: ModelWorker) -> None:
    if shadow.offer(event):
        worker.wake()


def _tracing(endpoint: str) -> Tracing:
    try:
        from semshare_service.tracing import Tracing, otlp_exporter  # noqa: PLC0415 - an extra
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "opentelemetry":
            raise
        raise InvalidRequest(
            f"otlp_endpoint is {endpoint!r}, but OpenTelemetry is not installed: install "
            "`semshare[otel]`, or leave the setting out"
        ) from None
    return Tracing(otlp_exporter(endpoint))
