"""Donors, and what a prompt would reuse of them."""

from __future__ import annotations

from collections.abc import Sequence

from aiohttp import web

from semshare.errors import NotFound
from semshare.types import DonorInfo
from semshare_service.context import SERVICE, run, tenant_of
from semshare_service.donor_schemas import DonorChanges, DonorListQuery, PublishQuery
from semshare_service.engine import Engine
from semshare_service.errors import PermissionDenied
from semshare_service.exchange import read_body
from semshare_service.jobs import Abandoned
from semshare_service.replies import Body, donor_body, list_body, match_body
from semshare_service.schemas import DonorRequest, MatchRequest, NamespaceFields
from semshare_service.tenants import Tenant

routes = web.RouteTableDef()


@routes.put("/v1/donors")
async def remember(request: web.Request) -> web.Response:
    """Compute a prompt in full and keep it as a donor."""
    fields, tenant = DonorRequest.parse(await read_body(request)), tenant_of(request)
    space = tenant.space(fields.namespace)

    def operation(engine: Engine, abandoned: Abandoned) -> Body:
        donor = engine.remember(
            fields.prompt(),
            namespace=space,
            pinned=fields.pinned,
            ttl_s=fields.ttl_s,
            given_up=abandoned,
        )
        return donor_body(tenant.own(donor))

    return await run(request, operation)


@routes.get("/v1/donors")
async def donors(request: web.Request) -> web.Response:
    """The donors of one namespace, oldest first, a page at a time."""
    query, tenant = DonorListQuery.parse(request.query), tenant_of(request)
    space = tenant.space(query.namespace)

    def operation(engine: Engine, _: Abandoned) -> Body:
        found = engine.donors(namespace=space)
        start = 0 if query.after is None else _place_after(found, query.after)
        page = found[start : start + query.limit]
        has_more = start + query.limit < len(found)
        return list_body([donor_body(tenant.own(donor)) for donor in page]) | {"has_more": has_more}

    return await run(request, operation)


def _place_after(donors: Sequence[DonorInfo], donor_id: str) -> int:
    for place, donor in enumerate(donors, 1):
        if donor.id == donor_id:
            return place
    raise NotFound(
        f"after is {donor_id!r}, which is no donor of this namespace (any more): list from the "
        "beginning"
    )


@routes.get("/v1/donors/{id}")
async def donor(request: web.Request) -> web.Response:
    """One donor, with its text."""
    tenant, donor_id = tenant_of(request), request.match_info["id"]
    space = tenant.space(NamespaceFields.parse(request.query).namespace)

    def operation(engine: Engine, _: Abandoned) -> Body:
        told = donor_body(tenant.own(engine.donor(donor_id, namespace=space)))
        return told | {"text": engine.donor_text(donor_id, namespace=space)}

    return await run(request, operation)


@routes.patch("/v1/donors/{id}")
async def change(request: web.Request) -> web.Response:
    """Pin a donor or not, and give it seconds to live or none."""
    tenant, donor_id = tenant_of(request), request.match_info["id"]
    space = tenant.space(NamespaceFields.parse(request.query).namespace)
    changes = DonorChanges.parse(await read_body(request))

    def operation(engine: Engine, _: Abandoned) -> Body:
        changed = engine.update_donor(
            donor_id, namespace=space, pinned=changes.pinned, ttl_s=changes.time_to_live()
        )
        return donor_body(tenant.own(changed))

    return await run(request, operation)


@routes.post("/v1/donors/{id}/publish")
async def publish(request: web.Request) -> web.Response:
    """Let the requests of all tenants find a donor; only operators may."""
    asking, donor_id = tenant_of(request), request.match_info["id"]
    if not asking.operator:
        raise PermissionDenied(
            "only an operator's key may publish a donor: ask one, or set operator for this tenant"
        )
    query = PublishQuery.parse(request.query)
    owner = asking if query.tenant is None else Tenant(query.tenant)
    space = owner.space(query.namespace)

    def operation(engine: Engine, _: Abandoned) -> Body:
        return donor_body(owner.own(engine.publish(donor_id, namespace=space)))

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
