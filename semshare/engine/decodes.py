"""The next rows of answers as tasks of a pass: single tokens in one batch, whose shared KV is read
once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from semshare.engine.continuation import Continuation
from semshare.engine.executor import ForwardResult
from semshare.engine.generation import Generation
from semshare.engine.rows import DecodeRows, PromptRows, Rows
from semshare.engine.tasks import Task


@dataclass(frozen=True, slots=True, eq=False)
class DecodeStep:
    """An answer's next rows: its latest token, or all of them on KV that has the prompt only."""

    generation: Generation
    continuation: Continuation
    rows: PromptRows

    def is_wanted(self) -> bool:
        """Whether the answer goes on, and on the same KV."""
        goes_on = not (self.generation.ended or self.continuation.ended)
        return goes_on and self.continuation.sequence is self.rows.sequence


@dataclass(frozen=True, slots=True)
class DecodeTasks:
    """Makes tasks of answers' next rows.

    dtype:    of the model.
    finish:   called with a request one of whose answers has a new token.
    fail:     called with a request and the error that its rows or its token caused.
    """

    dtype: torch.dtype
    finish: Callable[[Generation], None]
    fail: Callable[[Generation, Exception], None]

    def of(self, steps: Sequence[DecodeStep]) -> list[Task]:
        """One task for all that may be computed together, and one for each other step."""
        batch = [step for step in steps if self._joins_batch(step)]
        tasks = [self._task([step]) for step in steps if not self._joins_batch(step)]
        return [*tasks, self._task(batch)] if batch else tasks

    def _joins_batch(self, step: DecodeStep) -> bool:
        return (
            len(step.rows.ids) == 1
            and step.rows.record is None
            and not self._is_reproducible(step.generation)
        )

    def _is_reproducible(self, generation: Generation) -> bool:
        """Whether its draws must not depend on what else is computed with it.

        A row of a batch differs from the same row by itself by rounding. In float32 that does not
        move a draw, in 16 bits it does, so there a request with a seed has its own passes.
        """
        sampling = generation.request.sampling
        draws = sampling.seed is not None and not sampling.is_greedy
        return draws and self.dtype != torch.float32

    def _task(self, steps: Sequence[DecodeStep]) -> Task:
        rows: Rows = steps[0].rows
        if self._joins_batch(steps[0]):
            rows = DecodeRows(
                [step.rows.sequence for step in steps],
                np.concatenate([step.rows.ids for step in steps]),
                np.concatenate([step.rows.positions for step in steps]),
            )
        return Task(
            rows,
            partial(self._took, steps),
            partial(self.fail, steps[0].generation),
            lambda: all(step.is_wanted() for step in steps),
            by_itself=self._is_reproducible(steps[0].generation),
            parts=[self._task([step]) for step in steps] if len(steps) > 1 else (),
        )

    def _took(self, steps: Sequence[DecodeStep], result: ForwardResult, _seconds: float) -> None:
        for index, step in enumerate(steps):
            try:
                step.continuation.took(step.rows, result.logits[index : index + 1])
                self.finish(step.generation)
            except Exception as error:
                self.fail(step.generation, error)
