"""A request and what has become of it so far."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from semshare.config import ReusePolicy
from semshare.engine.continuation import Continuation
from semshare.engine.repair import Repair
from semshare.engine.sampling import SamplingParams
from semshare.engine.served import Served
from semshare.engine.stopwatch import Stopwatch
from semshare.errors import GivenUp
from semshare.types import Ids, TextDelta


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """What a caller wants of a prompt."""

    ids: Ids  # [n_tokens]
    policy: ReusePolicy
    namespace: str
    max_tokens: int  # of each answer
    sampling: SamplingParams = SamplingParams()  # noqa: RUF009 - frozen
    stop: tuple[str, ...] = ()
    n: int = 1  # answers
    deadline: float | None = None  # by `time.monotonic()`
    given_up: Callable[[], bool] | None = None  # whether nobody waits for the answer any more

    @property
    def room(self) -> int:
        """Slots that the prompt's own sequence has for an answer; several have their own."""
        return self.max_tokens if self.n == 1 else 0

    @property
    def spare_s(self) -> float:
        """Seconds that may go by before anything is computed: half of what is left."""
        return math.inf if self.deadline is None else (self.deadline - time.monotonic()) / 2

    @property
    def between_chunks(self) -> Callable[[], None] | None:
        """For `Session.served`: raises `GivenUp` once `given_up` returns true; None without it."""
        given_up = self.given_up
        if given_up is None:
            return None

        def check() -> None:
            if given_up():
                raise GivenUp

        return check

    def computes_the_same_as(self, other: Request) -> bool:
        """Whether one prefill can serve both."""
        return (
            self.namespace == other.namespace
            and self.policy == other.policy
            and self.policy.mode != "off"
            and np.array_equal(self.ids, other.ids)
        )


@dataclass(slots=True, eq=False)
class Generation:
    """A request on its way: waiting, being prefilled, running, then ended."""

    request: Request
    watch: Stopwatch
    arrival: int
    outbox: deque[TextDelta] = field(default_factory=deque)  # pieces nobody has taken yet
    error: Exception | None = None
    ended: bool = False
    served: Served | None = None  # from its admission on
    continuations: list[Continuation] = field(default_factory=list)
    repair: Repair | None = None
    repair_given_up: bool = False

    @property
    def prompt(self) -> Served:
        """`served`, of a request that has been admitted."""
        if self.served is None:
            raise AssertionError("this request waits for its turn")
        return self.served

    def begin_with(self, served: Served) -> None:
        """Be served, for the first time or again; what was forgotten meanwhile stays so."""
        before = self.served
        if before is not None:
            served.forgotten |= before.forgotten
            served.began_mixed = before.began_mixed or (
                self.has_answered and not before.provenance.exact
            )
        self.served = served

    @property
    def going_on(self) -> list[Continuation]:
        """Answers that have not ended."""
        return [one for one in self.continuations if not one.ended]

    @property
    def has_answered(self) -> bool:
        """Whether a token has been given."""
        return any(one.tokens for one in self.continuations)

    def release(self) -> None:
        """Give all slots back."""
        for one in self.continuations:
            one.sequence.release()
        if self.repair is not None:
            self.repair.release()
            self.repair = None
        if self.served is not None:
            self.served.release()

    def give_up_repair(self) -> bool:
        """Leave reused tokens as they are; whether that gave any slots back.

        A finished repair stays: the answers read its KV, and what is kept of the prompt is its.
        """
        if self.repair is None or self.prompt.repaired:
            return False
        self.repair_given_up = True
        self.repair.release()
        self.repair = None
        return True

    def give_back_spare(self) -> int:
        """Free the pages that were reserved for its answers and hold nothing yet; how many."""
        return sum(one.sequence.give_back_spare() for one in self.going_on)
