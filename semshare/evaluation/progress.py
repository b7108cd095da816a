"""Progress on standard error, so that standard output stays a record."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.status import Status

if TYPE_CHECKING:
    from semshare import SemShare

Step = Callable[[str], None]


def status_line(text: str, *, enabled: bool = True) -> AbstractContextManager[Status]:
    """A spinner with a text, gone when it is done."""
    return Console(stderr=True, quiet=not enabled).status(text)


def load_engine(
    name: str, *, device: str = "cpu", dtype: str = "auto", progress: bool = True
) -> SemShare:
    """`SemShare.from_pretrained`, which says what it waits for. Raises what that raises."""
    text = f"loading {name}…"
    with status_line(text, enabled=progress):
        from semshare import SemShare  # noqa: PLC0415 - so does this
        from semshare.engine import loading  # noqa: PLC0415 - imports torch, which takes seconds
    if name in loading.BUNDLED:
        # Its first use takes half a minute, and has a status line of its own that says so: only
        # one can be on the screen.
        loading.bundled_model_path(name)
    with status_line(text, enabled=progress):
        return SemShare.from_pretrained(name, device=device, dtype=dtype)


@contextmanager
def progress_bar(title: str, total: int, *, enabled: bool) -> Iterator[tuple[Step, Step]]:
    """A bar of `total` steps, with the time it took and may take yet, that is gone when it is done.

    Yields two functions: `note(text)` says what is going on, `advance(text)` ends a step.
    """
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
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
