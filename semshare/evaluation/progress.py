"""Progress on standard error, so that standard output stays a record."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)

Step = Callable[[str], None]


@contextmanager
def progress_bar(title: str, total: int, *, enabled: bool) -> Iterator[tuple[Step, Step]]:
    """A bar of `total` steps that is gone when it is done.

    Yields two functions: `note(text)` says what is going on, `advance(text)` ends a step.
    """
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(
        *columns, console=Console(stderr=True), transient=True, disable=not enabled
    ) as bar:
        task = bar.add_task(title, total=total)

        def note(text: str) -> None:
            bar.update(task, description=f"{title}: {text}")

        def advance(text: str) -> None:
            bar.update(task, advance=1, description=f"{title}: {text}")

        yield note, advance
