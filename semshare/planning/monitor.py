"""Steps reuse down where its measured divergence is above what the policy allows."""

from __future__ import annotations

from collections import defaultdict, deque

from semshare.config import ReuseMode, ReusePolicy
from semshare.types import Divergence, Provenance

_STEPS_DOWN: dict[ReuseMode, ReuseMode] = {"semantic": "span", "span": "prefix"}
_WINDOW = 16  # latest measurements that count


def modes_down_from(mode: ReuseMode) -> list[ReuseMode]:
    """A mode and the approximate ones it steps down to, in that order."""
    modes = [mode]
    while (lower := _STEPS_DOWN.get(modes[-1])) in _STEPS_DOWN:
        modes.append(lower)
    return modes


class DivergenceMonitor:
    """Measured divergences by namespace and mode."""

    def __init__(self) -> None:
        self._seen: defaultdict[tuple[str, str], deque[float]] = defaultdict(
            lambda: deque(maxlen=_WINDOW)
        )

    def observe(self, namespace: str, provenance: Provenance, divergence: Divergence) -> None:
        """Take note of one answer's divergence, if anything approximate was used for it.

        One whose prompt was cut says little about reuse, and stepping reuse down would not help it.
        """
        if not provenance.exact and provenance.retained == 1.0:
            self._seen[namespace, provenance.mode].append(divergence.kl)

    def mode_for(self, policy: ReusePolicy, namespace: str) -> ReuseMode:
        """The policy's mode, or the next lower one whose mean divergence is allowed."""
        mode = policy.mode
        while (
            policy.max_divergence is not None
            and mode in _STEPS_DOWN
            and (seen := self._seen.get((namespace, mode)))
            and sum(seen) / len(seen) > policy.max_divergence
        ):
            mode = _STEPS_DOWN[mode]
        return mode

    def reset(self, namespace: str | None) -> None:
        """Forget the measurements of a namespace, or all."""
        for key in [key for key in self._seen if namespace in (None, key[0])]:
            del self._seen[key]
