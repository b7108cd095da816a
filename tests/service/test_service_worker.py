"""The worker: its threads, a bounded queue, and jobs that leave it when nobody waits."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from fake_engine import FakeEngine
from service_helpers import entered

from semshare.errors import ModelNotAvailable, PoolExhausted
from semshare_service.engine import Engine
from semshare_service.errors import QueueFull, ServiceUnavailable
from semshare_service.worker import ModelWorker


@asynccontextmanager
async def started(
    engine: FakeEngine, queue_limit: int = 2, concurrency: int = 1
) -> AsyncIterator[ModelWorker]:
    worker = ModelWorker(lambda: engine, queue_limit=queue_limit, concurrency=concurrency)
    worker.start()
    await asyncio.wrap_future(worker.loaded)
    try:
        yield worker
    finally:
        engine.hold.set()
        engine.hold_idle.set()
        assert await worker.close(60)


def list_donors(engine: Engine, _: Any) -> list[Any]:
    return engine.donors()


async def queued(worker: ModelWorker) -> asyncio.Task[Any]:
    """A submission that has entered the queue."""
    before = worker.status().waiting
    task = asyncio.create_task(worker.submit(list_donors))
    while worker.status().waiting == before:
        await asyncio.sleep(0)  # the event loop's turn, no time
    return task


async def busy(worker: ModelWorker, engine: FakeEngine) -> asyncio.Task[Any]:
    """A submission that the worker has begun and can't finish."""
    engine.hold.clear()
    task = asyncio.create_task(worker.submit(list_donors))
    await entered(engine)
    return task


async def test_the_engine_is_called_in_the_workers_thread_only(engine: FakeEngine) -> None:
    async with started(engine, queue_limit=20) as worker:
        results = await asyncio.gather(*(worker.submit(list_donors) for _ in range(20)))
    assert [served.value for served in results] == [[]] * 20
    assert engine.threads == {"semshare-model"}


async def test_jobs_run_in_order(engine: FakeEngine) -> None:
    async with started(engine, queue_limit=9) as worker:
        order: list[int] = []
        first = await busy(worker, engine)
        rest = [
            asyncio.create_task(worker.submit(lambda _, __, number=number: order.append(number)))
            for number in range(9)
        ]
        await asyncio.sleep(0)
        engine.hold.set()
        await asyncio.gather(first, *rest)
    assert order == list(range(9))


async def test_several_jobs_run_at_the_same_time(engine: FakeEngine) -> None:
    """Each waits for the other two: one after the other they would never end."""
    met = threading.Barrier(3, timeout=60)
    async with started(engine, queue_limit=3, concurrency=3) as worker:
        jobs = [worker.submit(lambda _, __: met.wait()) for _ in range(3)]
        results = await asyncio.gather(*jobs)
        assert sorted(served.value for served in results) == [0, 1, 2]
        assert not worker.status().running
    assert worker.status().state == "stopped"


async def test_what_waits_to_be_remembered_is_computed_when_no_job_runs(engine: FakeEngine) -> None:
    async with started(engine, concurrency=2) as worker:
        first = await busy(worker, engine)
        engine.pending = 1
        await worker.submit(lambda _, __: None)  # ends while the first runs
        assert "complete_pending" not in names(engine)
        engine.hold.set()
        await first
        await entered(engine)
        assert names(engine).count("complete_pending") >= 1


async def test_closing_tells_all_that_run(engine: FakeEngine) -> None:
    begun = threading.Barrier(3, timeout=60)

    def until_abandoned(_: Engine, abandoned: Any) -> bool:
        begun.wait()
        while not abandoned():
            pass
        return True

    worker = ModelWorker(lambda: engine, queue_limit=2, concurrency=2)
    worker.start()
    await asyncio.wrap_future(worker.loaded)
    jobs = [asyncio.create_task(worker.submit(until_abandoned)) for _ in range(2)]
    await asyncio.to_thread(begun.wait)
    assert await worker.close(60)
    assert [(await job).value for job in jobs] == [True, True]


async def test_a_full_queue_refuses_with_an_estimate(engine: FakeEngine) -> None:
    async with started(engine, queue_limit=2) as worker:
        first = await busy(worker, engine)
        waiting = [await queued(worker), await queued(worker)]
        with pytest.raises(QueueFull, match=r"2 requests are waiting.*queue_limit") as caught:
            await worker.submit(list_donors)
        # Three requests of a second each, the guess before any was served, are ahead.
        assert caught.value.retry_after_s == 3.0
        engine.hold.set()
        await asyncio.gather(first, *waiting)
        await worker.submit(list_donors)


async def test_a_cancelled_job_leaves_the_queue_and_never_runs(engine: FakeEngine) -> None:
    async with started(engine, queue_limit=1) as worker:
        first = await busy(worker, engine)
        waiting = await queued(worker)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert worker.status().waiting == 0
        replacement = await queued(worker)  # there is room again
        engine.hold.set()
        await asyncio.gather(first, replacement)
    assert len(engine.calls) == 2


async def test_a_running_job_learns_that_nobody_waits(engine: FakeEngine) -> None:
    saw = threading.Event()

    def operation(held: Engine, abandoned: Any) -> None:
        held.donors()
        if abandoned():
            saw.set()

    async with started(engine) as worker:
        engine.hold.clear()
        task = asyncio.create_task(worker.submit(operation))
        await entered(engine)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        engine.hold.set()
        await worker.submit(list_donors)
    assert saw.is_set()


async def test_an_error_reaches_its_own_submitter_only(engine: FakeEngine) -> None:
    async with started(engine) as worker:
        engine.error = PoolExhausted(3, 2, 1)
        with pytest.raises(PoolExhausted):
            await worker.submit(list_donors)
        engine.error = None
        assert (await worker.submit(list_donors)).value == []


async def remembering(worker: ModelWorker, engine: FakeEngine, pending: int) -> None:
    """Return once the worker computes the first of `pending` prompts and can't finish it."""
    engine.hold_idle.clear()
    engine.pending = pending
    await worker.submit(list_donors)
    await entered(engine)
    await entered(engine)
    assert engine.calls[-1] == ("complete_pending", 1)


def names(engine: FakeEngine) -> list[str]:
    return [name for name, _ in engine.calls]


async def test_requests_come_between_the_prompts_to_remember(engine: FakeEngine) -> None:
    async with started(engine) as worker:
        await remembering(worker, engine, 3)
        request = await queued(worker)
        engine.hold_idle.set()
        await request
        for _ in range(3):
            await entered(engine)
        await worker.submit(list_donors)
    assert engine.pending == 0
    assert names(engine) == [
        "donors",
        "complete_pending",
        "donors",
        "complete_pending",
        "complete_pending",
        "donors",
    ]


async def test_remembering_shows_as_running_and_counts_as_waiting_time(engine: FakeEngine) -> None:
    async with started(engine, queue_limit=1) as worker:
        await remembering(worker, engine, 1)
        assert worker.status().running
        waiting = await queued(worker)
        for _ in range(32):
            worker._queue.served_in(10.0)
        with pytest.raises(QueueFull) as caught:
            await worker.submit(list_donors)
        assert caught.value.retry_after_s == 20.0
        engine.hold_idle.set()
        await waiting


async def test_closing_waits_for_one_prompt_to_remember_only(engine: FakeEngine) -> None:
    worker = ModelWorker(lambda: engine, queue_limit=2, concurrency=1)
    worker.start()
    await asyncio.wrap_future(worker.loaded)
    await remembering(worker, engine, 20)
    closing = asyncio.create_task(worker.close(60))
    await asyncio.sleep(0)
    engine.hold_idle.set()
    assert await closing
    assert engine.pending == 19


async def test_what_can_t_be_remembered_is_tried_again_after_the_next_request_only(
    engine: FakeEngine, caplog: pytest.LogCaptureFixture
) -> None:
    engine.pending, engine.pending_error = 2, PoolExhausted(3, 2, 1)
    async with started(engine) as worker:
        for _ in range(2):
            await worker.submit(list_donors)
            await entered(engine)
            await entered(engine)
        engine.pending_error = None
    assert names(engine) == ["donors", "complete_pending"] * 2
    assert "PoolExhausted" in caplog.text


async def test_a_failure_while_idle_is_logged_without_its_message(
    engine: FakeEngine, caplog: pytest.LogCaptureFixture
) -> None:
    engine.pending, engine.pending_error = 1, RuntimeError("my secret prompt")
    async with started(engine) as worker:
        await worker.submit(list_donors)
        await entered(engine)
        await entered(engine)
        assert (await worker.submit(list_donors)).value == []
    assert "RuntimeError at complete_pending (fake_engine.py:" in caplog.text
    assert "secret" not in caplog.text


async def test_draining_fails_what_waits_and_lets_the_running_end(engine: FakeEngine) -> None:
    def operation(held: Engine, abandoned: Any) -> bool:
        held.donors()
        return bool(abandoned())

    async with started(engine) as worker:
        engine.hold.clear()
        running = asyncio.create_task(worker.submit(operation))
        await entered(engine)
        waiting = await queued(worker)
        worker.drain()
        with pytest.raises(ServiceUnavailable, match="stopped before"):
            await waiting
        engine.hold.set()
        assert (await running).value is False


async def test_before_the_model_is_loaded_and_after_it_failed(engine: FakeEngine) -> None:
    gate = threading.Event()

    def load() -> Engine:
        assert gate.wait(60)
        raise ModelNotAvailable("no weights: install them")

    worker = ModelWorker(load, queue_limit=1, concurrency=1)
    worker.start()
    assert worker.status().state == "loading"
    with pytest.raises(ServiceUnavailable, match="still loading"):
        await worker.submit(list_donors)
    gate.set()
    with pytest.raises(ModelNotAvailable):
        await asyncio.wrap_future(worker.loaded)
    status = worker.status()
    assert (status.state, status.reason) == ("failed", "no weights: install them")
    with pytest.raises(ServiceUnavailable, match="no weights"):
        await worker.submit(list_donors)
    assert await worker.close(60)


async def test_the_reason_of_an_unexpected_failure_is_its_class_only(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def load() -> Engine:
        raise RuntimeError("internals")

    worker = ModelWorker(load, queue_limit=1, concurrency=1)
    worker.start()
    with pytest.raises(RuntimeError):
        await asyncio.wrap_future(worker.loaded)
    assert worker.status().reason == "RuntimeError"
    assert "internals" not in caplog.text
    assert await worker.close(60)


async def test_closing_fails_what_waits_and_lets_the_running_end(engine: FakeEngine) -> None:
    worker = ModelWorker(lambda: engine, queue_limit=2, concurrency=1)
    worker.start()
    await asyncio.wrap_future(worker.loaded)
    first = await busy(worker, engine)
    waiting = await queued(worker)
    closing = asyncio.create_task(worker.close(60))
    with pytest.raises(ServiceUnavailable, match="stopped before"):
        await waiting
    with pytest.raises(ServiceUnavailable, match="stopping"):
        await worker.submit(list_donors)
    engine.hold.set()
    assert (await first).value == []
    assert await closing
    assert worker.status().state == "stopped"


async def test_closing_is_bounded(engine: FakeEngine, caplog: pytest.LogCaptureFixture) -> None:
    worker = ModelWorker(lambda: engine, queue_limit=2, concurrency=1)
    worker.start()
    await asyncio.wrap_future(worker.loaded)
    first = await busy(worker, engine)
    with caplog.at_level(logging.WARNING):
        assert not await worker.close(0)
    assert "still busy" in caplog.text
    engine.hold.set()
    await first
    assert await worker.close(60)


# The death of the thread is the point of this test.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
async def test_what_breaks_off_one_request_leaves_the_others(engine: FakeEngine) -> None:
    def die(_: Engine, __: Any) -> None:
        raise SystemExit  # no Exception, as panics of extensions are none

    worker = ModelWorker(lambda: engine, queue_limit=2, concurrency=1)
    worker.start()
    await asyncio.wrap_future(worker.loaded)
    with pytest.raises(ServiceUnavailable, match="broke off"):
        await worker.submit(die)
    assert (await worker.submit(lambda engine, _: engine.model_name)).value == "fake"
    assert worker.status().state == "ready"
    assert await worker.close(60)
