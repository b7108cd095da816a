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
    """The repairs of all requests, the oldest first.

    Args:
        executor: the model and its pool.
        stages: see `Stages`.
        most_rows: in a step.

    """

    def __init__(self, executor: Executor, stages: Stages, *, most_rows: int) -> None:
        self._executor = executor
        self._stages = stages
        self._most_rows = most_rows

    def tasks(self, running: Sequence[Generation], *, idle: bool) -> list[Task]:
        """The next reused tokens to be computed exactly.

        Args:
            running: requests that are being answered, in order of arrival.
            idle: nobody else waits or is computed.

        """
        tasks = []
        left = self._most_rows
        for generation in running:
            if left <= 0 or not _wants_repair(generation, idle=idle):
                continue
            repair = generation.repair or self._start(generation)
            if repair is None:
                continue
            rows = repair.next_rows(left)
            left -= len(rows.ids)
            took = partial(self._took, generation, repair, rows)
            failed = partial(_failed, generation)
            tasks.append(Task(rows, took, failed, partial(_goes_on, generation, repair)))
        return tasks

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
