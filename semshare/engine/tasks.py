"""Rows of several requests in one pass, and whose fault it is where one fails."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from semshare.engine.executor import Executor, ForwardResult
from semshare.engine.rows import Rows


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """Rows of a pass, and what becomes of their results.

    rows:       to compute.
    took:       gets their result and the seconds of the pass.
    failed:     gets the error that they cause by themselves, or that `took` raises.
    is_wanted:  asked right before each pass, since a step may take several: whether the rows'
                slots are still theirs.
    by_itself:  in a pass of its own, so that no other request changes its numbers.
    parts:      the same rows request by request, for where a pass with all of them fails.
    """

    rows: Rows
    took: Callable[[ForwardResult, float], None]
    failed: Callable[[Exception], None]
    is_wanted: Callable[[], bool]
    by_itself: bool = False
    parts: Sequence[Task] = ()


def compute(executor: Executor, tasks: Sequence[Task]) -> None:
    """Run tasks in one pass but for those that want their own; hand out results and errors."""
    _run(executor, [task for task in tasks if not task.by_itself])
    for task in tasks:
        if task.by_itself:
            _run(executor, [task])


def _run(executor: Executor, tasks: Sequence[Task]) -> None:
    tasks = [task for task in tasks if task.is_wanted()]
    if not tasks:
        return
    started = time.perf_counter()
    try:
        results = executor.run([task.rows for task in tasks])
    except Exception as error:
        smallest = [part for task in tasks for part in task.parts or (task,)]
        if len(smallest) == 1:
            smallest[0].failed(error)
        else:  # one by one, so that only the one whose fault it is fails
            for task in smallest:
                _run(executor, [task])
        return
    seconds = time.perf_counter() - started
    for task, result in zip(tasks, results, strict=True):
        try:
            task.took(result, seconds)
        except Exception as error:
            task.failed(error)
