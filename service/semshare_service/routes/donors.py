"""Donors, and what a prompt would reuse of them."""

from __future__ import annotations

from dataclasses import replace

from aiohttp import web

from semshare.types import DonorInfo
from semshare_service.context import SERVICE, run, tenant_of
from semshare_service.engine import Engine
from semshare_service.exchange import read_body
from semshare_service.replies import Body, donor_body, list_body, match_body
from semshare_service.schemas import DonorRequest, MatchRequest, NamespaceFields
from semshare_service.tenants import Tenant
from semshare_service.worker import Abandoned

routes = web.RouteTableDef()


@routes.put("/v1/donors")
async def remember(request: web.Request) -> web.Response:
    """Compute a prompt in full and keep it as a donor."""
    fields, tenant = DonorRequest.parse(await read_body(request)), tenant_of(request)
    space = tenant.space(fields.namespace)

    def operation(engine: Engine, _: Abandoned) -> Body:
        donor = engine.remember(fields.prompt(), namespace=space, pinned=fields.pinned)
        return _told(donor, tenant)

    return await run(request, operation)


@routes.get("/v1/donors")
async def donors(request: web.Request) -> web.Response:
    """The donors of one namespace."""
    tenant = tenant_of(request)
    space = tenant.space(NamespaceFields.parse(request.query).namespace)

    def operation(engine: Engine, _: Abandoned) -> Body:
        return list_body([_told(donor, tenant) for donor in engine.donors(namespace=space)])

    return await run(request, operation)


@routes.delete("/v1/donors/{id}")
async def forget(request: web.Request) -> web.Response:
    """Drop one donor."""
    space = tenant_of(request).space(NamespaceFields.parse(request.query).namespace)
    donor_id = request.match_info["id"]

    def operation(engine: Engine, _: Abandoned) -> Body:
        engine.forget(donor_id, namespace=space)
        return {"id": donor_id, "object": "donor", "deleted": True}

    return await run(request, operation)


@routes.post("/v1/match")
async def match(request: web.Request) -> web.Response:
    """The reuse plan of a prompt. Nothing is computed."""
    fields = MatchRequest.parse(await read_body(request))
    namespace, policy = fields.reuse(measured=request.app[SERVICE].shadow.is_on)
    space = tenant_of(request).space(namespace)

    def operation(engine: Engine, _: Abandoned) -> Body:
        return match_body(engine.plan(fields.prompt(), policy=policy, namespace=space))

    return await run(request, operation)


def _told(donor: DonorInfo, tenant: Tenant) -> Body:
    """A donor as its tenant knows it."""
    return donor_body(replace(donor, namespace=tenant.namespace(donor.namespace)))
