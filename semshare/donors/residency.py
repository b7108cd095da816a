"""Which donors have KV in the pool, whole or in part, and what they hold there.

A donor enters the pool with all of its KV, and a path in the prefix tree unless it is compressed.
Once a tier below the pool has it too, it may leave (`demote`) and be found as before; its tokens
come back a page at a time, as requests want them (`expect`). Without a path, its exact prefix is
found among `stored_prefixes`.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray

from semshare.donors.namespace import Donor, Namespace
from semshare.donors.records import all_stored
from semshare.kv.pool import KVPool
from semshare.types import STORED, Pages


class Residency:
    """Pages and paths of the donors of one library.

    Args:
        pool: whose pages they hold.
        published: the space of what is published.

    """

    def __init__(self, pool: KVPool, published: Namespace) -> None:
        self._pool = pool
        self._published = published
        self._holders: dict[str, Donor] = {}
        self._below: set[str] = set()
        self._returned: set[str] = set()  # holders whose pages came from below

    @property
    def holders(self) -> Collection[Donor]:
        """The donors that hold pages."""
        return self._holders.values()

    @property
    def has_any_below(self) -> bool:
        """Whether there is a donor that may not be in the pool as a whole."""
        return bool(self._below)

    def may_leave(self, donor: Donor) -> bool:
        """Whether a holder's pages may be had: they are not pinned, or a tier has them as well.

        A pinned donor that entered the pool stays in it. What requests bring back of one does not:
        pinned donors below may be more than the pool holds.
        """
        return not donor.pinned or (donor.stored is not None and donor.id in self._returned)

    def entered(self, donor: Donor) -> None:
        """A donor is new, on pages that it holds."""
        self._holders[donor.id] = donor

    def below(self, space: Namespace, donors: Sequence[Donor]) -> None:
        """Donors have no path in a space's prefix tree: what is exact of them is found otherwise.

        KV in int8 is not: it serves as spans and by meaning only.
        """
        self._below.update(donor.id for donor in donors)
        exact = [
            (donor.id, donor.ids)
            for donor in donors
            if donor.stored is not None
            and donor.stored.coding == "full"
            and donor.id not in space.stored_prefixes
        ]
        space.stored_prefixes.add_many(exact)

    def expect(self, donor: Donor, numbers: NDArray[np.int64], pages: Pages) -> None:
        """Some of a donor's tokens come into the pool; plans may name their slots from now on.

        Args:
            donor: below the pool, at least in part.
            numbers: `[k]` which of its pages: page j has its tokens from j × page size on.
            pages: `[k]` of the pool, with one reference each, which the donor takes over.

        """
        size = self._pool.page_size
        missing = donor.slots[numbers * size] == STORED
        self._pool.release(pages[~missing])  # another request has loaded these meanwhile
        numbers, pages = numbers[missing], pages[missing]
        positions = (numbers[:, None] * size + np.arange(size)).reshape(-1)
        is_token = positions < len(donor.ids)
        slots = donor.slots.copy()  # plans may look at those of before
        slots[positions[is_token]] = self._pool.slots_of(pages)[is_token]
        donor.slots = slots
        donor.pages = np.concatenate((donor.pages, pages))
        self._holders[donor.id] = donor
        self._returned.add(donor.id)

    def give_up(self, donor: Donor, pages: Pages) -> None:
        """Undo `expect`, as far as the donor still holds these pages: the KV has not come."""
        pages = np.intersect1d(pages, donor.pages)
        slots = donor.slots.copy()
        slots[np.isin(slots // self._pool.page_size, pages)] = STORED
        donor.slots = slots
        donor.pages = np.setdiff1d(donor.pages, pages)
        self._pool.release(pages)
        # It may have been removed, and remembered anew, while its KV was on its way.
        if not len(donor.pages) and self._holders.get(donor.id) is donor:
            self._no_longer_holds(donor)

    def demote(self, space: Namespace, donor: Donor) -> None:
        """Give the pages of a stored donor back; it stays to be found."""
        if donor.stored is None:
            raise AssertionError("what no tier has would be lost")
        self._leave_trees(space, donor)
        self._give_back(donor)
        self.below(space, [donor])
        if donor.published:
            self.below(self._published, [donor])

    def left(self, space: Namespace, donor: Donor) -> None:
        """A donor is found no longer: nothing of it stays, its cached prefix neither."""
        if donor.node is None:
            cached = space.prefixes.match(donor.ids)
            if len(donor.ids) - cached.tokens < self._pool.page_size:  # and not just its beginning
                space.prefixes.forget(cached.node)
        self._leave_trees(space, donor)
        self._no_longer_below(space, donor)
        self._below.discard(donor.id)
        self._give_back(donor)

    def cleared(self, donor: Donor) -> None:
        """A donor goes together with all of its namespace."""
        self._below.discard(donor.id)
        self._give_back(donor)

    def published(self, donor: Donor) -> None:
        """A donor is found by all from now on: on the same pages, nothing is copied."""
        if donor.node is not None:
            prefixes = self._published.prefixes
            donor.published_node = prefixes.insert(donor.ids, donor.pages, owner=donor.id)
            prefixes.lock(donor.published_node)
        else:
            self.below(self._published, [donor])

    def unpublished(self, donor: Donor) -> None:
        """Undo `published`."""
        self._leave_published(donor)
        self._no_longer_below(self._published, donor)

    def _leave_trees(self, space: Namespace, donor: Donor) -> None:
        self._leave_published(donor)
        if donor.node is not None:
            space.prefixes.unlock(donor.node)
            space.prefixes.forget(donor.node)
            donor.node = None

    def _leave_published(self, donor: Donor) -> None:
        if donor.published_node is not None:
            self._published.prefixes.unlock(donor.published_node)
            self._published.prefixes.forget(donor.published_node)
            donor.published_node = None

    @staticmethod
    def _no_longer_below(space: Namespace, donor: Donor) -> None:
        if donor.id in space.stored_prefixes:
            space.stored_prefixes.remove(donor.id)

    def _give_back(self, donor: Donor) -> None:
        self._pool.release(donor.pages)
        donor.pages = np.empty(0, np.int64)
        donor.slots = all_stored(len(donor.ids))  # of what is others' by now nothing is read
        self._no_longer_holds(donor)

    def _no_longer_holds(self, donor: Donor) -> None:
        self._holders.pop(donor.id, None)
        self._returned.discard(donor.id)
