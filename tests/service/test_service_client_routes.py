"""What each method of the clients sends and returns, over a service that keeps to the contract."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import trustme
from aiohttp.test_utils import TestServer
from contract_app import KV, PIECES, REQUEST, REUSE, STATS, Contract, listening

from semshare.config import ReusePolicy
from semshare.types import DonorInfo
from semshare_service.client import (
    TLS,
    AsyncClient,
    Client,
    ModelInfo,
    PromptPiece,
    RequestRecord,
)
from semshare_service.errors import ServiceError, ServiceUnavailable
from semshare_service.kv_wire import CONTENT_TYPE as KV_MEDIA_TYPE

DONOR = DonorInfo("d0", "default", 6, 600, created=1.5, last_used=2.5)


@pytest.fixture
async def contract() -> Contract:
    return Contract()


@pytest.fixture
async def url(contract: Contract) -> AsyncIterator[str]:
    async with listening(contract) as address:
        yield address


@pytest.fixture(params=["async", "sync"])
async def ask(request: pytest.FixtureRequest, url: str) -> AsyncIterator[Callable[..., Any]]:
    """Calls a method of either client."""
    if request.param == "async":
        async with AsyncClient(url) as client:
            yield lambda name, *given, **options: getattr(client, name)(*given, **options)
        return
    plain = await asyncio.to_thread(Client, url)
    yield lambda name, *given, **options: asyncio.to_thread(getattr(plain, name), *given, **options)
    await asyncio.to_thread(plain.close)


def last(contract: Contract) -> tuple[str, str, Any]:
    seen = contract.seen[-1]
    return seen.method, seen.path, seen.body or None


async def test_donors(ask: Callable[..., Any], contract: Contract) -> None:
    assert await ask("remember", "x", ttl_s=60) == DONOR
    sent = {"text": "x", "namespace": "default", "pinned": False, "ttl_s": 60}
    assert last(contract) == ("PUT", "/v1/donors", sent)
    await ask("remember", "x")
    assert "ttl_s" not in contract.seen[-1].body
    page = await ask("donors", namespace="n", limit=1, after="d2")
    assert ([donor.id for donor in page], page.has_more, len(page)) == (["d3"], True, 1)
    assert last(contract) == ("GET", "/v1/donors?namespace=n&limit=1&after=d2", None)
    found = await ask("donor", "d0")
    assert (found.donor, found.text) == (DONOR, "The ferry")
    await ask("publish_donor", "a/b", tenant="t")
    path = "/v1/donors/a%2Fb/publish?namespace=default&tenant=t"
    assert last(contract) == ("POST", path, None)
    await ask("publish_donor", "d0")
    assert last(contract)[1] == "/v1/donors/d0/publish?namespace=default"


async def test_an_update_sends_what_is_given(ask: Callable[..., Any], contract: Contract) -> None:
    updates: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({"pinned": False}, {"pinned": False}),
        ({"ttl_s": 2.5}, {"ttl_s": 2.5}),
        ({"ttl_s": None}, {"ttl_s": None}),  # never expires
        ({"pinned": True, "ttl_s": 1}, {"pinned": True, "ttl_s": 1}),
        ({}, {}),
    ]
    for given, sent in updates:
        assert (await ask("update_donor", "d0", **given)).pinned is True
        assert contract.seen[-1].body == sent
    assert last(contract)[:2] == ("PATCH", "/v1/donors/d0?namespace=default")


async def test_all_donors_are_read_page_by_page(contract: Contract, url: str) -> None:
    def use() -> list[str]:
        with Client(url) as client:
            return [donor.id for donor in client.all_donors(namespace="n")]

    async with AsyncClient(url) as client:
        found = [donor.id async for donor in client.all_donors(namespace="n")]
    assert found == ["d0", "d1", "d2", "d3", "d4"] == await asyncio.to_thread(use)
    assert [seen.path.rpartition("&")[2] for seen in contract.seen[:3]] == [
        "limit=1000",
        "after=d1",
        "after=d3",
    ]


async def test_inspect(ask: Callable[..., Any], contract: Contract) -> None:
    found = await ask("inspect", [1, 2], policy=ReusePolicy(mode="span"), namespace="n")
    assert found.pieces == tuple(PromptPiece(**piece) for piece in PIECES)
    assert (found.match.prompt_tokens, found.match.spans[1].reason) == (6, "fact")
    sent = contract.seen[-1].body
    assert (sent["ids"], sent["semshare"]["mode"], sent["semshare"]["namespace"]) == (
        [1, 2],
        "span",
        "n",
    )


async def test_observation(ask: Callable[..., Any], contract: Contract) -> None:
    assert await ask("models") == (ModelInfo("fake", 1_700_000_000, "semshare", 1024),)
    assert await ask("stats") == STATS
    record = RequestRecord(**REQUEST)
    assert await ask("requests", limit=5) == (record,)
    assert last(contract)[1] == "/v1/requests?limit=5"
    found = await ask("request", "r1")
    assert (found.request, found.pieces[1].source) == (record, "fresh")
    assert await ask("metrics") == "semshare:requests_total 7\n"
    assert contract.seen[-1].headers["Accept"].startswith("text/plain")


async def test_kv(contract: Contract, url: str) -> None:
    async with AsyncClient(url) as client:
        async with await client.prefill("x", ttl_s=9) as handle:
            assert contract.seen[-1].body["ttl_s"] == 9
            found = handle.prefilled
            assert (found.handle, found.prompt_tokens) == ("h1", 6)
            assert (found.expires, found.reuse.tokens) == (1_700_000_060.0, REUSE["tokens"])
            chunks = [chunk async for chunk in handle.chunks()]
        assert b"".join(chunks) == b"".join(KV)
        assert last(contract)[:2] == ("DELETE", "/v1/kv/h1")

        async def bring() -> AsyncIterator[bytes]:
            for chunk in KV:
                yield chunk

        for source in (bring(), KV, iter(KV)):
            assert await client.upload_kv(source, pinned=True, ttl_s=1.5) == DONOR
            path = "/v1/kv?namespace=default&pinned=true&ttl_s=1.5"
            assert last(contract) == ("PUT", path, b"".join(KV))
            assert contract.seen[-1].headers["Content-Type"] == KV_MEDIA_TYPE


async def test_kv_of_the_sync_client(contract: Contract, url: str) -> None:
    def use() -> None:
        with Client(url) as client:
            with client.prefill("x") as handle:
                assert b"".join(handle.chunks()) == b"".join(KV)
            assert last(contract)[:2] == ("DELETE", "/v1/kv/h1")
            assert client.upload_kv(iter(KV)) == DONOR

    await asyncio.to_thread(use)


async def test_the_key_is_sent_and_never_shown(
    contract: Contract, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def sent(**options: Any) -> str | None:
        async with AsyncClient(url, **options) as client:
            await client.health()
        return contract.seen[-1].headers.get("Authorization")

    assert await sent() is None
    assert await sent(api_key="given") == "Bearer given"
    monkeypatch.setenv("SEMSHARE_API_KEY", "from-outside")
    assert await sent() == "Bearer from-outside"
    assert await sent(api_key="given") == "Bearer given"
    with pytest.raises(ServiceError, match="SEMSHARE_API_KEY") as caught:
        AsyncClient(url, api_key="secret\r\nX-Evil: 1")
    assert "secret" not in str(caught.value)


async def test_silence_ends_a_stream(contract: Contract, url: str) -> None:
    contract.hold = asyncio.Event()
    async with AsyncClient(url, read_timeout_s=0.05) as client:
        with pytest.raises(ServiceUnavailable, match="read_timeout_s"):
            async for _ in client.stream("x"):
                pass


async def test_connections_are_bounded_and_used_again(contract: Contract, url: str) -> None:
    async with AsyncClient(url, max_connections=2) as client:
        await asyncio.gather(*(client.health() for _ in range(8)))
    assert len({seen.connection for seen in contract.seen}) <= 2


async def test_tls(contract: Contract, tmp_path: Path) -> None:
    """The client trusts the authority it is given, and shows its own certificate when asked."""
    authority = trustme.CA()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.configure_trust(context)
    context.verify_mode = ssl.CERT_REQUIRED
    ca_file, own_file = tmp_path / "ca.pem", tmp_path / "own.pem"
    authority.cert_pem.write_to_path(ca_file)
    own = authority.issue_cert("client@example.org")
    own.private_key_and_cert_chain_pem.write_to_path(own_file)
    server = TestServer(contract.app(), scheme="https")
    await server.start_server(ssl=context)
    url = str(server.make_url("/"))
    async with AsyncClient(url, tls=TLS(ca_file, certificate_file=own_file)) as client:
        assert (await client.health()).status == "ok"
    async with AsyncClient(url) as client:
        with pytest.raises(ServiceUnavailable, match="certificate"):
            await client.health()
    await server.close()
    assert len(contract.seen) == 1


def test_tls_files_that_can_t_be_used(tmp_path: Path) -> None:
    with pytest.raises(ServiceError, match="absent"):
        AsyncClient("https://localhost", tls=TLS(ca_file=tmp_path / "absent.pem"))
