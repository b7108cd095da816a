"""What becomes of donors is carried to the tiers behind requests, in one thread."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from semshare.donors.embedders import Vector
from semshare.donors.library import DonorLibrary
from semshare.donors.namespace import Donor
from semshare.donors.records import record_of
from semshare.donors.watcher import Gone
from semshare.engine.fair_lock import FairLock
from semshare.engine.storage_jobs import Jobs
from semshare.errors import NotStored, TierUnavailable
from semshare.kv.arrival import Departure
from semshare.kv.compressed import CompressedView
from semshare.kv.pool import KVPool
from semshare.kv.tiers.blob import encode_donor
from semshare.kv.tiers.stack import TierStack
from semshare.kv.tiers.tier import Buffer, DonorRecord, StoredForm, Tier
from semshare.types import Slots

_REMEMBERED_LOADS = 4096


class StorageWriter:
    """Watches a library: puts its donors into the tiers, and tells it of theirs.

    Args:
        library, pool, compressed: of the engine; `compressed` if its donors are kept in int8.
        lock: the engine's. Whatever touches library or pool takes it.
        stack: the tiers.

    """

    def __init__(
        self,
        library: DonorLibrary,
        pool: KVPool,
        compressed: CompressedView | None,
        lock: FairLock,
        stack: TierStack,
    ) -> None:
        self.jobs = Jobs()
        self._library = library
        self._pool = pool
        self._compressed = compressed
        self._lock = lock
        self._stack = stack
        self._loaded: dict[str, None] = {}  # donors that were loaded lately, the latest last
        library.watcher = self

    def restore(self) -> int:
        """Let all donors of the tiers be found, without their KV; returns how many.

        From then on also those that other processes put into a tier that is shared.
        """
        # Listed first: what a tier tells of a donor that is not in the library yet would be lost.
        # It tells what came since, and nothing is evicted before the first donor is put.
        records = self._stack.records().values()
        with self._lock:
            restored = len(self._library.add_stored(records))
        for tier in self._stack.tiers:
            tier.watch(self)
        return restored

    # ------------------------------------- told by the library, with the lock held

    def kept(self, donor: Donor, vector: Vector) -> None:
        """See `DonorWatcher`."""
        tiers = list(self._stack.tiers)
        self.jobs.add(("put", donor.id), lambda: self._put(donor, vector, tiers))

    def changed(self, donor: Donor) -> None:
        """See `DonorWatcher`."""
        self.jobs.add(("update", donor.id), lambda: self._update(donor))

    def used(self, donor: Donor) -> None:
        """See `DonorWatcher`."""
        if donor.stored is not None:
            self.jobs.add(("used", donor.id), lambda: self._used(donor.id))

    def gone(self, donor_id: str, why: Gone) -> None:
        """See `DonorWatcher`."""
        self._loaded.pop(donor_id, None)
        if why in ("forgotten", "expired"):  # others stay where they are, or where others put them
            self._remove_later(donor_id)

    def _remove_later(self, donor_id: str) -> None:
        self.jobs.add(("remove", donor_id), lambda: self._remove(donor_id), urgent=True)

    # ------------------------------------------------------- told by loads and tiers

    def loaded(self, donor: Donor) -> None:
        """A donor was read from a tier; what is read again moves up."""
        if donor.id in self._loaded:
            self.jobs.add(("promote", donor.id), lambda: self._promote(donor))
        self._loaded.pop(donor.id, None)
        self._loaded[donor.id] = None
        if len(self._loaded) > _REMEMBERED_LOADS:
            self._loaded.pop(next(iter(self._loaded)), None)

    def check(self, donor_id: str) -> None:
        """A tier has a donor no longer: perhaps none has."""
        self.jobs.add(("check", donor_id), lambda: self._check(donor_id))

    def appeared(self, record: DonorRecord) -> None:
        """See `TierWatcher`."""
        with self._lock:
            self._library.add_stored([record])

    def vanished(self, donor: str) -> None:
        """See `TierWatcher`."""
        self.check(donor)

    def forgotten(self, donor: str) -> None:
        """See `TierWatcher`."""
        with self._lock:
            self._library.forgotten_elsewhere(donor)

    # ------------------------------------------------------------------- jobs

    def _put(self, donor: Donor, vector: Vector, tiers: list[Tier]) -> bool:
        """Write a donor into tiers; those that don't answer stay in `tiers`, for the next time."""
        with self._lock:
            self._pool.settle()  # what is over is no longer on its way
            if not self._is_known(donor):
                self._stack.counts.add("too_late")  # it had to go before its turn came
                return True
            lent = self._lent(donor)
        try:
            form, blobs = self._from_tiers(donor) if lent is None else self._encoded(donor, lent)
            donor.stored = form
            record = self._record(donor, vector, form)
            tiers[:] = self._stack.each(lambda tier: tier.put(record, blobs), tiers)
        except TierUnavailable:
            return False  # the tier that it was to be copied from
        finally:
            is_encoded = donor.stored is not None and bool(donor.stored.group_bytes)
            if is_encoded and self._stack.holders(donor.id):
                self._stack.counts.add("donors_written")
            else:
                with self._lock:
                    if not is_encoded or not self._stack.holders(donor.id):
                        self._library.no_longer_stored(donor.id)
        return not tiers

    def _is_known(self, donor: Donor) -> bool:
        """Whether it is this one that requests find, not another of the same prompt."""
        with self._lock:
            return self._library.find_by_id(donor.id) is donor

    def _lent(self, donor: Donor) -> Departure | None:
        """A donor's pages, kept until it is encoded; None if not all of it is in the pool.

        If it has to leave the pool from now on it is not lost. The caller holds the lock.
        """
        if not donor.is_whole or self._pool.arriving(donor.slots):
            return None
        # Its sizes are known once it is encoded.
        donor.stored = donor.stored or StoredForm(self._stack.format.coding, 0, ())
        return self._pool.lend(donor.pages.copy(), donor.slots)

    def _encoded(self, donor: Donor, lent: Departure) -> tuple[StoredForm, Sequence[Buffer]]:
        """A donor's blobs, made of its KV in the pool."""
        try:
            kv_format = self._stack.format
            made = encode_donor(kv_format, donor.ids, lambda layer: self._kv(layer, lent.slots))
        finally:
            lent.over()
            with self._lock:
                self._pool.settle()
        return StoredForm(kv_format.coding, made.head_bytes, made.group_bytes), made.blobs

    def _from_tiers(self, donor: Donor) -> tuple[StoredForm, Sequence[Buffer]]:
        """A donor's blobs as the fastest tier that has them gives them.

        Raises:
            StorageError: none has them whole, or not now.

        """
        form, holders = donor.stored, self._stack.holders(donor.id)
        if form is None or not holders:
            raise NotStored(f"{donor.id} is neither in the pool nor in a tier")
        return form, self._stack.copy(donor.id, donor.ids, form, holders[0])

    def _promote(self, donor: Donor) -> bool:
        """Bring a donor to the tiers above the one that it is read from."""
        holders = self._stack.holders(donor.id)
        above = self._stack.tiers[: self._stack.tiers.index(holders[0])] if holders else ()
        if not above or not self._is_known(donor):
            return True
        form, blobs = self._from_tiers(donor)
        record = self._record(donor, self._library.vectors.of(donor.ids), form)
        self._stack.each(lambda tier: tier.put(record, blobs), above)
        self._stack.counts.add("donors_promoted")
        return True

    def _update(self, donor: Donor) -> bool:
        form = donor.stored
        if form is None or not form.group_bytes or not self._is_known(donor):
            return True  # what is put later says it
        record = self._record(donor, self._library.vectors.of(donor.ids), form)
        return not self._stack.each(lambda tier: tier.update(record))

    def _used(self, donor_id: str) -> bool:
        self._stack.each(lambda tier: tier.used(donor_id))
        return True  # a use that is not counted is no loss

    def _remove(self, donor_id: str) -> bool:
        with self._lock:
            known = self._library.find_by_id(donor_id)
            if known is not None and known.stored is not None:
                return True  # it has been remembered again, and put
        return not self._stack.each(lambda tier: tier.remove(donor_id))

    def _check(self, donor_id: str) -> bool:
        with self._lock:
            if not self._stack.holders(donor_id):
                self._pool.settle()  # or it would seem to be in the pool
                self._library.no_longer_stored(donor_id)
        return True

    def _record(self, donor: Donor, vector: Vector, form: StoredForm) -> DonorRecord:
        with self._lock:
            return record_of(donor, vector, self._library.vectors.maker, form)

    def _kv(self, layer: int, slots: Slots) -> tuple[Tensor, Tensor]:
        """Keys and values `[n, kv_heads, d]` of one layer, on the CPU."""
        at = torch.from_numpy(slots).to(self._pool.all_keys.device)
        if slots[0] >= self._pool.n_slots:
            if self._compressed is None:
                raise AssertionError("nothing here can read compressed donors")
            keys, values = self._compressed.read(layer, at)
        else:
            keys, values = self._pool.keys[layer][at], self._pool.values[layer][at]
        return keys.cpu(), values.cpu()
