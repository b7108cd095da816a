"""What the service's tests share: a running service, and ways to wait without sleeping."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from aiohttp.test_utils import TestClient, TestServer
from aiohttp.typedefs import Middleware
from described import Witness
from fake_engine import FakeEngine

from semshare_service.app import create_app
from semshare_service.context import SERVICE
from semshare_service.settings import ServiceSettings
from semshare_service.worker import ModelWorker, WorkerStatus


@asynccontextmanager
async def running(
    engine: Any, *middlewares: Middleware, **settings: Any
) -> AsyncIterator[TestClient]:
    """A client of a service over `engine`, ready, on a free port of the loopback address.

    It serves one request at a time unless the settings say more. `middlewares` come last. Whatever
    it answers has to be in its description.
    """
    app = create_app(
        engine, ServiceSettings(shutdown_timeout_s=10, **{"concurrency": 1, **settings})
    )
    witness = Witness()
    app.middlewares.insert(0, witness.middleware)
    app.middlewares.extend(middlewares)
    server = TestServer(app)
    await server.start_server(access_log=None)  # as `serve` does
    async with TestClient(server) as client:
        await asyncio.wrap_future(app[SERVICE].worker.loaded)
        try:
            yield client
        finally:
            if isinstance(engine, FakeEngine):
                engine.hold_rest.set()
                engine.hold.set()  # so that the worker can end
    assert not witness.deviations, witness.deviations


def worker_of(client: TestClient) -> ModelWorker:
    assert client.app is not None
    return client.app[SERVICE].worker


async def entered(engine: FakeEngine) -> None:
    """Return once the worker is inside the engine's next call."""
    assert await asyncio.to_thread(engine.entered.acquire, timeout=60)


async def status_where(
    client: TestClient, condition: Callable[[WorkerStatus], bool]
) -> WorkerStatus:
    """Exchange messages with the service until the worker's status meets `condition`."""
    async with asyncio.timeout(60):
        while not condition(status := worker_of(client).status()):
            async with client.get("/health") as response:
                assert response.status == 200
    return status


def url_of(client: TestClient) -> str:
    return str(client.make_url("/")).rstrip("/")
