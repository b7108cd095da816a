"""Binding, stopping by signal, and a model that does not load."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from pathlib import Path

import pytest
from fake_engine import FakeEngine
from service_helpers import entered

from semshare.cli import main
from semshare.errors import ModelNotAvailable
from semshare_service.client import AsyncClient
from semshare_service.engine import Engine, EngineLoader
from semshare_service.errors import ServiceUnavailable
from semshare_service.serve import run, serve
from semshare_service.settings import ServiceSettings


async def started(load: EngineLoader) -> tuple[asyncio.Task[None], str]:
    """A service on a free port, and its address once it listens."""
    address: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    settings = ServiceSettings(port=0, concurrency=1, shutdown_timeout_s=10)
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
        waiting = asyncio.create_task(client.complete("y"))
        while (await client.ready()).waiting == 0:
            pass
        os.kill(os.getpid(), number)
        with pytest.raises(ServiceUnavailable, match="stopped before its turn"):
            await waiting  # at once: the one before it is still held
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


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--device", "gpu"], "device is 'gpu': choose cpu"),
        (["--model", "{folder}"], "choose another model"),
        (["--model", "{folder}/absent"], "bundled ones are smollm2"),
    ],
)
def test_the_command_explains_what_it_can_t_load_and_exits_with_2(
    flags: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "unheard_of"}')
    with pytest.raises(SystemExit) as caught:
        main(["serve", "--port", "0", *(flag.format(folder=tmp_path) for flag in flags)])
    assert caught.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_what_faiss_did_not_find_is_not_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    async def serve_nothing(*_: object, **__: object) -> None:
        assert logging.getLogger("faiss.loader").getEffectiveLevel() == logging.WARNING

    logging.getLogger("faiss.loader").setLevel(logging.INFO)
    monkeypatch.setattr("semshare_service.serve.serve", serve_nothing)
    run(ServiceSettings())
