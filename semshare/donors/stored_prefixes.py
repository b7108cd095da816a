"""Finds which of very many stored prompts begins as a target does, without an index of pages.

Sorted by their ids, prompts with a common beginning stand together, and none shares more of a
target's beginning than one of the two beside its place among them: the observation that suffix
arrays rest on (Manber and Myers, SIAM J. Computing 1993). So a sorted list of names is enough.
"""

from __future__ import annotations

import sys
from bisect import bisect_left
from collections.abc import Iterable

import numpy as np

from semshare.types import Ids


class StoredPrefixes:
    """Exact beginnings of one namespace's donors that have no KV in the pool.

    A donor costs its place in a list and in a dictionary, next to the ids that are its own anyway.
    Adding and removing moves the list's pointers, 0.1 ms among 100,000.

    Args:
        page_size: tokens a page; only whole ones are matched.

    """

    def __init__(self, page_size: int) -> None:
        self._page_size = page_size
        self._ids: dict[str, Ids] = {}
        self._order: list[str] = []  # by ids

    def __len__(self) -> int:
        return len(self._order)

    def __contains__(self, donor: str) -> bool:
        return donor in self._ids

    @property
    def nbytes(self) -> int:
        """Bytes of the list and the dictionary, without names and ids."""
        return sys.getsizeof(self._order) + sys.getsizeof(self._ids)

    def add(self, donor: str, ids: Ids) -> None:
        """Let a donor be found by the beginning of its ids `[n]`, which are kept, not copied.

        Raises:
            ValueError: the donor is there already.

        """
        self._keep(donor, ids)
        self._order.insert(self._place(ids), donor)

    def add_many(self, donors: Iterable[tuple[str, Ids]]) -> None:
        """Add many donors at once; takes 4 bytes more for every token of all donors meanwhile.

        Raises:
            ValueError: one of them is there already.

        """
        several = list(donors)
        if len(several) == 1:
            self.add(*several[0])
            return
        for donor, ids in several:
            self._keep(donor, ids)
        self._order = sorted(self._ids, key=self._key_of)

    def remove(self, donor: str) -> None:
        """Forget a donor."""
        at = self._place(self._ids[donor])
        del self._order[self._order.index(donor, at)]  # it is there, or others of the same ids are
        del self._ids[donor]

    def match(self, ids: Ids, limit: int) -> tuple[str, int] | None:
        """A donor with the longest common beginning, and its tokens in whole pages.

        Args:
            ids: `[n]` of the target.
            limit: most tokens to match.

        Returns:
            None where no donor has the first page.

        """
        target = ids[:limit]
        at = self._place(target)
        beside = self._order[max(at - 1, 0) : at + 1]
        best = max(((self._common(name, target), name) for name in beside), default=(0, ""))
        return (best[1], best[0]) if best[0] else None

    def _keep(self, donor: str, ids: Ids) -> None:
        if donor in self._ids:
            raise ValueError(f"donor {donor!r} is indexed already: remove it first")
        self._ids[donor] = ids

    def _place(self, ids: Ids) -> int:
        """The first place whose donor's ids are not before these."""
        return bisect_left(self._order, _key(ids), key=self._key_of)

    def _key_of(self, donor: str) -> bytes:
        return _key(self._ids[donor])

    def _common(self, donor: str, target: Ids) -> int:
        own = self._ids[donor]
        n = min(len(own), len(target))
        differing = np.flatnonzero(own[:n] != target[:n])
        tokens = int(differing[0]) if len(differing) else n
        return tokens - tokens % self._page_size


def _key(ids: Ids) -> bytes:
    """Bytes that compare as ids do, which are never negative."""
    return ids.astype(">u4").tobytes()
