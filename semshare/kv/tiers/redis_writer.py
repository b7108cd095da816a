"""Putting donors into the server, within the budget that all processes share."""

from __future__ import annotations

import logging
import math
import secrets
import time
from collections.abc import Callable, Sequence

from semshare.errors import TierFull, TierUnavailable
from semshare.kv.tiers.counting import Counts
from semshare.kv.tiers.record_codec import encode_record, encoded_bound
from semshare.kv.tiers.redis_bounds import within
from semshare.kv.tiers.redis_keys import Location, namespace_digest
from semshare.kv.tiers.redis_known import KnownDonors
from semshare.kv.tiers.redis_ledger import Entry, Ledger
from semshare.kv.tiers.redis_settings import RedisTimeouts
from semshare.kv.tiers.redis_values import DonorValues
from semshare.kv.tiers.tier import Buffer, DonorRecord

log = logging.getLogger(__name__)


class DonorWriter:
    """Puts and changes donors. Each call is bounded by the `within` it is made in.

    Args:
        ledger, values, known, counts: of the tier.
        budget_bytes, chunk_bytes, timeouts: as the tier has them.
        evicted: called with each donor that goes to make room for one of ours.

    """

    def __init__(
        self,
        ledger: Ledger,
        values: DonorValues,
        known: KnownDonors,
        counts: Counts,
        *,
        budget_bytes: int,
        chunk_bytes: int,
        timeouts: RedisTimeouts,
        evicted: Callable[[str], None],
    ) -> None:
        self._ledger = ledger
        self._values = values
        self._known = known
        self._counts = counts
        self._budget = budget_bytes
        self._chunk_bytes = chunk_bytes
        self._timeouts = timeouts
        self._evicted = evicted

    def put(self, record: DonorRecord, blobs: Sequence[Buffer]) -> None:
        """Keep a donor, or replace it."""
        where = Location(
            generation=secrets.token_hex(8),
            namespace=namespace_digest(record.namespace),
            chunk_bytes=self._chunk_bytes,
            group_bytes=record.group_bytes,
        )
        over = time.monotonic() + self._timeouts.lease  # before the server's clock starts
        value = encode_record(record)
        try:
            self._reserve(record.id, where, record.n_bytes + encoded_bound(record, value))
            self._values.write(record.id, where, blobs, lambda: over - time.monotonic())
            self._enter(record, where, value)
        except (TierUnavailable, TimeoutError):
            self._abandon(record.id, where)
            raise

    def update(self, record: DonorRecord, where: Location) -> bool:
        """Replace a donor's record; False where values of the donor are missing."""
        before = (where.namespace, where.group_bytes)
        if before != (namespace_digest(record.namespace), record.group_bytes):
            return True  # others have replaced the donor, and this is said of the one before
        with self._known.committing():
            expires_ms = _milliseconds(record.expires_at)
            value = encode_record(record)
            if not self._values.publish(
                record.id, where, value, expires_at_ms=expires_ms, again=True
            ):
                return False
            revision = self._ledger.update(
                record.id, where, pinned=record.pinned, expires_at=record.expires_at
            )
            if revision:
                self._known.tell(record.id, Entry(revision, where))
        return True

    def _reserve(self, donor: str, where: Location, wanted: int) -> None:
        """Make room until there is some."""
        while True:
            answer = self._ledger.reserve(
                donor, where, wanted=wanted, budget=self._budget, lease_s=self._timeouts.lease
            )
            for victim in answer.evicted:
                self._counts.add("evictions")
                self._known.forget(victim)
                self._evicted(victim)
            for victim, place in answer.doomed:
                self._values.delete(victim, place)
            if answer.doomed:
                self._ledger.free([place for _, place in answer.doomed])
            if answer.state == "ok":
                return
            if answer.state == "full":
                raise TierFull(
                    f"{donor} takes {wanted} bytes, and the Redis tier has {answer.most} of its "
                    f"{self._budget} beside what is pinned or being written: raise its budget or "
                    "unpin donors"
                )
            if answer.state == "new":
                # Values of a ledger that was lost lie where nobody counts them.
                self._counts.add("orphans", self._values.sweep(self._ledger.generations))
                self._counts.add("rebuilt")
                self._ledger.open()

    def _enter(self, record: DonorRecord, where: Location, value: bytes) -> None:
        if not self._values.publish(
            record.id, where, value, expires_at_ms=_milliseconds(record.expires_at)
        ):
            raise TierUnavailable(
                f"chunks of {record.id} were lost while it was being written: see whether the "
                "server evicts values (maxmemory-policy must be noeviction) or was restarted"
            )
        with self._known.committing():
            revision, old = self._ledger.commit(
                record.id, where, pinned=record.pinned, expires_at=record.expires_at
            )
            if not revision:
                raise TierUnavailable(
                    f"{record.id} took longer to write than its room was reserved for, or the "
                    "server lost what it knew: try again later"
                )
            self._known.tell(record.id, Entry(revision, where))
        if old is not None:
            self._delete(record.id, old)

    def _abandon(self, donor: str, where: Location) -> None:
        """Undo a put that failed; the server may have done what it gave no answer to."""
        try:
            with within(self._timeouts.command):
                self._ledger.retire(donor, where)
                self._known.forget(donor)
        except (TierUnavailable, TimeoutError):
            log.info("what was written of %s goes when its lease ends", donor)
        else:
            self._delete(donor, where)

    def _delete(self, donor: str, where: Location) -> None:
        """Delete values that are out of the ledger; who needs room does it where this fails."""
        try:
            with within(self._timeouts.command):
                self._values.delete(donor, where)
                self._ledger.free([where])
        except (TierUnavailable, TimeoutError):
            log.info("old values of %s stay until room is needed", donor)


def _milliseconds(at: float) -> str:
    return str(max(0, int(at * 1000))) if math.isfinite(at) else ""
