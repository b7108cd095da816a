"""HTTPS, and certificates that can't be used."""

from __future__ import annotations

import asyncio
import os
import signal
import ssl
from pathlib import Path

import aiohttp
import pytest
import trustme
from fake_engine import FakeEngine

from semshare.errors import InvalidRequest
from semshare_service.serve import serve, tls_context
from semshare_service.settings import ServiceSettings, load_settings


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def files(authority: trustme.CA, tmp_path: Path) -> dict[str, Path]:
    issued = authority.issue_cert("localhost", "127.0.0.1")
    found = {"tls_certificate": tmp_path / "certificate.pem", "tls_key": tmp_path / "key.pem"}
    found["tls_certificate"].write_bytes(b"".join(b.bytes() for b in issued.cert_chain_pems))
    found["tls_key"].write_bytes(issued.private_key_pem.bytes())
    return found


async def test_the_service_speaks_https(
    engine: FakeEngine, authority: trustme.CA, files: dict[str, Path]
) -> None:
    address: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    service = asyncio.create_task(
        serve(
            ServiceSettings(port=0, concurrency=1, **files),
            load=lambda: engine,
            on_listening=address.set_result,
        )
    )
    url = await address
    assert url.startswith("https://127.0.0.1:")
    trusting, strange = ssl.create_default_context(), ssl.create_default_context()
    authority.configure_trust(trusting)
    async with aiohttp.ClientSession() as session:
        async with session.get(f"{url}/health", ssl=trusting) as response:
            assert response.status == 200
        with pytest.raises(aiohttp.ClientConnectorCertificateError):
            await session.get(f"{url}/health", ssl=strange)
        with pytest.raises(aiohttp.ClientError):
            await session.get(f"{url.replace('https', 'http')}/health")
    os.kill(os.getpid(), signal.SIGTERM)
    await service


@pytest.mark.parametrize("name", ["tls_certificate", "tls_key"])
def test_a_file_that_can_t_be_read_is_named(files: dict[str, Path], name: str) -> None:
    files[name].unlink()
    with pytest.raises(InvalidRequest, match=f"can't read {name} .*pem: No such file"):
        tls_context(ServiceSettings(**files))


def test_what_is_no_certificate(files: dict[str, Path]) -> None:
    files["tls_certificate"].write_text("hello")
    with pytest.raises(InvalidRequest, match=r"certificate\.pem and .*key\.pem are not"):
        tls_context(ServiceSettings(**files))


def test_a_key_of_another_certificate(files: dict[str, Path], authority: trustme.CA) -> None:
    files["tls_key"].write_bytes(authority.issue_cert("localhost").private_key_pem.bytes())
    with pytest.raises(InvalidRequest, match="KEY_VALUES_MISMATCH"):
        tls_context(ServiceSettings(**files))


def test_one_without_the_other() -> None:
    with pytest.raises(InvalidRequest, match="set both or neither"):
        load_settings(["--tls-key", "key.pem"])


def test_without_a_certificate_there_is_no_tls() -> None:
    assert tls_context(ServiceSettings()) is None
