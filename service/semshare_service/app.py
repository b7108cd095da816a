"""The application: routes, one error form, and the worker's life."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator

from aiohttp import web

from semshare_service.context import ENGINE_STATS, SERVICE, Service
from semshare_service.engine import Engine, EngineLoader
from semshare_service.engine_stats import EngineStats
from semshare_service.exchange import error_middleware
from semshare_service.finished import finish_middleware, note_answer
from semshare_service.logs import log_access
from semshare_service.metrics import Metrics
from semshare_service.routes import all_routes
from semshare_service.routes.operations import METRICS
from semshare_service.settings import ServiceSettings
from semshare_service.worker import ModelWorker


def create_app(engine: Engine | EngineLoader, settings: ServiceSettings) -> web.Application:
    """The service as an aiohttp application; nothing is bound and nothing runs yet.

    engine: a ready engine, or a function without arguments that makes one. The function is
            called in a worker's thread when the application starts, so that `/health` answers
            at once; until it has returned, `/ready` and the routes that need the model answer 503.

    Run it with `handler_cancellation=True` (`serve.run` does), otherwise requests whose client
    has gone stay in the queue.
    """
    stats, metrics = EngineStats(), Metrics()
    worker = ModelWorker(
        stats.watching(engine if callable(engine) else lambda: engine),
        queue_limit=settings.queue_limit,
        concurrency=settings.concurrency,
    )

    async def worker_life(_: web.Application) -> AsyncIterator[None]:
        worker.start()
        yield
        await worker.close(settings.shutdown_timeout_s)

    async def refuse_waiting(_: web.Application) -> None:
        # aiohttp calls this before it waits for requests: the running one ends, the others are told
        # at once that another service must answer them.
        worker.drain()

    app = web.Application(
        middlewares=[
            finish_middleware([log_access, metrics.observe_request]),
            error_middleware(settings.request_timeout_s),
        ],
        client_max_size=settings.max_body_bytes,
    )
    app[SERVICE] = Service(settings, worker, started=int(time.time()))
    app[ENGINE_STATS], app[METRICS] = stats, metrics
    app[SERVICE].listeners.extend((note_answer, metrics.observe_answer))
    app.cleanup_ctx.append(worker_life)
    app.on_shutdown.append(refuse_waiting)
    app.add_routes(all_routes())
    return app
