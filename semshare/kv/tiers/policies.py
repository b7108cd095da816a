"""Which donor a tier drops first: the one unused for longest, or by S3-FIFO. Sizes are in bytes.

A policy orders donors and holds none; `semshare.kv.tiers.budget` asks it only once it is certain
that dropping helps. Not thread-safe: the tier locks.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Container, Iterator, Mapping
from typing import Protocol

from semshare.config import EvictionName


class EvictionPolicy(Protocol):
    """An order of donors."""

    def add(self, donor: str, n_bytes: int) -> None:
        """Order a donor too. One that is ordered already keeps its place and has a new size."""

    def used(self, donor: str) -> None:
        """Count a use of a donor; nothing happens where it is not ordered."""

    def remove(self, donor: str) -> None:
        """Forget a donor that went for another reason than room."""

    def victims(self, pinned: Container[str]) -> Iterator[str]:
        """The donors to drop, the first first, each forgotten as it comes; none that is pinned.

        Ends when all that are left are pinned. Nothing else may be called while it runs.
        """


class Lru:
    """Drops the donor whose last use, or whose coming, is longest ago."""

    def __init__(self) -> None:
        self._order: OrderedDict[str, None] = OrderedDict()

    def add(self, donor: str, n_bytes: int) -> None:  # noqa: ARG002 - sizes change no order here
        """See `EvictionPolicy`."""
        self._order.setdefault(donor)

    def used(self, donor: str) -> None:
        """See `EvictionPolicy`."""
        if donor in self._order:
            self._order.move_to_end(donor)

    def remove(self, donor: str) -> None:
        """See `EvictionPolicy`."""
        self._order.pop(donor, None)

    def victims(self, pinned: Container[str]) -> Iterator[str]:
        """See `EvictionPolicy`."""
        while (oldest := _first(self._order, pinned)) is not None:
            del self._order[oldest]
            yield oldest


SMALL_SHARE = 0.1  # of the budget, for donors that have yet to show that they are used again
MOST_USES = 3  # two bits, as in the paper
USES_TO_STAY = 2  # of a donor in the small queue, so that it goes on to the main one


class S3Fifo:
    """S3-FIFO: three queues, first in first out (Yang et al., SOSP 2023, algorithm 1).

    A new donor enters the *small* queue. At its end, one used at least twice goes on to the *main*
    queue, any other is dropped and its name kept in the *ghost* queue: should it come again while
    it is known there, it enters the main queue at once. At the main queue's end a donor that was
    used begins anew with one use less, any other is dropped. Donors used once therefore pass
    through a tenth of the budget and never push out those that are used again.

    Where the paper counts objects, this counts bytes. A pinned donor at an end moves on (small to
    main, main to its own beginning) and keeps its uses.
    """

    def __init__(self, budget_bytes: int) -> None:
        self._small = _Queue()
        self._main = _Queue()
        self._ghosts = _Queue()
        self._uses: dict[str, int] = {}
        self._small_bytes = int(budget_bytes * SMALL_SHARE)
        self._ghost_bytes = budget_bytes - self._small_bytes  # as much as the main queue's share

    def add(self, donor: str, n_bytes: int) -> None:
        """See `EvictionPolicy`."""
        for queue in (self._small, self._main):
            if donor in queue:
                queue.resize(donor, n_bytes)
                return
        queue = self._main if donor in self._ghosts else self._small
        self._ghosts.discard(donor)
        queue.push(donor, n_bytes)
        self._uses[donor] = 0

    def used(self, donor: str) -> None:
        """See `EvictionPolicy`."""
        if donor in self._uses:
            self._uses[donor] = min(self._uses[donor] + 1, MOST_USES)

    def remove(self, donor: str) -> None:
        """See `EvictionPolicy`."""
        self._small.discard(donor)
        self._main.discard(donor)
        self._uses.pop(donor, None)

    def victims(self, pinned: Container[str]) -> Iterator[str]:
        """See `EvictionPolicy`."""
        while True:
            small_first = self._small.n_bytes >= self._small_bytes
            ways = (self._from_small, self._from_main)
            for take in ways if small_first else reversed(ways):
                if (victim := take(pinned)) is not None:
                    break
            else:
                return
            del self._uses[victim]
            yield victim

    def _from_small(self, pinned: Container[str]) -> str | None:
        """Walk the small queue's end until something is dropped; None if all of it moved on."""
        while self._small:
            donor, n_bytes = self._small.pop()
            if donor in pinned:
                self._main.push(donor, n_bytes)
            elif self._uses[donor] >= USES_TO_STAY:
                self._uses[donor] = 0
                self._main.push(donor, n_bytes)
            else:
                self._ghosts.push(donor, n_bytes)
                while self._ghosts.n_bytes > self._ghost_bytes:
                    self._ghosts.pop()
                return donor
        return None

    def _from_main(self, pinned: Container[str]) -> str | None:
        """Walk the main queue's end until something is dropped; None if all of it is pinned."""
        while _first(self._main.sizes, pinned) is not None:
            donor, n_bytes = self._main.pop()
            if donor not in pinned:
                if self._uses[donor] == 0:
                    return donor
                self._uses[donor] -= 1
            self._main.push(donor, n_bytes)
        return None


POLICIES: Mapping[EvictionName, Callable[[int], EvictionPolicy]] = {
    "lru": lambda budget_bytes: Lru(),  # noqa: ARG005 - the order does not depend on it
    "s3-fifo": S3Fifo,
}


class _Queue:
    """Donors and their sizes, the oldest first."""

    def __init__(self) -> None:
        self.sizes: OrderedDict[str, int] = OrderedDict()
        self.n_bytes = 0

    def __contains__(self, donor: str) -> bool:
        return donor in self.sizes

    def __bool__(self) -> bool:
        return bool(self.sizes)

    def push(self, donor: str, n_bytes: int) -> None:
        self.sizes[donor] = n_bytes
        self.n_bytes += n_bytes

    def pop(self) -> tuple[str, int]:
        donor, n_bytes = self.sizes.popitem(last=False)
        self.n_bytes -= n_bytes
        return donor, n_bytes

    def resize(self, donor: str, n_bytes: int) -> None:
        self.n_bytes += n_bytes - self.sizes[donor]
        self.sizes[donor] = n_bytes

    def discard(self, donor: str) -> None:
        self.n_bytes -= self.sizes.pop(donor, 0)


def _first(order: Mapping[str, object], pinned: Container[str]) -> str | None:
    """The oldest that is not pinned."""
    return next((donor for donor in order if donor not in pinned), None)
