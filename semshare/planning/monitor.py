"""Steps reuse down where its measured divergence is above a bound, and up again once it is not."""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from collections.abc import Iterable

from semshare.config import ReuseMode, ReusePolicy
from semshare.types import Divergence, Provenance

MEAN_OVER = 16  # latest measurements whose mean is held against the bound
CLEAN_BEFORE_UP = 8  # measurements in a row, each within the bound, that end a step down
REMEMBERED = 64  # latest measurements that count at all, by namespace and mode
_MAX_SEEN = 4096  # namespaces and modes with measurements

_STEPS_DOWN: dict[ReuseMode, ReuseMode] = {"semantic": "span", "span": "prefix"}


def modes_down_from(mode: ReuseMode) -> list[ReuseMode]:
    """A mode and the approximate ones it steps down to, in that order."""
    modes = [mode]
    while (lower := _STEPS_DOWN.get(modes[-1])) in _STEPS_DOWN:
        modes.append(lower)
    return modes


def is_stepped_down(measured: Iterable[float], bound: float, *, cut: bool = False) -> bool:
    """Whether a mode with these measurements, oldest first, is not to be used under a bound.

    It steps down where the mean of the latest `MEAN_OVER`, or of all there are, is above the
    bound, and up once `CLEAN_BEFORE_UP` in a row are each within it. Those before the clean ones
    are then forgotten: one large divergence would hold the mean up long after its cause has gone.

    Args:
        measured: KL in nats. NaN is above every bound.
        cut: there were others before these, so that the mean of the first few says nothing.
        bound: KL in nats.

    """
    latest: deque[float] = deque(maxlen=MEAN_OVER)
    stepped_down, clean = False, 0
    for divergence in measured:
        latest.append(divergence)
        if stepped_down:
            clean = clean + 1 if divergence <= bound else 0
            if clean == CLEAN_BEFORE_UP:
                stepped_down = cut = False
                latest = deque(list(latest)[-clean:], maxlen=MEAN_OVER)
        elif (len(latest) == MEAN_OVER or not cut) and not sum(latest) / len(latest) <= bound:
            stepped_down, clean = True, 0
    return stepped_down


class DivergenceMonitor:
    """Measured divergences by namespace and mode.

    No state is kept for a bound: requests bring bounds of their own, as many as they like, and
    each is held against the same measurements.

    Args:
        default_bound: of policies without `max_divergence`, KL in nats; None: they have none.

    """

    def __init__(self, default_bound: float | None = None) -> None:
        self._default_bound = default_bound
        # Clients name namespaces, so the one measured longest ago makes room.
        self._seen: OrderedDict[tuple[str, str], deque[float]] = OrderedDict()

    def observe(self, namespace: str, provenance: Provenance, divergence: Divergence) -> bool:
        """Take note of one answer's divergence, if anything approximate was used for it.

        One whose prompt was cut says little about reuse, and stepping reuse down would not help it.

        Returns:
            Whether it counts.

        """
        counts = not provenance.exact and provenance.retained == 1.0
        if counts:
            key = namespace, provenance.mode
            self._seen.setdefault(key, deque(maxlen=REMEMBERED)).append(divergence.kl)
            self._seen.move_to_end(key)
            if len(self._seen) > _MAX_SEEN:
                self._seen.popitem(last=False)
        return counts

    def bound_of(self, policy: ReusePolicy) -> float | None:
        """What a policy's divergence is held to, KL in nats; None: nothing."""
        bound = self._default_bound if policy.max_divergence is None else policy.max_divergence
        return None if bound is None or math.isinf(bound) else bound

    def mode_for(self, policy: ReusePolicy, namespace: str) -> ReuseMode:
        """The policy's mode, or the next lower one that is not stepped down."""
        mode, bound = policy.mode, self.bound_of(policy)
        while (
            bound is not None
            and mode in _STEPS_DOWN
            and (seen := self._seen.get((namespace, mode)))
            and is_stepped_down(seen, bound, cut=len(seen) == REMEMBERED)
        ):
            mode = _STEPS_DOWN[mode]
        return mode

    def reset(self, namespace: str | None) -> None:
        """Forget the measurements of a namespace, or all."""
        for key in [key for key in self._seen if namespace in (None, key[0])]:
            del self._seen[key]
