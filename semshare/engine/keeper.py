"""What stays after a request: exact prefixes, donors, and prompts that wait to become donors.

The one place where KV enters the prefix tree or a donor, so the one place that must refuse
approximate KV.
"""

from __future__ import annotations

from types import EllipsisType

import numpy as np

from semshare.config import ReusePolicy
from semshare.donors.library import DonorLibrary
from semshare.engine.limits import LimitsOf, unlimited
from semshare.engine.rows import AttentionRecord
from semshare.engine.served import Served
from semshare.errors import QuotaExceeded
from semshare.kv.sequence import KVSequence
from semshare.types import DonorInfo, Ids, RememberState, Scores

# Prompts that wait to be computed in full, at most, of all namespaces that share their limits;
# later ones are not remembered.
MAX_PENDING = 256


class Keeper:
    """Keeps exact KV.

    limits_of: how much of it each namespace may keep as donors; without bounds at first.

    Args:
        library: where donors and prefixes live.

    """

    def __init__(self, library: DonorLibrary) -> None:
        self._library = library
        self.limits_of: LimitsOf = unlimited
        self._pending: dict[tuple[str, bytes], Ids] = {}
        self._taken: set[tuple[str, bytes]] = set()

    @property
    def pending(self) -> int:
        """Prompts that wait to be computed in full."""
        return len(self._pending)

    def take_pending(self) -> tuple[str, Ids] | None:
        """The prompt that waits longest, and its namespace; it is being computed now.

        Those that their namespace has no room for any more are dropped.
        """
        for key in list(self._pending):
            ids = self._pending.pop(key)
            if self._has_room(key[0], ids):
                self._taken.add(key)
                return key[0], ids
        return None

    def keep_pending(self, served: Served, history: Scores) -> DonorInfo | None:
        """Make a prompt that was taken a donor, unless it was dropped while it was computed."""
        key = (served.namespace, served.ids.tobytes())
        if key not in self._taken:
            return None
        try:
            donor = self.keep_donor(served, served.sequence, history, pinned=False)
        except QuotaExceeded:  # others have taken the room meanwhile
            donor = None
        self._taken.discard(key)
        return donor

    def return_pending(self, namespace: str, ids: Ids) -> None:
        """Let a prompt that was taken wait again, behind the others, unless it was dropped."""
        key = (namespace, ids.tobytes())
        if key in self._taken:
            self._taken.discard(key)
            self._pending[key] = ids  # it had its place, however many have come meanwhile

    def add_pending(self, namespace: str, ids: Ids) -> bool:
        """Let a prompt wait to be computed in full, unless too many wait already."""
        key = (namespace, ids.tobytes())
        prefix = self.limits_of(namespace).prefix
        alike = sum(name.startswith(prefix) for name, _ in self._pending)
        if key not in self._pending and alike >= MAX_PENDING:
            return False
        self._pending[key] = ids
        return True

    def drop_all_pending(self, namespace: str | None) -> None:
        """No prompt of a namespace, or of any, waits any longer, or is kept once it is computed."""
        for key in [key for key in self._pending if namespace in (None, key[0])]:
            del self._pending[key]
        self._taken = {key for key in self._taken if namespace not in (None, key[0])}

    def cache_prefix(self, served: Served, ids: Ids, sequence: KVSequence) -> None:
        """Let a sequence serve later prefix hits, if all of it is exact.

        Args:
            served: the request.
            ids: the tokens of its sequence whose KV has been computed.
            sequence: their KV.

        """
        if served.exact and served.planned.mode != "off":
            self._library.cache_prefix(served.namespace, ids, sequence.pages_in_order(len(ids)))

    def check_room(self, namespace: str, ids: Ids) -> None:
        """Raise `QuotaExceeded` where a prompt is no donor yet and must not become one."""
        limits = self.limits_of(namespace)
        if limits.max_donors is None and limits.max_donor_bytes is None:
            return
        if not self._library.holds(namespace, ids):
            donors, donor_bytes = self._library.usage(limits.prefix)
            limits.check_donor(donors, donor_bytes, self._library.bytes_of(len(ids)))

    def _has_room(self, namespace: str, ids: Ids) -> bool:
        try:
            self.check_room(namespace, ids)
        except QuotaExceeded:
            return False
        return True

    def keep_donor(
        self,
        served: Served,
        sequence: KVSequence,
        history: Scores,
        *,
        pinned: bool,
        ttl_s: float | EllipsisType | None = ...,
    ) -> DonorInfo:
        """Make the prompt a donor.

        Args:
            served: the request, all of whose KV is exact.
            sequence: begins with the prompt.
            history: `[n]` attention that answers paid to its tokens.
            pinned: never evicted.
            ttl_s: seconds until it expires; None: it stays; `...` leaves a donor's as it is.

        Raises:
            QuotaExceeded: its namespace may keep no more.

        """
        if not served.exact:
            raise AssertionError("approximate KV can't become a donor")
        ids, namespace = served.ids, served.namespace
        known = self._library.renew(namespace, ids, history=history, pinned=pinned, ttl_s=ttl_s)
        if known is not None:
            return known.info
        self.check_room(namespace, ids)
        donor = self._library.add(
            namespace,
            ids,
            sequence.pages_in_order(len(ids)),
            history=history,
            pinned=pinned,
            ttl_s=None if isinstance(ttl_s, EllipsisType) else ttl_s,
        )
        return donor.info

    def remember_target(
        self,
        served: Served,
        sequence: KVSequence,
        policy: ReusePolicy,
        record: AttentionRecord | None,
    ) -> tuple[RememberState, DonorInfo | None]:
        """Do what the policy says about remembering an answered prompt, if there is room for it."""
        ids = served.ids
        if not policy.remember or not self._has_room(served.namespace, ids):
            return "no", None
        nothing = np.empty(0, np.float32)
        if not served.exact:
            known = self._library.renew(served.namespace, ids, history=nothing, pinned=False)
            if known is not None:
                return "done", known.info
            return ("pending" if self.add_pending(served.namespace, ids) else "no"), None
        history = record.upto(len(ids)) if record is not None else nothing
        return "done", self.keep_donor(served, sequence, history, pinned=False)
