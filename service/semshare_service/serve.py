"""Bind the application to an address and run it until it is told to stop."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable

from aiohttp import web

from semshare.config import EngineConfig
from semshare_service.app import create_app
from semshare_service.context import SERVICE
from semshare_service.engine import Engine, EngineLoader
from semshare_service.errors import ServiceUnavailable
from semshare_service.logs import configure_logging
from semshare_service.settings import ServiceSettings

logger = logging.getLogger(__name__)


def engine_loader(settings: ServiceSettings) -> EngineLoader:
    """A function that loads the model the settings name."""

    def load() -> Engine:
        from semshare import SemShare  # noqa: PLC0415  # seconds: in the worker, not at start

        return SemShare.from_pretrained(
            settings.model,
            device=settings.device,
            dtype=settings.dtype,
            config=EngineConfig(kv_budget_bytes=int(settings.kv_budget_bytes)),
        )

    return load


async def serve(
    settings: ServiceSettings,
    *,
    load: EngineLoader | None = None,
    on_listening: Callable[[str], None] | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT, or until the model turns out not to load: that is raised.

    load:         makes the engine; the model the settings name by default.
    on_listening: called once with the address, before the model is loaded.
    """
    app = create_app(load or engine_loader(settings), settings)
    runner = web.AppRunner(
        app,
        handler_cancellation=True,  # a client that has gone takes its request with it
        shutdown_timeout=settings.shutdown_timeout_s,
        access_log=None,  # `logs.log_access` writes one without raw paths
    )
    await runner.setup()
    loaded = asyncio.wrap_future(app[SERVICE].worker.loaded)
    try:
        await _listen(runner, settings)
        address = _address(runner)
        logger.info("listening on %s", address)
        if on_listening is not None:
            on_listening(address)
        await _until_stopped(loaded)
    finally:
        loaded.cancel()
        await runner.cleanup()


async def _listen(runner: web.AppRunner, settings: ServiceSettings) -> None:
    try:
        await web.TCPSite(runner, settings.host, settings.port).start()
    except OSError as error:
        raise ServiceUnavailable(
            f"can't listen on {settings.host} port {settings.port}: {error.strerror}; choose "
            "another port, 0 for any free one"
        ) from None


async def _until_stopped(loaded: asyncio.Future[None]) -> None:
    """Return at a stop signal; raise what stopped the model from loading."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    signals = (signal.SIGTERM, signal.SIGINT)
    for number in signals:
        loop.add_signal_handler(number, stop.set)
    stopped = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait((stopped, loaded), return_when=asyncio.FIRST_COMPLETED)
        if loaded.done():
            loaded.result()
        await stopped
    finally:
        stopped.cancel()
        for number in signals:
            loop.remove_signal_handler(number)


def _address(runner: web.AppRunner) -> str:
    host, port = runner.addresses[0][:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def run(settings: ServiceSettings, *, on_listening: Callable[[str], None] | None = None) -> None:
    """`serve` as a program: logs to standard error, returns after a clean stop."""
    configure_logging(settings.log_level, settings.log_format)
    asyncio.run(serve(settings, on_listening=on_listening))
