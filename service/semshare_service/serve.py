"""Bind the application to an address and run it until it is told to stop."""

from __future__ import annotations

import asyncio
import logging
import signal
import ssl
from collections.abc import Callable

from aiohttp import web

from semshare.config import EngineConfig
from semshare.errors import InvalidRequest
from semshare_service.app import create_app
from semshare_service.connections import Connections, server_logger
from semshare_service.context import SERVICE
from semshare_service.engine import Engine, EngineLoader
from semshare_service.errors import ServiceUnavailable
from semshare_service.logs import configure_logging
from semshare_service.settings import ServiceSettings

logger = logging.getLogger(__name__)

# A request that is given up at the stop ends between two steps of the model, and its client is told
# before the connection is cut.
_LAST_WORDS_S = 2.0
_BACKLOG = 128  # connections that wait to be accepted
_LINGERING_S = 2.0  # reads on after an early refusal, so that a client that still sends gets it


def engine_loader(settings: ServiceSettings) -> EngineLoader:
    """A function that loads the model the settings name.

    Raises:
        InvalidRequest: a tier below the pool can't work as it is set.

    """
    storage = settings.storage()

    def load() -> Engine:
        from semshare import SemShare  # noqa: PLC0415  # seconds: in the worker, not at start

        return SemShare.from_pretrained(
            settings.model,
            device=settings.device,
            dtype=settings.dtype,
            config=EngineConfig(
                kv_budget_bytes=int(settings.kv_budget_bytes),
                max_divergence=settings.shadow_max_divergence if settings.shadow_share else None,
                storage=storage,
            ),
        )

    return load


def tls_context(settings: ServiceSettings) -> ssl.SSLContext | None:
    """With the settings' certificate; None where they name none.

    Raises:
        InvalidRequest: a file that can't be read, or that is not what it should be.

    """
    if settings.tls_certificate is None or settings.tls_key is None:
        return None
    for name in ("tls_certificate", "tls_key"):
        path = getattr(settings, name)
        try:
            path.read_bytes()
        except OSError as error:
            raise InvalidRequest(f"can't read {name} {path}: {error.strerror}") from None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        # A password, so that nobody is asked for one at a terminal that may not be there.
        context.load_cert_chain(settings.tls_certificate, settings.tls_key, password="")
    except ssl.SSLError as error:
        raise InvalidRequest(
            f"{settings.tls_certificate} and {settings.tls_key} are not a certificate and its "
            f"unencrypted private key, both in PEM form: {error.reason or error}"
        ) from None
    return context


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
    tls = tls_context(settings)
    app = create_app(load or engine_loader(settings), settings)
    connections = Connections(settings.max_connections)
    app.middlewares.insert(0, connections.middleware)
    runner = web.AppRunner(
        app,
        handler_cancellation=True,  # a client that has gone takes its request with it
        shutdown_timeout=settings.shutdown_timeout_s + _LAST_WORDS_S,
        # Counted from the connection or the last response to the end of the next request's head.
        keepalive_timeout=settings.read_timeout_s,
        lingering_time=_LINGERING_S,
        logger=server_logger,
        access_log=None,  # `logs.log_access` writes one without raw paths
    )
    await runner.setup()
    loaded = asyncio.wrap_future(app[SERVICE].worker.loaded)
    listening: asyncio.Server | None = None
    try:
        listening = await _listen(runner, connections, settings, tls)
        address = _address(listening, "http" if tls is None else "https")
        logger.info("listening on %s", address)
        if on_listening is not None:
            on_listening(address)
        await _until_stopped(loaded)
    finally:
        loaded.cancel()
        if listening is not None:
            listening.close()
        await runner.cleanup()


async def _listen(
    runner: web.AppRunner,
    connections: Connections,
    settings: ServiceSettings,
    tls: ssl.SSLContext | None,
) -> asyncio.Server:
    assert runner.server is not None  # noqa: S101 - it has been set up
    try:
        # Not a `web.TCPSite`, which takes every connection that comes.
        return await asyncio.get_running_loop().create_server(
            connections.bound(runner.server),
            settings.host,
            settings.port,
            backlog=_BACKLOG,
            ssl=tls,
            # Such connections are not among those that `max_connections` counts yet.
            ssl_handshake_timeout=None if tls is None else min(settings.read_timeout_s, 10.0),
        )
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


def _address(listening: asyncio.Server, scheme: str) -> str:
    host, port = listening.sockets[0].getsockname()[:2]
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def run(settings: ServiceSettings, *, on_listening: Callable[[str], None] | None = None) -> None:
    """`serve` as a program: logs to standard error, returns after a clean stop."""
    configure_logging(settings.log_level, settings.log_format)
    asyncio.run(serve(settings, on_listening=on_listening))
