"""Which servers a URL names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias
from urllib.parse import urlsplit

from redis.connection import parse_url

from semshare.errors import InvalidRequest

Address: TypeAlias = tuple[str, int]  # host and port, or a socket's path and 0

_SCHEMES = ("redis", "rediss", "unix", "redis+cluster", "rediss+cluster")
_PORT = 6379


def names_cluster(url: str) -> bool:
    """Whether the URL itself says that its servers are nodes of a cluster."""
    return url.partition("://")[0].endswith("+cluster")


def parse(url: str) -> tuple[list[Address], Mapping[str, Any]]:
    """Nodes to begin with and options of connections. Messages never hold the URL's password."""
    scheme, separator, rest = url.partition("://")
    if not separator or scheme not in _SCHEMES:
        raise InvalidRequest(
            f"a Redis URL begins with one of {', '.join(f'{one}://' for one in _SCHEMES)}, not "
            f"with {scheme if separator else 'something else'!r}"
        )
    scheme = scheme.removesuffix("+cluster")
    place, slash, path = rest.partition("/")
    user, at, hosts = place.rpartition("@")
    nodes: list[Address] = []
    options: dict[str, Any] = {}
    try:
        for host in hosts.split(",") if scheme != "unix" else [hosts]:
            options = dict(parse_url(f"{scheme}://{user}{at}{host}{slash}{path}"))  # type: ignore[no-untyped-call]
            if scheme == "unix":
                nodes.append((options.pop("path"), 0))
            else:
                split = urlsplit(f"//{host.partition('?')[0]}")
                nodes.append((split.hostname or "localhost", split.port or _PORT))
    except (ValueError, KeyError):
        raise InvalidRequest(
            f"the {scheme}:// URL's host, port or options can't be read: write "
            "redis://user:password@host:port/database"
        ) from None
    for name in ("host", "port"):
        options.pop(name, None)
    return nodes, options
