"""Who begins next: namespaces take turns, and nobody computes what another is computing."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from semshare.engine.generation import Generation, Request
from semshare.engine.served import Served
from semshare.types import Ids


class Admission:
    """Requests that wait for slots, or for a prompt that is being computed.

    Args:
        cached_tokens: tokens of the longest exact prefix of some ids that is cached in a namespace.
        page_size: prefixes are cached in whole pages.

    """

    def __init__(self, cached_tokens: Callable[[Ids, str], int], page_size: int) -> None:
        self._cached_tokens = cached_tokens
        self._page_size = page_size
        self.waiting: list[Generation] = []

    def next(
        self, active: Sequence[Generation], prefilling: Sequence[Generation]
    ) -> Generation | None:
        """Whose turn it is; nobody's where all that wait had better wait longer.

        Args:
            active: requests that hold slots.
            prefilling: those of them that are being prefilled.

        """

        def turn(one: Generation) -> tuple[int, int]:
            namespace = one.request.namespace
            held = sum(other.request.namespace == namespace for other in active)
            return held, one.arrival

        ready = [one for one in self.waiting if not self._is_computed_by(prefilling, one)]
        return min(ready, key=turn, default=None)

    def followers_of(self, leader: Generation) -> list[Generation]:
        """Those that this prompt's KV serves as well, because theirs is the same."""
        return [one for one in self.waiting if _serves(leader, one)]

    def _is_computed_by(self, prefilling: Sequence[Generation], one: Generation) -> bool:
        """Whether a prompt that is being prefilled will be of more use than what is cached.

        The same prompt is shared as a whole, however it is computed. Otherwise what both begin with
        is worth waiting for, if it will be cached.
        """
        if one.request.policy.mode == "off":
            return False
        return any(
            _serves(other, one) or self._will_cache_more(other.prompt, one.request)
            for other in prefilling
        )

    def _will_cache_more(self, served: Served, request: Request) -> bool:
        if served.forgotten or served.namespace != request.namespace:
            return False
        if not served.exact or served.planned.mode == "off":
            return False
        n = min(len(served.ids), len(request.ids) - 1)
        same = np.append(served.ids[:n] == request.ids[:n], False)
        common = int(np.argmin(same))
        common -= common % self._page_size
        return common > self._cached_tokens(request.ids, request.namespace)


def _serves(leader: Generation, other: Generation) -> bool:
    return not leader.prompt.forgotten and leader.request.computes_the_same_as(other.request)
