"""The routes. Each reads, submits one operation to the worker, and writes."""

from __future__ import annotations

from collections.abc import Iterable

from aiohttp import web

from semshare_service.routes import (
    dashboard,
    description,
    donors,
    generation,
    kv,
    not_offered,
    operations,
)


def all_routes() -> Iterable[web.AbstractRouteDef]:
    """Of all modules."""
    for module in (operations, generation, donors, kv, dashboard, description, not_offered):
        yield from module.routes
