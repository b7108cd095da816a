"""Executes a reuse plan: slots taken, reused KV loaded, fresh rows computed a chunk at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from semshare.engine.executor import Executor, ForwardResult
from semshare.engine.rows import AttentionRecord, PromptRows
from semshare.engine.stopwatch import Stopwatch
from semshare.kv.arrival import Arrival
from semshare.kv.sequence import KVSequence, lay_out
from semshare.types import ReusePlan


@dataclass(frozen=True, slots=True)
class Prefilled:
    """A prompt whose prefill is over: of another request, or cut to what is retained."""

    sequence: KVSequence
    logits: torch.Tensor  # [1, vocab] float32, of the prompt's last token
    rows_computed: int = 0  # for this request


class Prefill:
    """A plan in execution. Rows are computed left to right, so that each sees what it must.

    Args:
        executor: the model and its pool.
        plan: what to reuse and what to compute.
        watch: counts the stage `load`.
        room: slots for the answer.
        record: adds the attention that the fresh rows pay.
        arrivals: that were on their way when the plan was made; rows wait for those that it reads.

    Raises:
        PoolExhausted: no slots, and nothing left to evict. Whatever is raised, no page stays
            behind.

    """

    def __init__(
        self,
        executor: Executor,
        plan: ReusePlan,
        watch: Stopwatch,
        *,
        room: int,
        record: AttentionRecord | None = None,
        arrivals: Sequence[Arrival] = (),
    ) -> None:
        pool = executor.pool
        self.plan = plan
        self.logits: torch.Tensor | None = None  # [1, vocab] float32, of the prompt's last token
        self.rows_computed = 0  # (row, layer) pairs
        self.record = record
        self._executor = executor
        self._rows = plan.rows_to_run
        self._done = 0  # of these rows
        with watch.measure("load"):
            layout = lay_out(plan, n_slots=pool.n_slots)
            reused = pool.pages_of(plan.slots[plan.slots >= 0])
            self._arrivals = tuple(one for one in arrivals if one.fills(reused))
            self.sequence = KVSequence(pool, layout, reused, room=room)
            try:
                if len(layout.copied):
                    for arrival in self._arrivals:
                        arrival.wait(executor.adapter.n_layers)
                executor.load(self.sequence, layout)
            except BaseException:
                self.sequence.release()
                raise

    @property
    def rows_left(self) -> int:
        """Rows to compute yet."""
        return len(self._rows) - self._done

    @property
    def computed_upto(self) -> int:
        """Tokens at the beginning whose KV is there."""
        return int(self._rows[self._done]) if self.rows_left else len(self.plan.ids)

    def next_rows(self, most: int | None = None) -> PromptRows:
        """The next rows, at most `most` of them; all if None.

        A plan by deviation chooses among all of its rows, so they are never cut into chunks.
        """
        if most is None or self.plan.deviation is not None:
            most = self.rows_left
        rows = self._rows[self._done : self._done + most]
        return PromptRows(
            self.sequence,
            self.plan.ids[rows],
            rows,
            n_logits=int(len(rows) == self.rows_left),
            deviation=self.plan.deviation,
            record=self.record,
            arrivals=self._arrivals,
        )

    def took(self, rows: PromptRows, result: ForwardResult) -> None:
        """`rows` have been computed.

        Raises:
            ArithmeticError: reused KV gave logits that are not finite.

        """
        self._done += len(rows.ids)
        self.rows_computed += result.rows_computed
        if rows.n_logits:
            if self.plan.source.any() and not torch.isfinite(result.logits).all():
                raise ArithmeticError("reused KV gave logits that are not finite")
            self.logits = result.logits

    def run(self, watch: Stopwatch) -> None:
        """Compute all rows at once, by themselves; on an error, give the slots back."""
        try:
            with watch.measure("prefill"):
                rows = self.next_rows()
                (result,) = self._executor.run([rows])
                self.took(rows, result)
        except BaseException:
            self.sequence.release()
            raise
