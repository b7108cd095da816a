"""One prompt from its plan to the end of its answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor

from semshare.config import ReuseMode
from semshare.engine.executor import Executor, ForwardResult
from semshare.engine.failures import log_failure
from semshare.engine.prefill import Prefill, Prefilled
from semshare.engine.retain import looking_record, retain
from semshare.engine.rows import PromptRows
from semshare.engine.stopwatch import Stopwatch
from semshare.errors import PoolExhausted
from semshare.kv.arrival import Arrival
from semshare.kv.sequence import KVSequence
from semshare.planning.plan import full_plan, shared_plan
from semshare.planning.retention import Retention
from semshare.types import Ids, Provenance, ReusePlan


@dataclass(frozen=True, slots=True)
class Planned:
    """What the stages before the prefill decided for a prompt."""

    plan: ReusePlan
    mode: ReuseMode  # in force, after any step-down
    prefix_owners: tuple[str, ...] = ()  # all donors whose ids the prefix goes through
    first_look: int = 0  # (row, layer) pairs that ran before the plan was made
    fallback: str | None = None  # why everything is computed after all, if it is
    arrivals: tuple[Arrival, ...] = ()  # that were on their way when the plan was made

    @property
    def donors(self) -> set[str]:
        """All donors that are of use."""
        return {*self.plan.donors, *self.prefix_owners}


class Served:
    """A prompt that is prefilled, then answered.

    Whatever fails on the way to a mixed prefill, the prompt is computed in full.

    Args:
        executor: the model and its pool.
        planned: what to reuse and what to compute.
        namespace: of the request.
        watch: counts the stages.
        room: slots for the answer.
        in_full_if_short: where the pool has no slots beside the reused ones, let go of them and
            compute everything, so that the donors may be evicted.
        on_fallback: called with the stage that failed.
        retention: what `retain` will keep of the prompt's KV, if not all of it.
        prefilled: KV that is there already, in place of a prefill.

    Raises:
        PoolExhausted: no slots, and nothing left to evict.

    """

    def __init__(
        self,
        executor: Executor,
        planned: Planned,
        namespace: str,
        watch: Stopwatch,
        *,
        room: int,
        in_full_if_short: bool,
        on_fallback: Callable[[str], None],
        retention: Retention | None = None,
        prefilled: Prefilled | None = None,
    ) -> None:
        self.namespace = namespace
        self.watch = watch
        self.planned = planned
        self.forgotten = False  # its namespace was cleared meanwhile: nothing may stay
        self.preempted = False  # its slots went to others: there is nothing to keep of it
        self.began_mixed = False  # tokens were picked from a mixture before it was preempted
        # Answer tokens given when all of the prompt had been computed exactly; None: it is not.
        self.repaired_after: int | None = None
        self._executor = executor
        self._room = room
        self._on_fallback = on_fallback
        self._retention = retention
        self._rows_in_vain = 0  # (row, layer) pairs of prefills that failed
        if prefilled is not None:
            self._prefill: Prefill | Prefilled = prefilled
            return
        try:
            self._prefill = self._begin()
        except Exception as error:
            short = isinstance(error, PoolExhausted)
            if short and not (in_full_if_short and planned.plan.source.any()):
                raise
            self._fall_back(error)

    def joined(self, watch: Stopwatch, *, room: int) -> Served:
        """The same prompt served once more, over this one's KV, which is there.

        Raises:
            PoolExhausted: no slots, and nothing left to evict.

        """
        plan = self.plan
        if plan.is_exact:
            plan = shared_plan(plan.ids)
        return Served(
            self._executor,
            replace(self.planned, plan=plan, first_look=0),
            self.namespace,
            watch,
            room=room,
            in_full_if_short=False,
            on_fallback=self._on_fallback,
            prefilled=Prefilled(self.sequence.fork(room=room), self.logits),
        )

    @property
    def plan(self) -> ReusePlan:
        """What is executed."""
        return self.planned.plan

    @property
    def ids(self) -> Ids:
        """`[n]` of the prompt."""
        return self.plan.ids

    @property
    def sequence(self) -> KVSequence:
        """Its KV."""
        return self._prefill.sequence

    @property
    def logits(self) -> Tensor:
        """`[1, vocab]` float32, of the prompt's last token; once it is prefilled."""
        if self._prefill.logits is None:
            raise AssertionError("the prompt is not prefilled yet")
        return self._prefill.logits

    @property
    def prefilled(self) -> bool:
        """Whether the answer can begin."""
        return self._prefill.logits is not None

    @property
    def exact(self) -> bool:
        """Whether all KV is that of a full prefill, and nothing of it was dropped."""
        return self.sequence.retained is None and (self.plan.is_exact or self.repaired)

    @property
    def provenance(self) -> Provenance:
        """What the caller is told."""
        plan, layers, cut = self.plan, self._executor.adapter.n_layers, self.sequence.retained
        rows = self.planned.first_look + self._rows_in_vain + self._prefill.rows_computed
        return Provenance(
            source=plan.source,
            donors=plan.donors,
            donor=plan.donor,
            donor_position=plan.position,
            compute_fraction=rows / (len(plan.ids) * layers),
            exact=plan.is_exact and cut is None and not self.began_mixed,
            mode=self.planned.mode,
            fallback=self.planned.fallback,
            repaired_after=self.repaired_after,
            retained=1.0 if cut is None else cut.share,
        )

    @property
    def rows_left(self) -> int:
        """Rows to compute yet."""
        return self._running.rows_left

    def next_rows(self, most: int | None = None) -> PromptRows:
        """Rows to compute next, at most `most`; all if None."""
        return self._running.next_rows(most)

    def took(self, rows: PromptRows, result: ForwardResult) -> None:
        """`rows` have been computed.

        Raises:
            ArithmeticError: reused KV gave logits that are not finite; see `failed`.

        """
        self._running.took(rows, result)

    @property
    def repaired(self) -> bool:
        """Whether all of the prompt has been computed exactly meanwhile."""
        return self.repaired_after is not None

    def failed(self, error: Exception) -> None:
        """Computing its rows failed: begin again in full, or raise where that was tried.

        Raises:
            Exception: `error`, if everything was computed already, or there are no slots.

        """
        self.release()
        if not self.plan.source.any():
            raise error
        self._rows_in_vain += self._prefill.rows_computed
        self.watch.stage = "prefill"
        self._fall_back(error)

    def retain(self) -> None:
        """Drop what the request's policy does not want to be kept, once the prompt is prefilled.

        Raises:
            PoolExhausted: no slots for what is kept; all of it stays.

        """
        if self._retention is None or not isinstance(self._prefill, Prefill):
            return  # it goes on from KV that another request has cut
        done = self._prefill
        if done.record is None:
            raise AssertionError("nothing was recorded to tell what should be kept")
        cut = retain(self._executor, done.sequence, done.record, self._retention, room=self._room)
        if cut is not None:
            self._prefill = Prefilled(cut, self.logits, done.rows_computed)

    def release(self) -> None:
        """Give its slots back."""
        self._prefill.sequence.release()

    @property
    def _running(self) -> Prefill:
        if not isinstance(self._prefill, Prefill):
            raise AssertionError("there is nothing left to compute")
        return self._prefill

    def _fall_back(self, error: Exception) -> None:
        stage = self.watch.stage
        log_failure(f"{stage} failed, the prompt is computed in full", error)
        self._on_fallback(stage)
        self.planned = replace(
            self.planned,
            plan=full_plan(self.planned.plan.ids),
            fallback=f"{stage}: {type(error).__name__}",
        )
        self._prefill = self._begin()

    def _begin(self) -> Prefill:
        record = None if self._retention is None else looking_record(self.plan)
        return Prefill(
            self._executor,
            self.plan,
            self.watch,
            room=self._room,
            record=record,
            arrivals=self.planned.arrivals,
        )
