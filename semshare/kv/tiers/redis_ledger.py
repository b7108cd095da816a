"""The ledger of a model's donors in the server, which all processes share (`redis_scripts`)."""

from __future__ import annotations

import math
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from semshare.errors import TierUnavailable
from semshare.kv.tiers import redis_scripts
from semshare.kv.tiers.redis_keys import PREFIX, Keys, Location, escaped, unescaped
from semshare.kv.tiers.redis_link import Servers

_PAGE = 1000  # entries of a hash a round trip


@dataclass(frozen=True, slots=True)
class Entry:
    """What the ledger has of a donor."""

    revision: int  # of its latest change; they grow over all donors of the ledger
    where: Location


@dataclass(frozen=True, slots=True)
class Reservation:
    """What came of asking for room.

    state:   `ok`; `new` where the ledger is not open yet; `full` where there can't be as much;
             `room` where `doomed` must be deleted first.
    most:    bytes there could be, if it is full.
    doomed:  donors and places whose values are to be deleted, whoever left them there.
    evicted: the donors that went for this.
    """

    state: str
    most: int
    doomed: list[tuple[str, Location]]
    evicted: list[str]


@dataclass(frozen=True, slots=True)
class LedgerPosition:
    """How far the ledger's events have come."""

    epoch: bytes | None  # None: it is not open; a server that lost it all gets another one
    revision: int


class Ledger:
    """Entries, budget and events of one model's donors. Each method is one round trip or few.

    Args:
        servers: where the ledger is.
        keys: its keys.
        process: names this process in events.
        events_kept: about how many the server keeps.

    """

    def __init__(self, servers: Servers, keys: Keys, *, process: str, events_kept: int) -> None:
        self._servers = servers
        self._keys = keys
        self._process = process
        self._events_kept = events_kept

    def reserve(
        self, donor: str, where: Location, *, wanted: int, budget: int, lease_s: float
    ) -> Reservation:
        """Ask for `wanted` bytes for a generation of a donor, for `lease_s` seconds."""
        lease_us = int(lease_s * 1e6)
        state, most, doomed, evicted = self._do(
            redis_scripts.RESERVE, escaped(donor), wanted, budget, lease_us, where.encode()
        )
        pairs = zip(doomed[::2], doomed[1::2], strict=True)
        return Reservation(
            state=state.decode(),
            most=int(most),
            doomed=[(_donor(who), _place(place)) for who, place in pairs],
            evicted=[_donor(who) for who in evicted],
        )

    def commit(
        self, donor: str, where: Location, *, pinned: bool, expires_at: float
    ) -> tuple[int, Location | None]:
        """Enter a donor that has been written: its revision, and what it replaces.

        The revision is 0 where the lease was over, and nothing was done.
        """
        revision, old = self._do(
            redis_scripts.COMMIT,
            escaped(donor),
            int(pinned),
            _microseconds(expires_at),
            where.encode(),
        )
        return int(revision), _place(old) if old else None

    def update(self, donor: str, where: Location, *, pinned: bool, expires_at: float) -> int:
        """Enter what has changed of a donor: its revision, or 0 where it was replaced or went."""
        return int(
            self._do(
                redis_scripts.UPDATE,
                escaped(donor),
                int(pinned),
                _microseconds(expires_at),
                where.generation,
            )
        )

    def retire(
        self, donor: str, where: Location | None = None, *, forgotten: bool = False
    ) -> Location | None:
        """Take a donor out, only this generation of it if one is given: what must be deleted.

        Others are told that it was `forgotten` for good, or that it is gone from here.
        """
        found = self._do(
            redis_scripts.RETIRE,
            escaped(donor),
            where.generation if where is not None else "",
            "forgotten" if forgotten else "gone",
        )
        return _place(found) if found else None

    def free(self, places: Iterable[Location]) -> None:
        """Values have been deleted: their bytes count no longer."""
        self._do(redis_scripts.FREE, *(place.generation for place in places))

    def used(self, donor: str) -> None:
        """Count a use."""
        self._do(redis_scripts.USED, escaped(donor))

    def used_bytes(self) -> int:
        """Of all entries, of what is being written, and of what is going."""
        return int(self._ask("HGET", self._keys.sums, "total") or 0)

    def entries(self, donors: Sequence[str]) -> list[Entry | None]:
        """What there is of these donors."""
        if not donors:
            return []
        found = self._ask("HMGET", self._keys.donors, *map(escaped, donors))
        return [_entry(value) for value in found]

    def all_entries(self) -> dict[str, Entry]:
        """Every donor."""
        pairs = ((_donor(name), _entry(value)) for name, value in self._all(self._keys.donors))
        return {donor: entry for donor, entry in pairs if entry is not None}

    def generations(self) -> set[str]:
        """Of every donor, and of what is being written or going."""
        found = {entry.where.generation for entry in self.all_entries().values()}
        return found | {name.decode() for name, _ in self._all(self._keys.leases)}

    def open(self) -> None:
        """Let donors be put, once nothing lies in the servers that the ledger does not count."""
        self._ask("HSETNX", self._keys.sums, "epoch", secrets.token_hex(8))

    def position(self) -> LedgerPosition:
        """How far it has come."""
        epoch, revision = self._ask("HMGET", self._keys.sums, "epoch", "revision")
        return LedgerPosition(epoch, int(revision or 0))

    def _all(self, key: str) -> list[tuple[bytes, bytes]]:
        found: dict[bytes, bytes] = {}
        cursor = 0
        while True:
            cursor, page = self._servers.command(key, "HSCAN", key, cursor, "COUNT", _PAGE)
            found.update(page)
            if not cursor:
                return list(found.items())

    def _do(self, script: str, *arguments: str | int) -> Any:
        keys = self._keys.ledger
        return self._ask(
            "EVAL", script, len(keys), *keys, self._process, self._events_kept, *arguments
        )

    def _ask(self, command: str, *arguments: str | int) -> Any:
        return self._servers.command(self._keys.sums, command, *arguments)


def _entry(value: bytes | None) -> Entry | None:
    """None where there is none, or what is there is none."""
    if value is None:
        return None
    try:
        _, _, revision, where = value.decode().split(" ", 3)
        return Entry(int(revision), Location.decode(where))
    except ValueError:
        return None


def _place(value: bytes) -> Location:
    try:
        return Location.decode(value.decode())
    except ValueError as problem:
        raise TierUnavailable(
            "the ledger in the server has been changed by something else than this tier: delete "
            f"the keys that begin with {PREFIX}:"
        ) from problem


def _donor(name: bytes) -> str:
    return unescaped(name.decode())


def _microseconds(at: float) -> str:
    return str(max(0, int(at * 1e6))) if math.isfinite(at) else ""
