"""How calls reach the service: connections, time limits, TLS, the key, and tries again."""

from __future__ import annotations

import os
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any, TypedDict, TypeVar

import aiohttp
from yarl import URL

from semshare.errors import SemShareError
from semshare_service.client.call import (
    Call,
    Reply,
    error_of,
    media_type,
    read_reply,
)
from semshare_service.client.retries import Refused, RetryPolicy
from semshare_service.errors import ServiceError, ServiceUnavailable
from semshare_service.kv_wire import CONTENT_TYPE as KV_MEDIA_TYPE
from semshare_service.wire import encode

T = TypeVar("T")
R = TypeVar("R")
DEFAULT_URL = "http://127.0.0.1:8765"
DEFAULT_TIMEOUT_S = 330.0  # a little over the service's own, whose error says more
API_KEY_VARIABLE = "SEMSHARE_API_KEY"
_REFUSALS = (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE)


@dataclass(frozen=True, slots=True)
class TLS:
    """Certificates, as paths of PEM files. Needed only where the system's own list won't do.

    ca_file:          whom to trust instead of the authorities the system trusts.
    certificate_file: what this client shows of itself, with `key_file`, its private key.
    """

    ca_file: Path | None = None
    certificate_file: Path | None = None
    key_file: Path | None = None

    def context(self) -> ssl.SSLContext:
        """What a connection is made with. `ServiceError` where a file can't be used."""
        try:
            context = ssl.create_default_context(cafile=self.ca_file)
            if self.certificate_file is not None:
                context.load_cert_chain(self.certificate_file, self.key_file)
        except OSError as error:  # also ssl.SSLError
            raise ServiceError(f"can't use the TLS files of {self}: {error}") from None
        return context


class ClientOptions(TypedDict, total=False):
    """Keyword arguments of `Client` and `AsyncClient`.

    api_key:           sent as a bearer token; by default what `SEMSHARE_API_KEY` holds, if set.
    wire:              `"msgpack"` (the default) or `"json"`.
    timeout_s:         seconds one try may take, from the first byte sent to the last one read,
                       330 by default: a little over the service's own limit.
    connect_timeout_s: seconds to connect in, 10 by default.
    read_timeout_s:    seconds without a byte from the service; bounded by `timeout_s` alone by
                       default, since a long prompt is silent until its first token.
    tls:               certificates for `https` addresses.
    max_connections:   kept open for reuse at most, 100 by default; more calls at once wait.
    retries:           how often a request is sent again where that is safe.
    """

    api_key: str | None
    wire: str
    timeout_s: float
    connect_timeout_s: float
    read_timeout_s: float | None
    tls: TLS | None
    max_connections: int
    retries: RetryPolicy


class Transport:
    """Sends calls and reads their answers; see `ClientOptions` for the arguments.

    A request is sent again only where that can do no harm: no connection was made; the service
    refused it with 429 or 503 and `Retry-After`, which it says before it begins anything; or the
    connection broke and the call `is_repeatable`. The bytes of an upload can be read once, so it is
    sent once.
    """

    def __init__(
        self,
        base_url: str,
        *,
        api_key: str | None = None,
        wire: str = "msgpack",
        timeout_s: float = DEFAULT_TIMEOUT_S,
        connect_timeout_s: float = 10.0,
        read_timeout_s: float | None = None,
        tls: TLS | None = None,
        max_connections: int = 100,
        retries: RetryPolicy | None = None,
    ) -> None:
        self._base_url = base_url.rstrip("/")
        self._form = media_type(wire)
        self._timeout_s = timeout_s
        self._timeout = aiohttp.ClientTimeout(
            total=timeout_s, sock_connect=connect_timeout_s, sock_read=read_timeout_s
        )
        self._headers = _authorization(api_key or os.environ.get(API_KEY_VARIABLE))
        self._ssl: ssl.SSLContext | bool = True if tls is None else tls.context()
        self._max_connections = max_connections
        self._retries = retries or RetryPolicy()
        self._session: aiohttp.ClientSession | None = None

    async def send(self, call: Call[T]) -> T:
        """Send one call and read its answer."""

        async def read(response: aiohttp.ClientResponse) -> T:
            return read_reply(call, await _whole(response))

        return await self._until_answered(call, read)

    @asynccontextmanager
    async def open(self, call: Call[Any]) -> AsyncIterator[AsyncIterator[bytes]]:
        """The bytes of a call's answer as they come. Leaving the context early hangs up.

        Nothing is sent again once the answer has begun.
        """

        async def begin(response: aiohttp.ClientResponse) -> aiohttp.ClientResponse:
            return response

        response = await self._until_answered(call, begin)
        try:
            yield self._chunks(response)
        finally:
            response.close()  # a connection whose answer was read to its end is kept all the same

    async def close(self) -> None:
        """Close the connections. A later call opens new ones."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def _until_answered(
        self, call: Call[Any], read: Callable[[aiohttp.ClientResponse], Awaitable[R]]
    ) -> R:
        retries = self._retries
        began, tries = retries.clock(), 0
        while True:
            tries += 1
            try:
                return await self._try(call, read)
            except Refused as refused:
                wait_s = retries.wait_s(tries, retries.clock() - began, refused.retry_after_s)
                if wait_s is None or call.upload is not None:
                    raise refused.error from refused.__cause__
            await retries.sleep(wait_s)

    async def _try(
        self, call: Call[Any], read: Callable[[aiohttp.ClientResponse], Awaitable[R]]
    ) -> R:
        """`Refused` where the same request may be sent again, other errors where it may not."""
        try:
            response = await self._request(call)
            if response.status in call.answers:
                return await read(response)
            reply = await _whole(response)
        except aiohttp.ConnectionTimeoutError as error:
            raise Refused(self._unreachable(error)) from error
        except TimeoutError:
            raise self._too_slow() from None
        except aiohttp.ClientSSLError as error:
            raise self._unreachable(error) from error  # the next try would see the same certificate
        except (aiohttp.ClientError, OSError) as error:
            unsent = isinstance(error, aiohttp.ClientConnectorError)
            if unsent or call.is_repeatable:
                raise Refused(self._unreachable(error)) from error
            raise self._unreachable(error) from error
        failure = error_of(reply)
        if reply.status in _REFUSALS and reply.retry_after_s is not None:
            raise Refused(failure, reply.retry_after_s)
        raise failure

    async def _request(self, call: Call[Any]) -> aiohttp.ClientResponse:
        headers = {**self._headers, "Accept": call.accept or self._form.value}
        data: Any = call.upload
        if call.upload is not None:
            headers["Content-Type"] = KV_MEDIA_TYPE
        elif call.body is not None:
            headers["Content-Type"] = self._form.value
            data = encode(call.body, self._form)
        return await self._open_session().request(
            call.method,
            URL(self._base_url + call.path, encoded=True),
            data=data,
            headers=headers,
            allow_redirects=False,  # the service sends none, and the key is for it alone
        )

    def _open_session(self) -> aiohttp.ClientSession:
        # Made at the first call: a session belongs to the loop that runs then.
        if self._session is None or self._session.closed:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=self._max_connections, ssl=self._ssl),
                timeout=self._timeout,
            )
        return self._session

    async def _chunks(self, response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
        try:
            async for chunk in response.content.iter_any():
                yield chunk
        except TimeoutError:
            raise self._too_slow() from None
        except (aiohttp.ClientError, OSError) as error:
            raise ServiceUnavailable(
                f"the connection to {self._base_url} broke in the middle of an answer ({error}): "
                "ask again"
            ) from error

    def _too_slow(self) -> SemShareError:
        return ServiceUnavailable(
            f"{self._base_url} gave no answer in {self._timeout_s:g} s (timeout_s), or went "
            "silent for read_timeout_s"
        )

    def _unreachable(self, error: Exception) -> SemShareError:
        return ServiceUnavailable(
            f"{self._base_url} can't be reached ({error}): is `semshare serve` running there?"
        )


async def _whole(response: aiohttp.ClientResponse) -> Reply:
    async with response:
        return Reply(
            status=response.status,
            content_type=response.headers.get("Content-Type"),
            retry_after=response.headers.get("Retry-After"),
            body=await response.read(),
        )


def _authorization(api_key: str | None) -> dict[str, str]:
    if not api_key:
        return {}
    if not api_key.isascii() or not api_key.isprintable() or " " in api_key:
        raise ServiceError(
            "the API key holds a space or a character that no header can carry: check api_key and "
            f"{API_KEY_VARIABLE}"
        )
    return {"Authorization": f"Bearer {api_key}"}
