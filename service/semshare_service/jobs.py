"""Operations on the engine that wait for their turn: a bounded queue, and how long it takes."""

from __future__ import annotations

import contextvars
import math
import time
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Generic, TypeAlias, TypeVar

from semshare_service.engine import Engine
from semshare_service.errors import QueueFull, ServiceUnavailable

T = TypeVar("T")
# An operation gets the engine and a function that is true once nobody waits for the result.
Abandoned: TypeAlias = Callable[[], bool]
Operation: TypeAlias = Callable[[Engine, Abandoned], T]
StreamOperation: TypeAlias = Callable[[Engine, Abandoned], Generator[T]]

_RECENT = 32  # requests whose mean service time estimates the wait
_FIRST_GUESS_S = 1.0  # service time before any request has been served


@dataclass(frozen=True, slots=True)
class Served(Generic[T]):
    """What an operation returned and how long it waited for its turn, in seconds."""

    value: T
    queue_s: float


@dataclass(eq=False, slots=True)
class Job:
    """An operation whose result somebody waits for, until it is `abandoned`."""

    operation: Operation[Any]
    submitted: float = field(default_factory=time.monotonic)
    future: Future[Served[Any]] = field(default_factory=Future)
    abandoned: bool = False
    # So that what the operation logs carries its request's id.
    context: contextvars.Context = field(default_factory=contextvars.copy_context)

    def is_abandoned(self) -> bool:
        """As the operation asks."""
        return self.abandoned


class JobQueue:
    """Jobs in their order. Whoever uses it holds a lock.

    Args:
        limit: jobs that may wait.
        concurrency: jobs that run at the same time.

    """

    def __init__(self, limit: int, concurrency: int) -> None:
        self.limit = limit
        self._concurrency = concurrency
        self._jobs: deque[Job] = deque()
        self._service_times: deque[float] = deque(maxlen=_RECENT)

    def __len__(self) -> int:
        return len(self._jobs)

    def check_room(self, running: int) -> None:
        """Raise `QueueFull` where as many wait as may, behind so many that run."""
        if len(self._jobs) >= self.limit:
            retry_after_s = self._expected_wait_s(running)
            raise QueueFull(
                f"{len(self._jobs)} requests are waiting, which is the limit (queue_limit): try "
                f"again in {retry_after_s:.0f} s",
                retry_after_s=retry_after_s,
            )

    def append(self, job: Job) -> None:
        """Add a job, for which there is room."""
        self._jobs.append(job)

    def pop(self) -> Job:
        """Take out the oldest job."""
        return self._jobs.popleft()

    def discard(self, job: Job) -> None:
        """Take out a job that has been given up, if it is there."""
        if job in self._jobs:
            self._jobs.remove(job)

    def fail_all(self) -> None:
        """Tell all that the service has stopped."""
        while self._jobs:
            job = self._jobs.popleft()
            if job.future.set_running_or_notify_cancel():
                job.future.set_exception(ServiceUnavailable("the service stopped before its turn"))

    def served_in(self, seconds: float) -> None:
        """Count how long a job ran."""
        self._service_times.append(seconds)

    def _expected_wait_s(self, running: int) -> float:
        """Whole seconds until the queue, as it stands, has been served; at least one."""
        recent = self._service_times
        mean = sum(recent) / len(recent) if recent else _FIRST_GUESS_S
        ahead = len(self._jobs) + running
        return float(max(1, math.ceil(mean * ahead / self._concurrency)))
