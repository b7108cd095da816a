"""Shadow verification: a share of the answers is scored again in full, in idle time.

What is measured counts towards `max_divergence`: the engine steps reuse down where it is above the
bound and up again where it no longer is (`semshare.planning.monitor`). Here it is decided which
answers are scored, and told what came of it.
"""

from __future__ import annotations

import logging
import random
import threading
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeAlias

from semshare.config import REUSE_MODES, ReuseMode, ReusePolicy
from semshare.engine.failures import log_failure
from semshare.types import Divergence, Prompt, Provenance, Verification
from semshare_service.engine import Engine
from semshare_service.observed import Answered
from semshare_service.tenants import Tenant

logger = logging.getLogger(__name__)

# Called in a worker's thread, so they must be thread-safe, and quick.
OnDivergence: TypeAlias = Callable[[Tenant, ReuseMode, Divergence], None]

MAX_WAITING = 32  # answers; each holds its prompt
_MAX_TOKENS = 64  # of an answer that are scored; their logits are the sample's largest arrays
_MAX_TOLD = 1024  # namespaces and policies whose mode in force is remembered


@dataclass(frozen=True, slots=True)
class ShadowCounts:
    """Since the start; `waiting` is of now.

    sampled:     answers that were drawn.
    dropped:     of these, those that found `MAX_WAITING` others waiting.
    measured:    those whose reuse was scored, in at least one mode.
    unchanged:   those that, when their turn came, reused nothing approximate any more.
    interrupted: times that one gave way to a request; it goes on waiting.
    failed:      those that could not be scored; the log says why.
    steps_down, steps_up: changes of the mode in force that measurements brought about.
    """

    waiting: int
    sampled: int
    dropped: int
    measured: int
    unchanged: int
    interrupted: int
    failed: int
    steps_down: int
    steps_up: int


@dataclass(frozen=True, slots=True)
class _Sample:
    tenant: Tenant
    namespace: str
    prompt: Prompt
    answer: tuple[int, ...]
    policy: ReusePolicy


class _GiveWay(Exception):
    """A request is there."""


class Shadow:
    """Draws answers, has them scored when the worker is idle, and tells what came of it.

    `offer` is called on the event loop, the rest in a worker's thread.

    Args:
        share: of the answers that reused approximately, 0 to 1. Answers whose policy is stepped
            down are drawn with it too, or nothing would ever bring their mode back.
        draw: a number from 0 to below 1.

    Attributes:
        on_divergence: told of each measurement.

    """

    def __init__(
        self,
        share: float,
        *,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self.on_divergence: list[OnDivergence] = []
        self._share = share
        self._draw = draw
        self._lock = threading.Lock()  # guards what follows
        self._waiting: deque[_Sample] = deque()
        self._counts: Counter[str] = Counter()
        self._in_force: OrderedDict[tuple[str, ReuseMode, float | None], ReuseMode] = OrderedDict()

    @property
    def is_on(self) -> bool:
        """Whether divergence is measured at all, so that a bound on it means something."""
        return self._share > 0

    def counts(self) -> ShadowCounts:
        """How many answers went which way."""
        with self._lock:
            counted = {name: self._counts[name] for name in ShadowCounts.__slots__}
            return ShadowCounts(**(counted | {"waiting": len(self._waiting)}))

    def offer(self, event: Answered) -> bool:
        """Draw an answer or leave it; whether it waits to be scored now."""
        if not self.is_on:
            return False
        policy = event.policy or ReusePolicy()
        provenance = event.answer.provenance
        is_of_use = _reused_approximately(provenance) or provenance.mode != policy.mode
        if not is_of_use or self._draw() >= self._share:
            return False
        sample = _Sample(
            event.tenant,
            event.namespace,
            event.prompt,
            tuple(event.answer.token_ids[:_MAX_TOKENS]),
            replace(policy, retention=1.0),  # what a cut does to it is not reuse's doing
        )
        with self._lock:
            self._counts["sampled"] += 1
            if len(self._waiting) >= MAX_WAITING:
                self._counts["dropped"] += 1
                return False
            self._waiting.append(sample)
            return True

    # The worker's side; see `idle.IdleWork`.

    def has_work(self) -> bool:
        """Whether an answer waits to be scored."""
        with self._lock:
            return bool(self._waiting)

    def run_one(self, engine: Engine, busy: Callable[[], bool]) -> None:
        """Score the answer that waits longest; it waits again where `busy` says so meanwhile."""
        with self._lock:
            sample = self._waiting.popleft()

        def give_way() -> None:
            if busy():
                raise _GiveWay

        try:
            found = engine.verify_answer(
                sample.prompt,
                sample.answer,
                policy=sample.policy,
                namespace=sample.tenant.space(sample.namespace),
                between=give_way,
            )
        except _GiveWay:
            with self._lock:
                self._counts["interrupted"] += 1
                self._waiting.appendleft(sample)  # over the limit by this one at most
            return
        except Exception as error:  # nobody waits for it, and answers don't depend on it
            with self._lock:
                self._counts["failed"] += 1
            log_failure("an answer could not be scored again", error)
            return
        self._tell(sample, found)

    def _tell(self, sample: _Sample, found: Verification) -> None:
        measured = [one for one in found.by_mode if one.counts]
        with self._lock:
            self._counts["measured" if measured else "unchanged"] += 1
            before = self._exchange_mode(sample, found.in_force)
        for one in measured:
            for listener in self.on_divergence:
                listener(sample.tenant, one.mode, one.divergence)
        if before == found.in_force:
            return
        up = REUSE_MODES.index(found.in_force) > REUSE_MODES.index(before)
        with self._lock:
            self._counts["steps_up" if up else "steps_down"] += 1
        logger.log(
            logging.INFO if up else logging.WARNING,
            "reuse steps %s from %s to %s in namespace %r: %s",
            "up" if up else "down",
            before,
            found.in_force,
            sample.tenant.space(sample.namespace),
            ", ".join(f"KL {one.divergence.kl:.3g} nats in mode {one.mode}" for one in measured),
        )

    def _exchange_mode(self, sample: _Sample, in_force: ReuseMode) -> ReuseMode:
        """Note the mode in force for a sample's policy; the one it had before."""
        space = sample.tenant.space(sample.namespace)
        key = (space, sample.policy.mode, sample.policy.max_divergence)
        before = self._in_force.pop(key, sample.policy.mode)
        if in_force != sample.policy.mode:
            self._in_force[key] = in_force
            if len(self._in_force) > _MAX_TOLD:
                self._in_force.popitem(last=False)
        return before


def _reused_approximately(provenance: Provenance) -> bool:
    return provenance.counts["span"] + provenance.counts["fuzzy"] > 0
