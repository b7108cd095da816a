"""A few threads that run operations on the engine, behind a bounded queue.

The event loop only submits and awaits. Answers that run at the same time are decoded together: the
engine computes a step for all of them, in whichever thread waits for the next token. A submitter
that gives up (disconnect, time-out) takes its waiting job out of the queue; a running job is told
and may stop between tokens. While nothing runs, prompts that wait to become donors are computed,
one a turn.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from concurrent.futures import Future
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, TypeVar

from semshare.engine.failures import log_failure
from semshare.errors import GivenUp, SemShareError
from semshare_service.engine import Engine, EngineLoader
from semshare_service.errors import ServiceUnavailable
from semshare_service.idle import Idle, IdleWork
from semshare_service.inbox import Inbox, LoopCalls
from semshare_service.jobs import Abandoned, Job, JobQueue, Operation, Served, StreamOperation
from semshare_service.places import Places
from semshare_service.tenants import ANYONE, Tenant

logger = logging.getLogger(__name__)

T = TypeVar("T")
WorkerState: TypeAlias = Literal["loading", "ready", "failed", "stopped"]

# Items of a stream that are handled in one go, so that one that lags behind takes its turn.
_AT_ONCE = 16


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


class ModelWorker:
    """Loads the engine in a thread of its own, then runs submitted operations, some at a time.

    loaded: done once loading has ended; carries the exception where it failed.
    engine: what was loaded; None before that, and where it failed.

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
        self._concurrency = concurrency
        self._idle = Idle(idle_work)
        self._places = Places()
        self._calls: LoopCalls | None = None  # of the event loop that streams last
        self._changed = threading.Condition()  # guards everything below
        self._queue = JobQueue(queue_limit, concurrency)
        self._running: set[Job] = set()
        self._completing = False  # a prompt that waits to become a donor, or other idle work
        self._state: WorkerState = "loading"
        self._stopping = False
        self._reason: str | None = None
        self._model: str | None = None
        self._max_context: int | None = None
        self._threads = [self._thread(self._main)]
        self._working = 1  # of the threads
        self.engine: Engine | None = None
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
    ) -> AsyncGenerator[Served[list[T]]]:
        """Run `operation` as `submit` does, and yield its items as they come.

        Items that have come together are yielded together. The thread never waits for whoever
        takes them: what is not taken yet is kept. Raises as `submit` does. Closing the generator
        drops a job that has not started, and tells one that runs.
        """
        arrived: Inbox[T | None] = Inbox(self._calls_on_this_loop())  # None: there are no more
        submitted = time.monotonic()
        queue_s = 0.0

        def run(engine: Engine, abandoned: Abandoned) -> None:
            nonlocal queue_s
            queue_s = time.monotonic() - submitted
            with closing(operation(engine, abandoned)) as items:
                for item in items:
                    arrived.put(item)

        with self._submitted(run, tenant) as job:
            job.future.add_done_callback(lambda _: arrived.put(None))
            has_more = True
            while has_more:
                items = await arrived.take(_AT_ONCE)
                found = [item for item in items if item is not None]
                has_more = len(found) == len(items)
                if found:
                    yield Served(found, queue_s)
            job.future.result()  # raises what the operation has raised

    def _calls_on_this_loop(self) -> LoopCalls:
        if self._calls is None or self._calls.loop is not asyncio.get_running_loop():
            self._calls = LoopCalls()
        return self._calls

    @contextmanager
    def _submitted(self, operation: Operation[T], tenant: Tenant) -> Iterator[Job]:
        """A job in the queue; it is taken out of it, or told, when the block ends.

        Its tenant's place is free once it has ended, which may be after its client has gone.
        """
        job = Job(operation)
        with self._changed:
            self._refuse_unless_accepting()
            self._places.take(tenant)
            self._queue.append(job)
            self._changed.notify()
        job.future.add_done_callback(lambda _: self._places.give_back(tenant))
        try:
            yield job
        finally:
            job.abandoned = True
            job.future.cancel()
            with self._changed:
                self._queue.discard(job)  # given up before its turn: its place is free again

    def check_room(self, tenant: Tenant) -> None:
        """Raise what `submit` would raise now; for a request that is costly to read."""
        with self._changed:
            self._refuse_unless_accepting()
        self._places.check(tenant)

    def place(self, tenant: Tenant) -> AbstractContextManager[None]:
        """One of the tenant's places, for what comes before a job; `ConcurrencyExceeded`."""
        return self._places.taken(tenant)

    def wake(self) -> None:
        """Look for idle work."""
        with self._changed:
            self._changed.notify()

    def status(self) -> WorkerStatus:
        """What the worker is doing now."""
        with self._changed:
            return WorkerStatus(
                state=self._state,
                model=self._model,
                max_context=self._max_context,
                waiting=len(self._queue),
                limit=self._queue.limit,
                running=bool(self._running) or self._completing,
                reason=self._reason,
                serving=len(self._running),
            )

    def drain(self) -> None:
        """Refuse new jobs and fail the waiting ones; the running ones may end."""
        with self._changed:
            self._stopping = True
            self._queue.fail_all()
            self._changed.notify_all()

    def give_up_running(self) -> None:
        """Tell the running jobs that nobody waits for them any more."""
        with self._changed:
            for job in self._running:
                job.abandoned = True

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
        self._queue.check_room(len(self._running) + self._completing)

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
                self._queue.fail_all()

    def _load_engine(self) -> Engine | None:
        started = time.monotonic()
        try:
            engine = self.engine = self._load()
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
        """Run jobs until the service stops.

        A new job wakes one thread. Whoever has ended something looks for more itself, so that
        nobody else has to be woken for it.
        """
        while True:
            job: Job | None = None
            with self._changed:
                while not (self._queue or self._stopping or self._is_idle_with_work()):
                    self._changed.wait()
                if self._stopping:
                    return
                if self._queue:
                    job = self._queue.pop()
                    self._running.add(job)
                else:
                    self._completing = True
            if job is not None:
                self._run(engine, job)
            else:
                self._work_idly(engine)

    def _is_idle_with_work(self) -> bool:
        return not self._running and not self._completing and self._idle.has_work()

    def _is_busy(self) -> bool:
        with self._changed:
            return bool(self._queue or self._running or self._stopping)

    def _work_idly(self, engine: Engine) -> None:
        try:
            self._idle.run_one(engine, self._is_busy)
        finally:
            with self._changed:
                self._completing = False

    def _run(self, engine: Engine, job: Job) -> None:
        started = time.monotonic()
        value: Any = None
        error: Exception | None = None
        claimed = job.future.set_running_or_notify_cancel()
        if claimed:
            try:
                value = job.context.run(job.operation, engine, job.is_abandoned)
            except GivenUp:  # whoever still waits was not the one who gave up
                error = ServiceUnavailable(
                    "the service stopped before the answer was complete: send the request to "
                    "another one"
                )
            except Exception as caught:
                error = caught
            except BaseException as caught:  # a panic of an extension: this thread lives on
                log_failure("an operation broke off", caught, level=logging.ERROR)
                error = ServiceUnavailable("the request broke off inside the model: send it again")
        ended = time.monotonic()
        with self._changed:
            self._running.discard(job)
            self._idle.request_ended()
            if claimed:
                self._queue.served_in(ended - started)
        # Last, so that whoever waits for the result sees the worker free.
        if error is not None:
            job.future.set_exception(error)
            error = None  # its traceback holds this frame, and with it the engine's tensors
        elif claimed:
            job.future.set_result(Served(value, started - job.submitted))
