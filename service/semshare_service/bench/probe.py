"""Asks a service for `/health` again and again, in a process of its own.

    python -m semshare_service.bench.probe URL

It ends when its standard input does, and then prints the seconds of each answer, as one JSON array.
"""

from __future__ import annotations

import http.client
import json
import select
import sys
import time
from urllib.parse import urlsplit

_EVERY_S = 0.05
TIMEOUT_S = 30.0


def main(url: str) -> None:
    """Ask at least once."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=TIMEOUT_S)
    latencies = []
    has_ended = False
    while not has_ended:
        latencies.append(_probe(connection))
        has_ended = bool(select.select([sys.stdin], [], [], _EVERY_S)[0])
    connection.close()
    print(json.dumps(latencies))  # noqa: T201 - the parent reads it


def _probe(connection: http.client.HTTPConnection) -> float:
    """Seconds of one answer; the time-out's where none came that says all is well."""
    started = time.perf_counter()
    try:
        connection.request("GET", "/health")
        answered = connection.getresponse()
        answered.read()
    except (OSError, http.client.HTTPException):
        connection.close()
        return TIMEOUT_S
    return time.perf_counter() - started if answered.status == 200 else TIMEOUT_S


if __name__ == "__main__":
    main(sys.argv[1])
