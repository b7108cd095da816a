"""What the prompts and donors of a tenant may take in the engine."""

from __future__ import annotations

from semshare.engine.limits import LimitsOf, NamespaceLimits
from semshare_service.engine import Engine, EngineLoader
from semshare_service.settings import ServiceSettings
from semshare_service.tenants import Tenant, tenant_name


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
