"""A TCP proxy on loopback that makes a network slow, or cuts it, when a test says so."""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_PIECE = 64 << 10


class Proxy:
    """Passes bytes on to a port. Its attributes may be set at any time.

    Args:
        port: of the server.
        tls: what the proxy shows to who connects; plain TCP if None.

    delay_s:  what each piece of an answer waits.
    piece:    bytes of an answer that are passed on at a time.
    cut_after: bytes of answers after which the connection is cut, once; None for never.
    silent:   nothing is passed on in either direction, and no connection is closed.
    """

    def __init__(self, port: int, tls: ssl.SSLContext | None = None) -> None:
        self._tls = tls
        self._target = port
        self.port = 0
        self.delay_s = 0.0
        self.piece = _PIECE
        self.cut_after: int | None = None
        self.silent = False
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    def start(self) -> None:
        self._thread.start()
        assert self._ready.wait(10)

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)
        assert not self._thread.is_alive()

    @contextmanager
    def running(self) -> Iterator[Proxy]:
        self.start()
        try:
            yield self
        finally:
            self.stop()

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0, ssl=self._tls)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._stop.wait()
        server.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        back: asyncio.StreamWriter | None = None
        try:
            answers, back = await asyncio.open_connection("127.0.0.1", self._target)
            ways = {
                asyncio.ensure_future(self._pass(reader, back, answer=False)),
                asyncio.ensure_future(self._pass(answers, writer, answer=True)),
            }
            try:
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for way in ways:
                    way.cancel()
                await asyncio.gather(*ways, return_exceptions=True)
        except OSError:
            pass
        finally:
            for end in (writer, back):
                if end is not None:
                    end.transport.abort()

    async def _pass(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, answer: bool
    ) -> None:
        while data := await source.read(_PIECE):
            for start in range(0, len(data), self.piece):
                some = data[start : start + self.piece]
                while self.silent:
                    await asyncio.sleep(0.01)
                if answer and self.delay_s:
                    await asyncio.sleep(self.delay_s)
                if answer and self.cut_after is not None:
                    self.cut_after -= len(some)
                    if self.cut_after < 0:
                        self.cut_after = None
                        return
                sink.write(some)
                await sink.drain()
