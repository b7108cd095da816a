"""Who lies in a tier, how many bytes they take, and who goes for whom."""

from __future__ import annotations

from semshare.config import EvictionName
from semshare.errors import TierFull
from semshare.kv.tiers.policies import POLICIES


class Budget:
    """Counts a tier's donors against its hard limit. Not thread-safe: the tier locks.

    A tier asks `admit` first, lets go of the victims, then writes; should writing fail, it says
    `remove`. As what is being written counts from `admit` on, and the victims are gone before it
    is written, the tier never takes more than the limit, not even for a moment.
    """

    def __init__(self, tier: str, budget_bytes: int, policy: EvictionName) -> None:
        self.budget_bytes = budget_bytes
        self.used_bytes = 0
        self._tier = tier
        self._policy = POLICIES[policy](budget_bytes)
        self._sizes: dict[str, int] = {}
        self._pinned: set[str] = set()

    def __contains__(self, donor: str) -> bool:
        return donor in self._sizes

    def __len__(self) -> int:
        return len(self._sizes)

    def admit(self, donor: str, n_bytes: int, *, pinned: bool) -> list[str]:
        """Count a donor of `n_bytes`, or give one that is counted another size.

        Of a donor that is counted already only the new size counts: a tier that replaces one lets
        go of the old bytes before it writes. Its place in the policy's order stays.

        Returns:
            Donors that are counted no longer, to be dropped before anything is written: unpinned
            ones in the policy's order until there is room, and never `donor` itself.

        Raises:
            TierFull: what is pinned leaves less than `n_bytes`. Nothing has changed.

        """
        held_back = sum(self._sizes[other] for other in self._pinned if other != donor)
        if n_bytes > self.budget_bytes - held_back:
            raise TierFull(
                f"donor {donor} takes {n_bytes} bytes; tier {self._tier} has {self.budget_bytes}, "
                f"of which pinned donors hold {held_back}: raise the tier's budget, unpin donors, "
                "or store KV in int8"
            )
        self._pinned.add(donor)  # for now, so that it is no victim of itself
        victims = []
        order = self._policy.victims(self._pinned)
        while self.used_bytes - self._sizes.get(donor, 0) + n_bytes > self.budget_bytes:
            victim = next(order)  # there is one: what is pinned alone would fit beside `donor`
            self.used_bytes -= self._sizes.pop(victim)
            victims.append(victim)
        self.used_bytes += n_bytes - self._sizes.get(donor, 0)
        self._sizes[donor] = n_bytes
        self._policy.add(donor, n_bytes)
        self.pin(donor, pinned)
        return victims

    def pin(self, donor: str, pinned: bool) -> None:
        """Keep a donor from being a victim, or allow it again; nothing if it is not counted."""
        if pinned and donor in self._sizes:
            self._pinned.add(donor)
        else:
            self._pinned.discard(donor)

    def used(self, donor: str) -> None:
        """Count a use, for the policy; nothing if the donor is not counted."""
        self._policy.used(donor)

    def remove(self, donor: str) -> None:
        """Count a donor no longer; nothing if it is not counted."""
        self.used_bytes -= self._sizes.pop(donor, 0)
        self._pinned.discard(donor)
        self._policy.remove(donor)
