"""An engine whose steps are taken by hand, and checked one by one."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from invariants import assert_consistent, assert_may_run
from tiny import tiny_engine

from semshare import Answer, ReusePolicy, SemShare
from semshare.engine.executor import ForwardResult
from semshare.engine.generation import Generation, Request
from semshare.engine.rows import PromptRows, Rows
from semshare.engine.stopwatch import Stopwatch
from semshare.types import Ids

OFF = ReusePolicy(mode="off")
PREFIX = ReusePolicy(mode="prefix")


class Stepped:
    """Counts the rows of every pass and checks the engine after every step.

    Args:
        engine: whose steps these are; a tiny one with pages of 8 slots if None.
        check_every: so many steps, if not after each.
        config: of the tiny one.

    """

    def __init__(
        self, engine: SemShare | None = None, *, check_every: int = 1, **config: Any
    ) -> None:
        self.engine = engine or tiny_engine(**({"page_size": 8} | config))
        self.session = self.engine._session
        self.scheduler = self.session.scheduler
        self.passes: list[list[Rows]] = []
        self._violations: list[AssertionError] = []
        self._check_every, self._steps = check_every, 0
        self._run = self.session.executor.run
        self.session.executor.run = self._counted  # type: ignore[method-assign]

    def _counted(self, several: Sequence[Rows]) -> list[ForwardResult]:
        try:
            assert_may_run(several)
        except AssertionError as error:  # the engine would take it for an error of the rows
            self._violations.append(error)
        self.passes.append(list(several))
        return self._run(several)

    @property
    def rows_of_prompts(self) -> list[int]:
        """For each pass so far, its rows that are not a next token alone."""
        return [
            sum(len(rows.ids) for rows in one if isinstance(rows, PromptRows))
            for one in self.passes
        ]

    def submit(
        self,
        prompt: str | Ids,
        *,
        policy: ReusePolicy = PREFIX,
        namespace: str = "default",
        max_tokens: int = 4,
        **fields: Any,
    ) -> Generation:
        """A request that waits for the next step; `fields` are those of `Request`."""
        ids = self.session.encoder.prompt_ids(prompt)
        request = Request(ids, policy, namespace, max_tokens=max_tokens, **fields)
        with self.session.lock:
            return self.scheduler.submit(request, Stopwatch())

    def step(self) -> None:
        """One step, then all invariants."""
        with self.session.lock, torch.inference_mode():
            self.scheduler.step()
        self.check()

    def cancel(self, generation: Generation) -> None:
        """What closing its stream does."""
        with self.session.lock:
            self.scheduler.cancel(generation)
        self.check()

    def check(self) -> None:
        """All invariants, when it is time for them."""
        if self._violations:
            raise self._violations[0]
        self._steps += 1
        if self._steps % self._check_every == 0:
            assert_consistent(self.engine)

    def finish(self, *generations: Generation, most: int = 2_000) -> list[Answer]:
        """Step until these have ended; their answers. An error of one is raised."""
        for _ in range(most):
            if all(one.ended for one in generations):
                return [answer_of(one) for one in generations]
            self.step()
        raise AssertionError(f"no end after {most} steps")


def answer_of(generation: Generation) -> Answer:
    """The answer of a request that has ended."""
    if generation.error is not None:
        raise generation.error
    answer = generation.outbox[-1].answer
    assert answer is not None
    return answer


def tokens_of(answer: Answer) -> list[list[int]]:
    """Of each choice."""
    return [choice.token_ids for choice in answer.choices]


def long_ago() -> float:
    """A deadline that is over."""
    return time.monotonic() - 1.0


def ids_of(engine: SemShare, *texts: str) -> Ids:
    """Token ids of some texts one after the other."""
    return np.concatenate([engine.encode(text) for text in texts])
