"""What the scheduler needs of everything that comes before a prefill and after an answer."""

from __future__ import annotations

from typing import Protocol

from semshare.engine.continuation import Continuation
from semshare.engine.generation import Generation, Request
from semshare.engine.served import Served
from semshare.engine.stopwatch import Stopwatch
from semshare.kv.sequence import KVSequence
from semshare.types import Answer, Ids, ReusePlan


class Stages(Protocol):
    """What happens to a prompt before its prefill and after its answer."""

    def begin(self, request: Request, watch: Stopwatch, *, in_full_if_short: bool) -> Served:
        """Find donors → align → guard → plan, and take slots."""

    def prefilled(self, served: Served) -> None:
        """The prompt's KV is there."""

    def exact_plan(self, ids: Ids, namespace: str) -> ReusePlan:
        """A plan that reuses exact prefixes only."""

    def repaired(self, served: Served, sequence: KVSequence) -> None:
        """`sequence` has the prompt's exact KV, which was mixed before."""

    def continuation(
        self, generation: Generation, index: int, sequence: KVSequence
    ) -> Continuation:
        """A new answer of a prefilled prompt."""

    def answer(self, generation: Generation) -> Answer:
        """The whole answer; what may be kept of its KV is kept."""
