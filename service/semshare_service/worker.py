"""A few threads that run operations on the engine, behind a bounded queue.

The event loop only submits and awaits. Answers that run at the same time are decoded together: the
engine computes a step for all of them, in whichever thread waits for the next token. A submitter
that gives up (disconnect, time-out) takes its waiting job out of the queue; a running job is told
and may stop between tokens. While nothing runs, prompts that wait to become donors are computed,
one a turn.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import math
import threading
import time
from collections import Counter, deque
from collections.abc import AsyncGenerator, Callable, Generator, Iterator
from concurrent.futures import Future
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, Protocol, TypeAlias, TypeVar

from semshare.engine.failures import log_failure
from semshare.errors import SemShareError
from semshare_service.engine import Engine, EngineLoader
from semshare_service.errors import ConcurrencyExceeded, QueueFull, ServiceUnavailable
from semshare_service.tenants import ANYONE, Tenant

logger = logging.getLogger(__name__)

T = TypeVar("T")
WorkerState: TypeAlias = Literal["loading", "ready", "failed", "stopped"]
# An operation gets the engine and a function that is true once nobody waits for the result.
Abandoned: TypeAlias = Callable[[], bool]
Operation: TypeAlias = Callable[[Engine, Abandoned], T]
StreamOperation: TypeAlias = Callable[[Engine, Abandoned], Generator[T]]

_RECENT = 32  # requests whose mean service time estimates the wait
_RETRY_AFTER_S = 1.0  # one of the tenant's own must end, which may be at any time
_FIRST_GUESS_S = 1.0  # service time before any request has been served


@dataclass(frozen=True, slots=True)
class Served(Generic[T]):
    """What an operation returned and how long it waited for its turn, in seconds."""

    value: T
    queue_s: float


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """A snapshot. `waiting` counts queued requests, without the one that runs.

    `running` is also true while a prompt is computed that waits to become a donor.
    """

    state: WorkerState
    model: str | None
    max_context: int | None
    waiting: int
    limit: int
    running: bool
    reason: str | None
    serving: int  # operations that run


class IdleWork(Protocol):
    """What is done while no request is there, one item at a time, in a worker's thread."""

    def has_work(self) -> bool:
        """Whether an item waits."""

    def run_one(self, engine: Engine, busy: Callable[[], bool]) -> None:
        """Work on one item; end soon after `busy`, asked often, is true."""


@dataclass(eq=False, slots=True)
class _Job:
    operation: Operation[Any]
    submitted: float
    future: Future[Served[Any]] = field(default_factory=Future)
    abandoned: threading.Event = field(default_factory=threading.Event)
    # So that what the operation logs carries its request's id.
    context: contextvars.Context = field(default_factory=contextvars.copy_context)


class ModelWorker:
    """Loads the engine in a thread of its own, then runs submitted operations, some at a time.

    loaded: done once loading has ended; carries the exception where it failed.

    Args:
        load: makes the engine, which is thread-safe.
        queue_limit: operations that may wait.
        concurrency: operations that run at the same time.
        idle_work: done before the prompts that wait to become donors. Call `wake` where there is
            some and no request is on its way.

    """

    def __init__(
        self,
        load: EngineLoader,
        *,
        queue_limit: int,
        concurrency: int,
        idle_work: IdleWork | None = None,
    ) -> None:
        self._load = load
        self._queue_limit = queue_limit
        self._concurrency = concurrency
        self._idle_work = idle_work
        self._changed = threading.Condition()  # guards everything below
        self._queue: deque[_Job] = deque()
        self._running: set[_Job] = set()
        self._jobs_of: Counter[str] = Counter()  # waiting and running, by tenant
        self._completing = False  # a prompt that waits to become a donor, or other idle work
        self._may_have_pending = False
        self._state: WorkerState = "loading"
        self._stopping = False
        self._reason: str | None = None
        self._model: str | None = None
        self._max_context: int | None = None
        self._service_times: deque[float] = deque(maxlen=_RECENT)
        self._threads = [self._thread(self._main)]
        self._working = 1  # of the threads
        self.loaded: Future[None] = Future()
        self.loaded.set_running_or_notify_cancel()  # waiting for it must not cancel it

    def start(self) -> None:
        """Start loading; returns at once."""
        self._threads[0].start()

    @staticmethod
    def _thread(target: Callable[..., None], *args: object) -> threading.Thread:
        return threading.Thread(target=target, args=args, name="semshare-model", daemon=True)

    async def submit(self, operation: Operation[T], tenant: Tenant = ANYONE) -> Served[T]:
        """Run `operation` for a tenant in the worker's thread and await its result.

        Raises `QueueFull`, `ConcurrencyExceeded`, `ServiceUnavailable` or whatever the operation
        raises. Cancelling the caller drops the job if it has not started.
        """
        with self._submitted(operation, tenant) as job:
            return await asyncio.wrap_future(job.future)

    async def stream(
        self, operation: StreamOperation[T], tenant: Tenant = ANYONE
    ) -> AsyncGenerator[Served[T]]:
        """Run `operation` as `submit` does, and yield each of its items as it comes.

        The thread never waits for whoever takes them: what is not taken yet is kept. Raises as
        `submit` does. Closing the generator drops a job that has not started, and tells one that
        runs.
        """
        loop = asyncio.get_running_loop()
        arrived: asyncio.Queue[Served[T] | None] = asyncio.Queue()  # None: there are no more
        submitted = time.monotonic()

        def tell(item: Served[T] | None) -> None:
            if not loop.is_closed():  # it may be, after a stop that was not waited for
                loop.call_soon_threadsafe(arrived.put_nowait, item)

        def run(engine: Engine, abandoned: Abandoned) -> None:
            queue_s = time.monotonic() - submitted
            with closing(operation(engine, abandoned)) as items:
                for item in items:
                    tell(Served(item, queue_s))

        with self._submitted(run, tenant) as job:
            job.future.add_done_callback(lambda _: tell(None))
            while (item := await arrived.get()) is not None:
                yield item
            job.future.result()  # raises what the operation has raised

    @contextmanager
    def _submitted(self, operation: Operation[T], tenant: Tenant) -> Iterator[_Job]:
        """A job in the queue; it is taken out of it, or told, when the block ends.

        Its tenant's place is free once it has ended, which may be after its client has gone.
        """
        job = _Job(operation, time.monotonic())
        with self._changed:
            self._refuse_unless_accepting()
            self._refuse_above(tenant)
            self._jobs_of[tenant.name] += 1
            self._queue.append(job)
            self._changed.notify_all()
        job.future.add_done_callback(lambda _: self._free_place(tenant))
        try:
            yield job
        finally:
            job.abandoned.set()
            job.future.cancel()
            with self._changed:
                if job in self._queue:  # given up before its turn: its place is free again
                    self._queue.remove(job)

    @contextmanager
    def place(self, tenant: Tenant) -> Iterator[None]:
        """One of the tenant's places, for what comes before a job; `ConcurrencyExceeded`."""
        with self._changed:
            self._refuse_above(tenant)
            self._jobs_of[tenant.name] += 1
        try:
            yield
        finally:
            self._free_place(tenant)

    def _refuse_above(self, tenant: Tenant) -> None:
        jobs, most = self._jobs_of[tenant.name], tenant.max_concurrency
        if most is not None and jobs >= most:
            raise ConcurrencyExceeded(
                f"{jobs} requests of this tenant run or wait, of {most} (max_concurrency): try "
                "again when one has ended",
                retry_after_s=_RETRY_AFTER_S,
            )

    def _free_place(self, tenant: Tenant) -> None:
        with self._changed:
            self._jobs_of[tenant.name] -= 1
            if not self._jobs_of[tenant.name]:
                del self._jobs_of[tenant.name]

    def wake(self) -> None:
        """Look for idle work."""
        with self._changed:
            self._changed.notify_all()

    def status(self) -> WorkerStatus:
        """What the worker is doing now."""
        with self._changed:
            return WorkerStatus(
                state=self._state,
                model=self._model,
                max_context=self._max_context,
                waiting=len(self._queue),
                limit=self._queue_limit,
                running=bool(self._running) or self._completing,
                reason=self._reason,
                serving=len(self._running),
            )

    def drain(self) -> None:
        """Refuse new jobs and fail the waiting ones; the running ones may end."""
        with self._changed:
            self._stopping = True
            self._fail_waiting()
            self._changed.notify_all()

    def give_up_running(self) -> None:
        """Tell the running jobs that nobody waits for them any more."""
        with self._changed:
            for job in self._running:
                job.abandoned.set()

    async def close(self, timeout_s: float) -> bool:
        """Drain, tell the running jobs to give up, and wait for their end within a bound.

        Returns whether all threads have ended; those that have not die with the process.
        """
        self.drain()
        self.give_up_running()
        with self._changed:
            threads = list(self._threads)
        ends = time.monotonic() + timeout_s
        for thread in threads:
            await asyncio.to_thread(thread.join, max(ends - time.monotonic(), 0.0))
        if any(thread.is_alive() for thread in threads):
            logger.warning("the model is still busy %.0f s after the stop", timeout_s)
            return False
        return True

    # The event loop's side, with the lock held.

    def _refuse_unless_accepting(self) -> None:
        if self._stopping or self._state == "stopped":
            raise ServiceUnavailable("the service is stopping: send the request to another one")
        if self._state == "failed":
            raise ServiceUnavailable(f"the model is not available: {self._reason}")
        if self._state == "loading":
            raise ServiceUnavailable(
                "the model is still loading: GET /ready says when it is there", retry_after_s=1.0
            )
        waiting = len(self._queue)
        if waiting >= self._queue_limit:
            retry_after_s = self._expected_wait_s()
            raise QueueFull(
                f"{waiting} requests are waiting, which is the limit (queue_limit): try again in "
                f"{retry_after_s:.0f} s",
                retry_after_s=retry_after_s,
            )

    def _expected_wait_s(self) -> float:
        """Whole seconds until the queue, as it stands, has been served; at least one."""
        recent = self._service_times
        mean = sum(recent) / len(recent) if recent else _FIRST_GUESS_S
        ahead = len(self._queue) + len(self._running) + self._completing
        return float(max(1, math.ceil(mean * ahead / self._concurrency)))

    def _fail_waiting(self) -> None:
        while self._queue:
            job = self._queue.popleft()
            if job.future.set_running_or_notify_cancel():
                job.future.set_exception(ServiceUnavailable("the service stopped before its turn"))

    # The worker's side.

    def _main(self) -> None:
        engine = self._load_engine()
        if engine is not None:
            more = [self._thread(self._work, engine) for _ in range(self._concurrency - 1)]
            with self._changed:
                self._threads += more
                self._working += len(more)
            for thread in more:
                thread.start()
        self._work(engine)

    def _work(self, engine: Engine | None) -> None:
        """What each thread does; without an engine there is nothing to do."""
        try:
            if engine is not None:
                self._serve(engine)
        finally:
            with self._changed:
                self._working -= 1
                if self._stopping:
                    self._state = self._state if self._working else "stopped"
                elif self._state == "ready":  # a fault of this module: nothing else gets so far
                    self._state, self._reason = "failed", "a worker's thread has died"
                self._fail_waiting()

    def _load_engine(self) -> Engine | None:
        started = time.monotonic()
        try:
            engine = self._load()
            model, max_context = engine.model_name, engine.max_context
        except BaseException as error:
            with self._changed:
                self._state = "failed"
                self._reason = (
                    str(error) if isinstance(error, SemShareError) else type(error).__name__
                )
            log_failure("loading the model failed", error, level=logging.ERROR)
            self.loaded.set_exception(error)
            return None
        with self._changed:
            self._state = "ready"
            self._model, self._max_context = model, max_context
        logger.info("%s is ready after %.1f s", model, time.monotonic() - started)
        self.loaded.set_result(None)
        return engine

    def _serve(self, engine: Engine) -> None:
        """Run jobs until the service stops."""
        while True:
            job: _Job | None = None
            with self._changed:
                while not (self._queue or self._stopping or self._is_idle_with_work()):
                    self._changed.wait()
                if self._stopping:
                    return
                if self._queue:
                    job = self._queue.popleft()
                    self._running.add(job)
                else:
                    self._completing = True
            if job is not None:
                self._run(engine, job)
            else:
                self._work_idly(engine)

    def _is_idle_with_work(self) -> bool:
        is_idle = not self._running and not self._completing
        return is_idle and (self._may_have_pending or self._has_idle_work())

    def _has_idle_work(self) -> bool:
        return self._idle_work is not None and self._idle_work.has_work()

    def _is_busy(self) -> bool:
        with self._changed:
            return bool(self._queue or self._running or self._stopping)

    def _work_idly(self, engine: Engine) -> None:
        if self._idle_work is None or not self._idle_work.has_work():
            self._complete_one(engine)
            return
        try:
            # First: a prompt that has become a donor meanwhile would be found as its own prefix.
            self._idle_work.run_one(engine, self._is_busy)
        except BaseException as error:  # panics of extensions among them: the thread lives on
            log_failure("idle work failed", error, level=logging.ERROR)
        finally:
            with self._changed:
                self._completing = False
                self._changed.notify_all()

    def _run(self, engine: Engine, job: _Job) -> None:
        started = time.monotonic()
        value: Any = None
        error: Exception | None = None
        claimed = job.future.set_running_or_notify_cancel()
        if claimed:
            try:
                value = job.context.run(job.operation, engine, job.abandoned.is_set)
            except Exception as caught:
                error = caught
            except BaseException as caught:  # a panic of an extension: this thread lives on
                log_failure("an operation broke off", caught, level=logging.ERROR)
                error = ServiceUnavailable("the request broke off inside the model: send it again")
        ended = time.monotonic()
        with self._changed:
            self._running.discard(job)
            self._may_have_pending = True
            if claimed:
                self._service_times.append(ended - started)
            self._changed.notify_all()
        # Last, so that whoever waits for the result sees the worker free.
        if error is not None:
            job.future.set_exception(error)
            error = None  # its traceback holds this frame, and with it the engine's tensors
        elif claimed:
            job.future.set_result(Served(value, started - job.submitted))

    def _complete_one(self, engine: Engine) -> None:
        """Compute one prompt that waits to become a donor."""
        more = False
        with self._changed:
            self._may_have_pending = False
        try:
            more = bool(engine.complete_pending(limit=1))
        except BaseException as error:
            # Nobody waits for this one, and answers don't depend on it. It would fail again until
            # a request has changed something (`PoolExhausted`), so the next one comes first.
            log_failure("a prompt that was to be remembered could not be computed", error)
        finally:
            with self._changed:
                self._completing = False
                self._may_have_pending |= more
                self._changed.notify_all()
