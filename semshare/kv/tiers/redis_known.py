"""What this process knows of the donors in a server: where they lie, and since which revision."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass

from semshare.errors import BlobCorrupt, TierUnavailable
from semshare.kv.tiers.counting import Counts
from semshare.kv.tiers.record_codec import decode_record
from semshare.kv.tiers.redis_bounds import within
from semshare.kv.tiers.redis_keys import Location, namespace_digest
from semshare.kv.tiers.redis_ledger import Entry, Ledger
from semshare.kv.tiers.redis_values import DonorValues
from semshare.kv.tiers.tier import DonorRecord

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Fetched:
    """What came of asking for a record.

    record:  None where it is not there.
    dropped: the donor has been taken out for it; else it went or was replaced by somebody, who
             tells of that.
    """

    donor: str
    record: DonorRecord | None
    dropped: bool


class KnownDonors:
    """Donors by name, kept up to date by who puts, lists or is told. Thread-safe.

    Readers go by it, so that a known donor is read without asking the ledger, which may be on
    another node, or on one that is lost.

    Args:
        ledger, values: of the tier.
        seconds: bound of each of the round trips that `fetch` and `drop` are made of.

    """

    def __init__(
        self, ledger: Ledger, values: DonorValues, counts: Counts, *, seconds: float
    ) -> None:
        self._ledger = ledger
        self._values = values
        self._counts = counts
        self._seconds = seconds
        self._lock = threading.Lock()
        self._entries: dict[str, Entry] = {}
        self._told: dict[str, int] = {}  # revisions, of fewer donors than the above
        self._committing = threading.RLock()

    def committing(self) -> AbstractContextManager[object]:
        """Held while a donor is entered in the ledger and learned: nobody tells us of our own."""
        return self._committing

    def where(self, donor: str) -> Location | None:
        """Where it lies, as far as is known here."""
        with self._lock:
            entry = self._entries.get(donor)
        return entry.where if entry is not None else None

    def revisions(self) -> dict[str, int]:
        """Of all donors that have been told of."""
        with self._lock:
            return dict(self._told)

    def learn(self, donor: str, entry: Entry) -> None:
        """Remember where it lies."""
        with self._lock:
            self._entries[donor] = entry

    def tell(self, donor: str, entry: Entry) -> bool:
        """Remember that those above know of it; False where they know this revision, or a later.

        They know what they put, what they were told, and what they listed before they watched.
        """
        with self._lock:
            told, before = self._told.get(donor), self._entries.get(donor)
            # Another generation with a lower revision is of a ledger that has begun again.
            if (
                told is not None
                and told >= entry.revision
                and before is not None
                and before.where == entry.where
            ):
                return False
            self._entries[donor], self._told[donor] = entry, entry.revision
            return True

    def forget(self, donor: str, *, up_to: int | None = None) -> bool:
        """Remember it no longer; False where nobody was told of it, or of a later revision."""
        with self._lock:
            told = self._told.get(donor, 0)
            if up_to is not None and told > up_to:
                return False
            self._entries.pop(donor, None)
            return self._told.pop(donor, None) is not None

    def find(self, donor: str) -> Location | None:
        """Where it lies; the ledger is asked where that is not known here."""
        known = self.where(donor)
        if known is not None:
            return known
        entry = self._ledger.entries([donor])[0]
        if entry is None:
            return None
        self.learn(donor, entry)
        return entry.where

    def fetch(self, wanted: dict[str, Entry]) -> Iterator[Fetched]:
        """Records of those whose nodes answer; what is broken, or has lost values, is dropped."""
        with within(self._seconds):
            batches = self._values.batches((donor, one.where) for donor, one in wanted.items())
        silent: set[str] = set()
        for address, batch in batches:
            if address in silent:
                continue
            try:
                with within(self._seconds):
                    values = self._values.records(batch)
                found = [
                    self._fetched(*one, value) for one, value in zip(batch, values, strict=True)
                ]
            except TierUnavailable:
                self._counts.add("errors")
                silent.add(address)
                continue
            yield from found

    def drop(self, donor: str, where: Location | None, *, forgotten: bool = False) -> bool:
        """Take a donor out of the server, only this generation of it if one is given."""
        with within(self._seconds):
            gone = self._ledger.retire(donor, where, forgotten=forgotten)
            self.forget(donor)
            if gone is None:
                return False
            self._values.delete(donor, gone)
            self._ledger.free([gone])
        return True

    def _fetched(self, donor: str, where: Location, value: bytes | None) -> Fetched:
        if value is None:
            # Expired, evicted by the server, on a node that was restarted empty; or replaced since.
            dropped = self.drop(donor, where)
            self._counts.add("lost", int(dropped))
            return Fetched(donor, None, dropped)
        try:
            record = decode_record(value)
            if (
                record.id != donor
                or namespace_digest(record.namespace) != where.namespace
                or record.group_bytes != where.group_bytes
            ):
                raise BlobCorrupt("it is another donor's")
        except BlobCorrupt as problem:
            log.warning("the record of %s in the server is dropped: %s", donor, problem)
            self._counts.add("quarantined")
            return Fetched(donor, None, self.drop(donor, where))
        return Fetched(donor, record, dropped=False)
