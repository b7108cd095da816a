"""Which repairs go on in a step."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from semshare.engine.executor import Executor, ForwardResult
from semshare.engine.failures import log_failure
from semshare.engine.generation import Generation
from semshare.engine.repair import Repair
from semshare.engine.rows import PromptRows
from semshare.engine.stages import Stages
from semshare.engine.tasks import Task


class Repairs:
    """One request's repair after the other, the oldest first.

    Args:
        executor: the model and its pool.
        stages: see `Stages`.
        rows_a_step: on average, as long as anything is to be repaired.
        chunk: rows that are computed at once, where so many are left.

    """

    def __init__(self, executor: Executor, stages: Stages, *, rows_a_step: int, chunk: int) -> None:
        self._executor = executor
        self._stages = stages
        self._rows_a_step = rows_a_step
        self._chunk = chunk
        self._due = 0  # rows that the steps since the last chunk leave room for

    def task(self, running: Sequence[Generation], *, idle: bool) -> Task | None:
        """The next reused tokens to be computed exactly, in the steps in which a chunk is due.

        A few rows in each step would take twice the time: products of few rows wait for memory.

        Args:
            running: requests that are being answered, in order of arrival.
            idle: nobody else waits or is computed.

        """
        one = next((one for one in running if _wants_repair(one, idle=idle)), None)
        if one is None:
            return None
        repair = one.repair or self._start(one)
        if repair is None:
            return None
        self._due += self._rows_a_step
        if self._due < min(self._chunk, repair.rows_left):
            return None
        self._due = 0
        rows = repair.next_rows(self._chunk)
        took = partial(self._took, one, repair, rows)
        return Task(rows, took, partial(_failed, one), partial(_goes_on, one, repair))

    def _start(self, generation: Generation) -> Repair | None:
        """A repair begins when its turn comes: others may have computed the same text by then."""
        served = generation.prompt
        try:
            plan = self._stages.exact_plan(served.ids, served.namespace)
            generation.repair = Repair(self._executor, plan)
        except Exception as error:
            _failed(generation, error)
        return generation.repair

    def _took(
        self,
        generation: Generation,
        repair: Repair,
        rows: PromptRows,
        result: ForwardResult,
        _seconds: float,
    ) -> None:
        if not _goes_on(generation, repair):
            return  # the answer has just ended
        repair.took(rows, result, [one.sequence for one in generation.going_on])
        if repair.prompt_done:
            for one in generation.going_on:
                one.go_on_from(repair.sequence.fork(room=one.max_tokens))
            generation.prompt.repaired_after = len(generation.continuations[0].tokens)
            self._stages.repaired(generation.prompt, repair.sequence)


def _wants_repair(generation: Generation, *, idle: bool) -> bool:
    how = generation.request.policy.repair
    if how == "off" or generation.prompt.exact or generation.repair_given_up:
        return False
    return how == "eager" or idle


def _goes_on(generation: Generation, repair: Repair) -> bool:
    return generation.repair is repair


def _failed(generation: Generation, error: Exception) -> None:
    """The answer is as good as it would have been without a repair."""
    log_failure("a repair failed", error)
    generation.give_up_repair()
    generation.repair_given_up = True  # also where it could not begin
