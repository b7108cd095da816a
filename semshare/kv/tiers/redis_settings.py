"""What can be set of the Redis tier, beside its URL and its budget."""

from __future__ import annotations

from dataclasses import dataclass

# Some bytes below 4 MiB: with its header, a value of 4 MiB would be given 5 MiB by jemalloc.
CHUNK_BYTES = (4 << 20) - 1024


@dataclass(frozen=True, slots=True)
class RedisTimeouts:
    """Bounds, in seconds.

    connect:      of a new connection.
    command:      of one wait for the server, and of a call that is one or few round trips.
    read:         of a whole `read`.
    write:        of a whole `put`.
    listing:      of listing all donors; each batch of records has `read` more.
    lease:        how long a put's room is reserved if the process dies meanwhile; above `write`.
    pause:        how long calls fail at once after failures in a row, at first …
    longest_pause: … and at most, doubling.
    """

    connect: float = 0.5
    command: float = 1.0
    read: float = 2.0
    write: float = 10.0
    listing: float = 10.0
    lease: float = 60.0
    pause: float = 0.25
    longest_pause: float = 2.0
