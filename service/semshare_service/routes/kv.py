"""KV out and in: a prompt is prefilled and held, its KV is read, KV from elsewhere is brought."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Iterator
from typing import IO, TYPE_CHECKING, Literal

from aiohttp import web
from pydantic import Field

from semshare.errors import GivenUp, InvalidRequest
from semshare_service.context import SERVICE, run, tenant_of
from semshare_service.engine import Engine
from semshare_service.errors import BodyTooLarge, BodyTooSlow, UnsupportedMediaType
from semshare_service.exchange import (
    READ_TIMEOUT_S,
    REQUEST_ID_HEADER,
    read_body,
    request_id,
    respond,
)
from semshare_service.handles import HANDLES, HeldKV
from semshare_service.jobs import Abandoned
from semshare_service.kv_wire import CONTENT_TYPE, HeaderReader, KVHeader, encode, read_layers
from semshare_service.replies import Body, donor_body, provenance_body
from semshare_service.schemas import MatchRequest, NamespaceFields, TimeToLive

if TYPE_CHECKING:
    from semshare.kv.exchange import KVFormat, LayerKV

routes = web.RouteTableDef()

_SLICE = 1 << 18  # bytes written at a time, each within `write_timeout_s`


class PrefillRequest(MatchRequest):
    """`POST /v1/prefill`, with the prompt as one of `text`, `messages` and `ids`.

    ttl_s: seconds that the KV is held; at most, and where left out, the setting `handle_ttl_s`.
    """

    ttl_s: TimeToLive | None = None


class ImportQuery(NamespaceFields):
    """The query of `PUT /v1/kv`.

    pinned: never evicted.
    ttl_s:  seconds until it expires, pinned or not; it stays where left out.
    """

    pinned: Literal["true", "false"] = "false"
    ttl_s: float | None = Field(default=None, gt=0, strict=False)


@routes.post("/v1/prefill")
async def prefill(request: web.Request) -> web.Response:
    """Prefill a prompt and hold its KV under a handle."""
    fields = PrefillRequest.parse(await read_body(request))
    service, tenant, handles = request.app[SERVICE], tenant_of(request), request.app[HANDLES]
    namespace, policy = fields.reuse(measured=service.shadow.is_on)
    space = tenant.space(namespace)
    ttl_s = min(fields.ttl_s or service.settings.handle_ttl_s, service.settings.handle_ttl_s)
    name = handles.reserve(tenant.name)

    def operation(engine: Engine, abandoned: Abandoned) -> Body:
        wanted = engine.kv_format
        prompt = engine.prefill(fields.prompt(), policy=policy, namespace=space, given_up=abandoned)
        provenance = prompt.provenance
        header = KVHeader(
            fingerprint=wanted.fingerprint,
            model=engine.model_name,
            dtype=wanted.dtype,
            n_layers=wanted.n_layers,
            n_kv_heads=wanted.n_kv_heads,
            head_dim=wanted.head_dim,
            ids=prompt.ids,
            source=provenance.source,
        )
        expires = handles.fill(name, HeldKV(header, prompt), ttl_s=ttl_s)
        return {
            "object": "prefill",
            "handle": name,
            "prompt_tokens": len(prompt.ids),
            "expires": expires,
            "semshare": provenance_body(provenance),
        }

    try:
        served = await service.worker.submit(operation, tenant)
    except BaseException:  # also where the client has gone: nobody else knows the name
        handles.discard(name)
        raise
    asyncio.get_running_loop().call_later(ttl_s, handles.discard, name)
    return respond(request, served.value)


@routes.get("/v1/kv/{handle}")
async def read(request: web.Request) -> web.StreamResponse:
    """The KV behind a handle, one layer at a time."""
    name = request.match_info["handle"]
    write_timeout_s = request.app[SERVICE].settings.write_timeout_s
    with request.app[HANDLES].reading(tenant_of(request).name, name) as held:
        header, prompt = held.header, held.prompt
        pieces = encode(
            header, (prompt.layer(index).to_bytes() for index in range(header.n_layers))
        )
        response = web.StreamResponse(
            headers={"Content-Type": CONTENT_TYPE, REQUEST_ID_HEADER: request_id(request)}
        )
        await response.prepare(request)
        try:
            # In a thread, because a copy waits for the engine's lock; the next one is made when the
            # client has taken the last.
            while (piece := await asyncio.to_thread(_next, pieces)) is not None:
                for start in range(0, len(piece), _SLICE):
                    async with asyncio.timeout(write_timeout_s):
                        await response.write(piece[start : start + _SLICE])
            await response.write_eof()
        except (ConnectionError, TimeoutError):  # it has gone, or reads nothing
            if request.transport is not None:
                request.transport.abort()
        except BaseException:
            # An error can't be told any more; what was sent must not look like a whole answer.
            if request.transport is not None:
                request.transport.abort()
            raise
    return response


def _next(pieces: Iterator[bytes]) -> bytes | None:
    return next(pieces, None)


@routes.delete("/v1/kv/{handle}")
async def drop(request: web.Request) -> web.Response:
    """End a handle; the KV's slots are free again once nobody reads it."""
    name = request.match_info["handle"]
    request.app[HANDLES].drop(tenant_of(request).name, name)
    return respond(request, {"handle": name, "object": "prefill", "deleted": True})


@routes.put("/v1/kv")
async def bring(request: web.Request) -> web.Response:
    """Verify KV that was computed elsewhere and make its prompt a donor."""
    query = ImportQuery.parse(request.query)
    if request.content_type != CONTENT_TYPE:
        raise UnsupportedMediaType(
            f"the body's Content-Type is {request.content_type}: send {CONTENT_TYPE}"
        )
    service, tenant = request.app[SERVICE], tenant_of(request)
    space = tenant.space(query.namespace)
    wanted = (await service.worker.submit(lambda engine, _: engine.kv_format, tenant)).value
    # On disk, so that neither many uploads nor a slow one hold memory or a thread of the worker.
    with tempfile.TemporaryFile() as spool:
        with service.worker.place(tenant):  # or one tenant could fill the disk
            header, header_bytes = await _receive(
                request, spool, wanted, service.settings.max_kv_body_bytes
            )

        def operation(engine: Engine, abandoned: Abandoned) -> Body:
            spool.seek(0)
            donor = engine.import_donor(
                header.ids.tolist(),
                _layers(spool, header, header_bytes, abandoned),
                fingerprint=header.fingerprint,
                namespace=space,
                pinned=query.pinned == "true",
                ttl_s=query.ttl_s,
            )
            return donor_body(tenant.own(donor))

        return await run(request, operation)


def _layers(
    spool: IO[bytes], header: KVHeader, header_bytes: int, abandoned: Abandoned
) -> Iterator[LayerKV]:
    from semshare.kv.exchange import LayerKV  # noqa: PLC0415 - loads torch, which the engine has

    for key, value in read_layers(spool, header, header_bytes):
        if abandoned():
            raise GivenUp
        yield LayerKV.from_bytes(key, value, dtype=header.dtype, shape=header.layer_shape)


async def _receive(
    request: web.Request, spool: IO[bytes], wanted: KVFormat, most: int
) -> tuple[KVHeader, int]:
    """Write the body to `spool`; returns its header, which fits, and the header's length.

    Raises:
        KVMismatch: it is of another model, or not exact.
        BodyTooLarge: longer than its header, or `most`, allows.
        BodyTooSlow: nothing came for `read_timeout_s`.
        InvalidRequest: no header.

    """
    reader, header, received = HeaderReader(wanted), None, 0
    limit, reason = most, "max_kv_body_bytes"
    try:
        while part := await _next_part(request):
            received += len(part)
            if header is None:
                header = reader.feed(part)
                if header is not None:
                    header.check_fits(wanted)
                    whole = header.most_bytes(reader.length)
                    if whole < limit:
                        limit, reason = whole, "what its header announces"
            if max(received, request.content_length or 0) > limit:
                raise BodyTooLarge(
                    f"the KV is larger than {limit} bytes ({reason}): send a shorter prompt's, or "
                    "raise max_kv_body_bytes"
                )
            await asyncio.to_thread(spool.write, part)
    except web.RequestPayloadError:
        raise InvalidRequest(
            "the body is not what Content-Encoding or Transfer-Encoding says: send it plain"
        ) from None
    if header is None:
        raise InvalidRequest("the body ends before the KV's header does: see docs/wire.md")
    return header, reader.length


async def _next_part(request: web.Request) -> bytes:
    """What has arrived of the body; empty at its end."""
    timeout_s = request.app[READ_TIMEOUT_S]
    try:
        async with asyncio.timeout(timeout_s):
            return await request.content.readany()
    except TimeoutError:
        raise BodyTooSlow(
            f"nothing of the body arrived for {timeout_s:g} s (read_timeout_s): send it faster"
        ) from None
