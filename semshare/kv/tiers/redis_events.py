"""Telling a watcher what other processes do to the donors in a server."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass
from typing import Any, Literal

from semshare.errors import TierUnavailable
from semshare.kv.tiers.counting import Counts
from semshare.kv.tiers.redis_bounds import within
from semshare.kv.tiers.redis_keys import Keys, unescaped
from semshare.kv.tiers.redis_known import KnownDonors
from semshare.kv.tiers.redis_ledger import Entry, Ledger, LedgerPosition
from semshare.kv.tiers.redis_link import Servers
from semshare.kv.tiers.tier import TierWatcher

log = logging.getLogger(__name__)

_BLOCK_S = 0.5  # of one wait for events; how long `close` may have to wait, too
_EVENTS_AT_ONCE = 256
_AGAIN_S = 0.25  # before the next try where a server does not answer
_START = "0-0"


@dataclass(frozen=True, slots=True)
class _Event:
    id: str
    revision: int
    kind: Literal["put", "gone", "forgotten"]
    donor: str
    process: str


class EventReader:
    """A thread that reads a ledger's events and asks for all donors where some may be missing.

    Revisions count events one by one, so that a gap shows: events the server has trimmed, or a
    server that has lost everything and begins again.

    Args:
        servers, keys, ledger: where donors are.
        known: what the tier knows, which this keeps up to date.
        process: whose own events are not told.
        seconds: bound of each look at the server, waiting for events aside.
        list_s: bound of listing all donors.

    """

    def __init__(
        self,
        servers: Servers,
        keys: Keys,
        ledger: Ledger,
        known: KnownDonors,
        *,
        process: str,
        counts: Counts,
        seconds: float,
        list_s: float,
    ) -> None:
        self._servers = servers
        self._keys = keys
        self._ledger = ledger
        self._known = known
        self._watchers: tuple[TierWatcher, ...] = ()
        self._process = process
        self._counts = counts
        self._seconds = seconds
        self._list_s = list_s
        self._stop = threading.Event()
        self._after = _START  # the last event that was read …
        self._position: LedgerPosition | None = None  # … and how far that is; None: list all
        self._lock = threading.Lock()  # of the next
        self._pending: dict[str, Entry] = {}  # on a node that did not answer
        self._thread = threading.Thread(target=self._run, name="semshare-redis-events", daemon=True)

    def add(self, watcher: TierWatcher) -> None:
        """Tell this one, too, from now on."""
        self._watchers += (watcher,)

    def start(self, *, from_now_on: bool) -> None:
        """Begin. With `from_now_on` donors that are there are not told, if the server answers."""
        if from_now_on:
            try:
                for donor, entry in self._catch_up().items():
                    self._known.tell(donor, entry)
            except TierUnavailable:
                self._position = None  # all of them are told as soon as it does
        self._thread.start()

    def ask_again(self, wanted: dict[str, Entry]) -> None:
        """Tell of these as soon as their nodes answer."""
        with self._lock:
            for donor, entry in wanted.items():
                before = self._pending.get(donor)
                if before is None or before.revision < entry.revision:
                    self._pending[donor] = entry

    def stop(self, seconds: float) -> None:
        """End the thread, and wait `seconds` for it at most."""
        self._stop.set()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(seconds)

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self._step()
            except TierUnavailable:
                self._position = None  # what was missed meanwhile, nobody knows
                self._stop.wait(_AGAIN_S)
            except Exception:  # the watcher's or ours: it must not end the telling
                self._counts.add("errors")
                log.exception("telling of other processes' donors broke off; all are asked for")
                self._position = None
                self._stop.wait(_AGAIN_S)

    def _step(self) -> None:
        if self._position is None:
            known = self._known.revisions()
            self._tell_differences(known, self._catch_up())
            return
        events = self._read(block=True)
        if not events and not self._up_to_date():
            # One may have come since.
            events = self._read(block=False)
            if not events:
                self._position = None
                return
        self._follow(events)
        if not events:
            with self._lock:
                pending, self._pending = self._pending, {}
            self._tell_of(pending)

    def _catch_up(self) -> dict[str, Entry]:
        """All donors, and where to read on from."""
        self._counts.add("listings")
        with within(self._list_s):
            # Before the listing: what comes while it is made is read after it.
            position = self._ledger.position()
            last = self._servers.run(
                self._keys.events,
                lambda client: client.xrevrange(self._keys.events, count=1),
            )
            events = _events(last)
            self._after = events[0].id if events else _START
            self._position = LedgerPosition(
                position.epoch, events[0].revision if events else position.revision
            )
            return self._ledger.all_entries()

    def _tell_differences(self, known: dict[str, int], there: dict[str, Entry]) -> None:
        """Between what was known before a listing and what it found."""
        for donor in known.keys() - there.keys():
            self._vanished(donor, known[donor])
        self._tell_of(
            {donor: entry for donor, entry in there.items() if known.get(donor) != entry.revision}
        )

    def _read(self, *, block: bool) -> list[_Event]:
        wait_ms = int(_BLOCK_S * 1000) if block else None
        longest_s = _BLOCK_S + self._seconds
        with within(longest_s, step_s=longest_s):
            found = self._servers.run(
                self._keys.events,
                lambda client: client.xread(
                    {self._keys.events: self._after}, count=_EVENTS_AT_ONCE, block=wait_ms
                ),
            )
        return _events(found[0][1]) if found else []

    def _up_to_date(self) -> bool:
        with within(self._seconds):
            return self._ledger.position() == self._position

    def _follow(self, events: list[_Event]) -> None:
        changed: dict[str, _Event] = {}  # the last event of each donor
        for event in events:
            if self._position is None or event.revision != self._position.revision + 1:
                self._position = None  # some are missing
                return
            self._position = LedgerPosition(self._position.epoch, event.revision)
            self._after = event.id
            changed.pop(event.donor, None)  # what this process did since is what counts
            if event.process != self._process:
                self._counts.add("events")
                changed[event.donor] = event
        for event in changed.values():
            if event.kind != "put":
                self._vanished(event.donor, event.revision, forgotten=event.kind == "forgotten")
        asked = [event.donor for event in changed.values() if event.kind == "put"]
        with within(self._seconds):
            entries = self._ledger.entries(asked)
        self._tell_of(
            {
                donor: entry
                for donor, entry in zip(asked, entries, strict=True)
                if entry is not None  # it has gone since, which another event says
            }
        )

    def _tell_of(self, wanted: dict[str, Entry]) -> None:
        if not wanted:
            return
        with self._lock:
            for donor in wanted:
                self._pending.pop(donor, None)  # this is newer
        missing = dict(wanted)
        for found in self._known.fetch(wanted):
            entry = missing.pop(found.donor)
            if found.dropped:
                self.gone(found.donor)
            if found.record is None:
                continue
            with self._known.committing():  # it may be one of our own, entered just now
                new = self._known.tell(found.donor, entry)
            if new:
                for watcher in self._watchers:
                    watcher.appeared(found.record)
        self.ask_again(missing)

    def gone(self, donor: str, *, forgotten: bool = False) -> None:
        """Tell that a donor is there no longer."""
        for watcher in self._watchers:
            if forgotten:
                watcher.forgotten(donor)
            else:
                watcher.vanished(donor)

    def _vanished(self, donor: str, revision: int, *, forgotten: bool = False) -> None:
        with self._lock:
            self._pending.pop(donor, None)
        with self._known.committing():
            was_told = self._known.forget(donor, up_to=revision)
        if was_told:
            self.gone(donor, forgotten=forgotten)


def _events(found: Any) -> list[_Event]:
    return [
        _Event(
            id=name.decode(),
            revision=int(fields[b"revision"]),
            kind=fields[b"kind"].decode(),
            donor=unescaped(fields[b"donor"].decode()),
            process=fields[b"process"].decode(),
        )
        for name, fields in found
    ]
