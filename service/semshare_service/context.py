"""What every route has at hand: the settings, the worker, who asks, and who wants to know."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from aiohttp import web

from semshare_service.exchange import respond
from semshare_service.jobs import Operation
from semshare_service.observed import Answered
from semshare_service.pool_watch import PoolWatch
from semshare_service.replies import Body
from semshare_service.settings import ServiceSettings
from semshare_service.shadow import Shadow
from semshare_service.tenants import ANYONE, Tenant
from semshare_service.worker import ModelWorker

Listener = Callable[[Answered], None]


@dataclass(frozen=True, slots=True)
class Service:
    """What the routes share.

    settings:  as they were at the start.
    worker:    runs operations on the engine.
    started:   seconds since the epoch.
    shadow:    scores some answers again in idle time.
    listeners: called on the event loop after each answer, in their order; they must be quick.
    """

    settings: ServiceSettings
    worker: ModelWorker
    started: int
    shadow: Shadow
    listeners: list[Listener] = field(default_factory=list)

    def answered(self, event: Answered) -> None:
        """Tell whoever listens that a request has been answered."""
        for listener in self.listeners:
            listener(event)


SERVICE: web.AppKey[Service] = web.AppKey("service", Service)
POOL: web.AppKey[PoolWatch] = web.AppKey("pool", PoolWatch)
TENANT: web.RequestKey[Tenant] = web.RequestKey("tenant", Tenant)


def tenant_of(request: web.Request) -> Tenant:
    """Who asks. Whatever a route finds, keeps or tells is this tenant's alone."""
    tenant: Tenant = request.get(TENANT, ANYONE)
    return tenant


async def run(request: web.Request, operation: Operation[Body]) -> web.Response:
    """The result of an operation on the engine, as a response."""
    served = await request.app[SERVICE].worker.submit(operation, tenant_of(request))
    return respond(request, served.value)
