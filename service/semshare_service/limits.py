"""What a tenant may take: requests at the same time here, prompts and donors in the engine."""

from __future__ import annotations

from collections import Counter

from aiohttp import web
from aiohttp.typedefs import Handler

from semshare.engine.limits import LimitsOf, NamespaceLimits
from semshare_service.context import tenant_of
from semshare_service.engine import Engine, EngineLoader
from semshare_service.errors import ConcurrencyExceeded
from semshare_service.settings import ServiceSettings
from semshare_service.tenants import Tenant, tenant_name

# Requests that compute, and so take places that other tenants want too.
COUNTED = frozenset(
    (
        ("POST", "/v1/completions"),
        ("POST", "/v1/chat/completions"),
        ("POST", "/v1/prefill"),
        ("PUT", "/v1/donors"),
        ("PUT", "/v1/kv"),
    )
)
_RETRY_AFTER_S = 1.0  # one of the tenant's own must end, which may be at any time


class TenantSlots:
    """Counts the requests of each tenant that compute at present."""

    def __init__(self) -> None:
        self._running: Counter[str] = Counter()

    def running(self, tenant: Tenant) -> int:
        """Of one tenant."""
        return self._running[tenant.name]

    @web.middleware
    async def middleware(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Refuse a request above `max_concurrency`; a place is free once the answer is sent.

        So it is when the client has gone: aiohttp cancels the handler.
        """
        resource = request.match_info.route.resource
        tenant = tenant_of(request)
        if resource is None or (request.method, resource.canonical) not in COUNTED:
            return await handler(request)
        running, most = self._running[tenant.name], tenant.max_concurrency
        if most is not None and running >= most:
            raise ConcurrencyExceeded(
                f"{running} requests of this tenant are running, of {most} (max_concurrency): try "
                "again when one has ended",
                retry_after_s=_RETRY_AFTER_S,
            )
        self._running[tenant.name] += 1
        try:
            return await handler(request)
        finally:
            self._running[tenant.name] -= 1


def limits_of(settings: ServiceSettings) -> LimitsOf:
    """What the engine lets each namespace take: as much as all of its tenant's together may."""
    by_name = {
        name: NamespaceLimits(
            prefix=Tenant(name).prefix,
            max_prompt_tokens=one.max_prompt_tokens,
            max_donors=one.max_donors,
            max_donor_bytes=one.max_donor_bytes,
        )
        for name, one in settings.tenants.items()
    }
    unlimited = NamespaceLimits()
    return lambda space: by_name.get(tenant_name(space), unlimited)


def limited(load: EngineLoader, settings: ServiceSettings) -> EngineLoader:
    """`load`, and what it gives keeps to the tenants' limits."""
    if not settings.tenants:
        return load

    def load_limited() -> Engine:
        engine = load()
        engine.limit(limits_of(settings))
        return engine

    return load_limited
