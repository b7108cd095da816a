"""API keys, and the middleware that finds out by them who asks.

The settings hold SHA-256 digests of keys, never keys. A plain digest is enough because a key is
random, of 256 bits: nobody can try that many. What people think up would need a slow hash with a
salt, which here would only make every request slow.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from semshare_service.context import TENANT
from semshare_service.errors import InvalidKey, PermissionDenied
from semshare_service.exchange import error_response
from semshare_service.settings import ServiceSettings, is_loopback
from semshare_service.tenants import Tenant

# Probes hold no key and are told only that the process lives; the dashboard's page is the same for
# all, and asks for a key before it shows anything. So is the description, which tells of nobody.
OPEN_PATHS = frozenset(
    ("/health", "/ready", "/", "/dashboard/{name}", "/openapi.json", "/reference")
)
_KEY_BYTES = 32
_DIGEST = "sha256:"


def new_key() -> str:
    """A random key of 256 bits."""
    return f"semshare-{secrets.token_urlsafe(_KEY_BYTES)}"


def hash_key(key: str) -> str:
    """A key as the settings hold it: `sha256:` and 64 hexadecimal digits."""
    return _DIGEST + hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


class KeyRing:
    """Which tenant a key belongs to.

    Args:
        settings: with the tenants and the digests of their keys.

    """

    def __init__(self, settings: ServiceSettings) -> None:
        self._tenants = [
            (digest, Tenant(name, one.operator, one.max_concurrency))
            for name, one in settings.tenants.items()
            for digest in one.keys
        ]

    def tenant_of(self, key: str) -> Tenant | None:
        """Who holds `key`. It takes as long whichever key it is, known or not."""
        digest, holder = hash_key(key), None
        for known, tenant in self._tenants:
            if hmac.compare_digest(digest, known):
                holder = tenant  # and on: an early end would tell how far down the list it stands
        return holder


def auth_middleware(ring: KeyRing) -> Middleware:
    """A middleware that says who asks (`context.tenant_of`), or answers 401."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        resource = request.match_info.route.resource
        if resource is not None and resource.canonical in OPEN_PATHS:
            return await handler(request)
        key = _sent_key(request)
        tenant = None if key is None else ring.tenant_of(key)
        if tenant is None:
            what = "no API key was sent" if key is None else "the API key is not known here"
            error = InvalidKey(
                f"{what}: send one as `Authorization: Bearer KEY`; the operator makes keys with "
                "`semshare keys new`"
            )
            response = error_response(request, error)
            response.headers["WWW-Authenticate"] = "Bearer"
            return response
        request[TENANT] = tenant
        return await handler(request)

    return middleware


@web.middleware
async def only_local_names(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Refuse requests under a name that is not this machine's own.

    For a service without keys on a loopback address: a page of anybody's, whose name is made to
    point here, would be of the same origin to a browser, which would let it read all there is.
    """
    try:
        host = request.url.host or ""
    except ValueError:  # a port that is none
        host = request.host
    if not is_loopback(host):
        raise PermissionDenied(
            f"the host {host!r} is not this machine: without API keys ask 127.0.0.1 or localhost, "
            "or set allow_remote if the network is trusted"
        )
    return await handler(request)


def _sent_key(request: web.Request) -> str | None:
    scheme, _, credentials = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() == "bearer" and credentials.strip():
        return credentials.strip()
    return request.headers.get("X-API-Key")
