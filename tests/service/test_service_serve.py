"""Binding, stopping by signal, and a model that does not load."""

from __future__ import annotations

import asyncio
import os
import signal
import socket

import pytest
from fake_engine import FakeEngine
from service_helpers import entered

from semshare.errors import ModelNotAvailable
from semshare_service.client import AsyncClient
from semshare_service.engine import Engine, EngineLoader
from semshare_service.errors import ServiceUnavailable
from semshare_service.serve import serve
from semshare_service.settings import ServiceSettings


async def started(load: EngineLoader) -> tuple[asyncio.Task[None], str]:
    """A service on a free port, and its address once it listens."""
    address: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    settings = ServiceSettings(port=0, shutdown_timeout_s=10)
    task = asyncio.create_task(serve(settings, load=load, on_listening=address.set_result))
    return task, await address


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_lets_the_running_request_end(
    engine: FakeEngine, number: signal.Signals
) -> None:
    engine.hold.clear()
    service, address = await started(lambda: engine)
    async with AsyncClient(address) as client:
        while not (await client.ready()).ready:
            pass
        request = asyncio.create_task(client.complete("x"))
        await entered(engine)
        os.kill(os.getpid(), number)
        while True:  # the port is closed first
            try:
                async with AsyncClient(address) as late:
                    await late.health()
            except ServiceUnavailable:
                break
        engine.hold.set()
        assert (await request).text == "one two three four"
    await service


async def test_a_model_that_does_not_load_ends_the_service() -> None:
    def load() -> Engine:
        raise ModelNotAvailable("no weights: install them")

    with pytest.raises(ModelNotAvailable, match="no weights"):
        await (await started(load))[0]


async def test_a_port_in_use_is_named(engine: FakeEngine) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ServiceUnavailable, match=f"port {port}: .*another port"):
            await serve(ServiceSettings(port=port), load=lambda: engine)


async def test_an_ipv6_address(engine: FakeEngine) -> None:
    addresses: list[str] = []
    settings = ServiceSettings(host="::1", port=0)
    task = asyncio.create_task(serve(settings, load=lambda: engine, on_listening=addresses.append))
    while not addresses and not task.done():
        await asyncio.sleep(0)
    if task.done() and isinstance(task.exception(), ServiceUnavailable):
        pytest.skip("this machine has no IPv6")
    assert addresses[0].startswith("http://[::1]:")
    os.kill(os.getpid(), signal.SIGTERM)
    await task
