"""Rows of several requests in one pass, and whose fault it is where one fails."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from semshare.engine.executor import Executor, ForwardResult
from semshare.engine.rows import Rows


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """Rows of a pass, and what becomes of their results."""

    rows: Rows
    took: Callable[[ForwardResult, float], None]  # with the seconds of the pass
    failed: Callable[[Exception], None]
    by_itself: bool = False  # in a pass of its own, so that no other request changes its numbers


def compute(executor: Executor, tasks: Sequence[Task]) -> None:
    """Run tasks in one pass but for those that want their own; hand out results and errors."""
    _run(executor, [task for task in tasks if not task.by_itself])
    for task in tasks:
        if task.by_itself:
            _run(executor, [task])


def _run(executor: Executor, tasks: Sequence[Task]) -> None:
    if not tasks:
        return
    started = time.perf_counter()
    try:
        results = executor.run([task.rows for task in tasks])
    except Exception as error:
        if len(tasks) == 1:
            tasks[0].failed(error)
        else:  # one by one, so that only the one whose fault it is fails
            for task in tasks:
                _run(executor, [task])
        return
    seconds = time.perf_counter() - started
    for task, result in zip(tasks, results, strict=True):
        try:
            task.took(result, seconds)
        except Exception as error:
            task.failed(error)
