"""Which donors lie on disk, what they take, and what is still to be deleted: the part in memory."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from semshare.config import EvictionName
from semshare.errors import TierFull
from semshare.kv.tiers.budget import Budget
from semshare.kv.tiers.disk_files import TEMPORARY, blob_names, on_disk
from semshare.kv.tiers.disk_index import IndexedDonor


@dataclass(frozen=True, slots=True)
class Leftover:
    """Rows and files that are to go.

    generation: of the rows; None if they are out already.
    n_bytes:    what the files take, at most.
    aside:      whether to keep the files in quarantine.
    """

    generation: int | None
    names: tuple[str, ...]
    n_bytes: int
    aside: bool = False


def file_bytes(donor: IndexedDonor) -> int:
    """What a donor's blobs take on disk."""
    return sum(map(on_disk, donor.group_bytes))


def counted_bytes(donor: IndexedDonor) -> int:
    """What a donor takes of the budget."""
    return file_bytes(donor) + donor.record_bytes


def file_names(donor: IndexedDonor) -> tuple[str, ...]:
    """Of its blobs."""
    return blob_names(donor.id, donor.generation, len(donor.group_bytes))


def leftover(donor: IndexedDonor, *, aside: bool = False, unfinished: bool = False) -> Leftover:
    """A donor that is to go; `unfinished` if its files may still have their temporary names."""
    names = file_names(donor)
    if unfinished:
        names += tuple(name + TEMPORARY for name in names)
    return Leftover(donor.generation, names, counted_bytes(donor), aside)


class DiskCatalog:
    """Touches no file. Thread-safe; each method takes moments.

    A donor that goes is at once found no longer and becomes a leftover, whose bytes count until its
    rows and files are deleted.
    """

    def __init__(self, budget_bytes: int, policy: EvictionName) -> None:
        self._lock = threading.Lock()
        self._budget = Budget("disk", budget_bytes, policy)
        self._donors: dict[str, IndexedDonor] = {}
        self._leftovers: list[Leftover] = []
        self._used_at: dict[int, float] = {}

    def __len__(self) -> int:
        with self._lock:
            return len(self._donors)

    @property
    def used_bytes(self) -> int:
        """What donors and leftovers take."""
        with self._lock:
            return self._budget.used_bytes + sum(one.n_bytes for one in self._leftovers)

    def load(self, donors: Iterable[IndexedDonor], leftovers: Iterable[Leftover]) -> list[str]:
        """Take over what a folder holds, the donor unused for longest first; returns who must go.

        The newest stay where the budget has become smaller, and pinned ones as far as they fit.
        """
        gone = []
        with self._lock:
            self._leftovers += leftovers
            for donor in donors:
                self._donors[donor.id] = donor
                try:
                    n_bytes = counted_bytes(donor)
                    gone += self._budget.admit(donor.id, n_bytes, pinned=donor.pinned)
                except TierFull:
                    gone.append(donor.id)
            for one in gone:
                self._leftovers.append(leftover(self._donors.pop(one)))
        return gone

    def find(self, donor: str) -> IndexedDonor | None:
        """A donor, if it lies here."""
        with self._lock:
            return self._donors.get(donor)

    def by_generation(self) -> dict[int, IndexedDonor]:
        """All donors."""
        with self._lock:
            return {donor.generation: donor for donor in self._donors.values()}

    def admit(self, donor: IndexedDonor) -> list[str]:
        """Count a donor that will be written; follow it with `keep` or `give_up`.

        What it replaces counts beside it until then. Only where both never fit together does the
        old one go first.

        Returns:
            The donors that go for it.

        Raises:
            TierFull: it doesn't fit beside what is pinned. Nothing has changed.

        """
        n_bytes = counted_bytes(donor)
        with self._lock:
            old = self._donors.get(donor.id)
            beside = 0 if old is None or old.generation == donor.generation else counted_bytes(old)
            try:
                victims = self._budget.admit(donor.id, n_bytes + beside, pinned=True)
            except TierFull:
                if old is None or beside == 0:
                    raise
                victims = self._budget.admit(donor.id, n_bytes, pinned=True)
                self._leftovers.append(leftover(self._donors.pop(donor.id)))
            self._leftovers += [leftover(self._donors.pop(victim)) for victim in victims]
        return victims

    def keep(self, donor: IndexedDonor) -> None:
        """A donor is safe: give it out from now on, and delete what it replaced."""
        with self._lock:
            old = self._donors.get(donor.id)
            self._donors[donor.id] = donor
            if old is not None and old.generation != donor.generation:
                # The commit that put the new rows in has taken the old ones out.
                self._leftovers.append(replace(leftover(old), generation=None))
            self._budget.admit(donor.id, counted_bytes(donor), pinned=donor.pinned)

    def give_up(self, donor: IndexedDonor) -> None:
        """A donor could not be written: what it would have replaced stays, its files are to go."""
        with self._lock:
            old = self._donors.get(donor.id)
            if old is None:
                self._budget.remove(donor.id)
            else:
                self._budget.admit(old.id, counted_bytes(old), pinned=old.pinned)
            if old is None or old.generation != donor.generation:
                self._leftovers.append(leftover(donor, unfinished=True))

    def forget(self, donor: str, *, broken: IndexedDonor | None = None) -> bool:
        """Give a donor out no longer, or, where `broken`, only this one; whether it was there."""
        with self._lock:
            stored = self._donors.get(donor)
            if stored is None or (broken is not None and stored is not broken):
                return False
            del self._donors[donor]
            self._budget.remove(donor)
            self._leftovers.append(leftover(stored, aside=broken is not None))
            return True

    def leftovers(self, most: int) -> list[Leftover]:
        """Some of what is to be deleted."""
        with self._lock:
            return self._leftovers[:most]

    def deleted(self, leftovers: Sequence[Leftover]) -> None:
        """The first ones are gone."""
        with self._lock:
            del self._leftovers[: len(leftovers)]

    def use(self, donor: str) -> int:
        """Count a use; returns how many times of use are to be written."""
        with self._lock:
            if (stored := self._donors.get(donor)) is not None:
                self._budget.used(donor)
                self._used_at[stored.generation] = time.time()
            return len(self._used_at)

    def used_at(self) -> dict[int, float]:
        """When donors, by their generations, were used since that was last written."""
        with self._lock:
            return dict(self._used_at)

    def take_used_at(self) -> dict[int, float]:
        """The same, to be written. Lost if that fails: it is an order, nothing more."""
        with self._lock:
            taken, self._used_at = self._used_at, {}
            return taken
