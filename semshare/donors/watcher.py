"""Who wants to know what becomes of donors: storage, if there is any."""

from __future__ import annotations

from typing import Literal, Protocol

from semshare.donors.embedders import Vector
from semshare.donors.namespace import Donor

# Why a donor is found no longer. "lost": no tier has what is not in the pool.
Gone = Literal["forgotten", "expired", "evicted", "lost"]


class DonorWatcher(Protocol):
    """Is told in the middle of things, with the engine's lock held: it must not do any work."""

    def kept(self, donor: Donor, vector: Vector) -> None:
        """A prompt has become a donor; `vector` is its prompt's."""

    def changed(self, donor: Donor) -> None:
        """What is said of a donor beside its KV has changed."""

    def used(self, donor: Donor) -> None:
        """A donor was of use to a request."""

    def gone(self, donor_id: str, why: Gone) -> None:
        """A donor is found no longer, or had expired before anybody found it."""


class Nobody:
    """Does not want to know."""

    def kept(self, donor: Donor, vector: Vector) -> None:
        """See `DonorWatcher`."""

    def changed(self, donor: Donor) -> None:
        """See `DonorWatcher`."""

    def used(self, donor: Donor) -> None:
        """See `DonorWatcher`."""

    def gone(self, donor_id: str, why: Gone) -> None:
        """See `DonorWatcher`."""
