"""Keys: who gets in, who does not, and that the settings hold no key."""

from __future__ import annotations

import hmac
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp.test_utils import TestClient
from fake_engine import FakeEngine
from service_helpers import running

from semshare.cli import main
from semshare.errors import InvalidRequest
from semshare_service import auth
from semshare_service.auth import KeyRing, hash_key, new_key
from semshare_service.settings import ServiceSettings, load_settings

KEYS = {"acme": "key of acme", "other": "key of other"}


def tenants(**more: object) -> dict[str, dict[str, object]]:
    return {name: {"keys": [hash_key(key)], **more} for name, key in KEYS.items()}


@pytest.fixture
async def guarded(engine: FakeEngine) -> AsyncIterator[TestClient]:
    async with running(engine, tenants=tenants()) as client:
        yield client


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": f"Bearer {KEYS['acme']}"},
        {"authorization": f"bearer  {KEYS['acme']} "},
        {"X-API-Key": KEYS["acme"]},
    ],
)
async def test_a_key_names_its_tenant(
    guarded: TestClient, engine: FakeEngine, headers: dict[str, str]
) -> None:
    async with guarded.put("/v1/donors", json={"text": "x"}, headers=headers) as response:
        assert response.status == 200
        assert (await response.json())["namespace"] == "default"
    assert list(engine.kept) == [("acme/default", "d0")]


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer key of nobody"},
        {"Authorization": "Bearer "},
        {"Authorization": f"Basic {KEYS['acme']}"},
        {"X-API-Key": hash_key(KEYS["acme"])},
        {"X-API-Key": ""},
        {"Authorization": "Bearer wrong", "X-API-Key": KEYS["acme"]},
    ],
)
@pytest.mark.parametrize("path", ["/v1/models", "/v1/donors", "/no/such/path"])
async def test_no_other_key_gets_in(
    guarded: TestClient, engine: FakeEngine, path: str, headers: dict[str, str]
) -> None:
    async with guarded.get(path, headers=headers) as response:
        assert response.status == 401
        assert response.headers["WWW-Authenticate"] == "Bearer"
        error = (await response.json())["error"]
    assert (error["code"], error["type"]) == ("invalid_api_key", "authentication_error")
    assert "key of" not in error["message"]
    assert engine.calls == []


async def test_probes_need_no_key(guarded: TestClient) -> None:
    for path in ("/health", "/ready"):
        async with guarded.get(path) as response:
            assert response.status == 200


async def test_without_tenants_no_key_is_asked_for(client: TestClient) -> None:
    headers = {"Authorization": "Bearer anything"}
    async with client.get("/v1/models", headers=headers) as response:
        assert response.status == 200


@pytest.mark.parametrize("key", [*KEYS.values(), "unknown", ""])
def test_every_digest_is_compared_whichever_key_it_is(
    monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    compared = []
    compare_digest = hmac.compare_digest

    def counting(left: str, right: str) -> bool:
        compared.append(right)
        return compare_digest(left, right)

    ring = KeyRing(ServiceSettings(tenants=tenants()))
    monkeypatch.setattr(auth.hmac, "compare_digest", counting)
    tenant = ring.tenant_of(key)
    assert (tenant.name if tenant else None) == {v: k for k, v in KEYS.items()}.get(key)
    assert compared == [hash_key(known) for known in KEYS.values()]


def test_a_tenant_may_have_several_keys_and_is_what_the_settings_say() -> None:
    keys = [new_key(), new_key()]
    assert len(set(keys)) == 2
    settings = {"keys": [hash_key(key) for key in keys], "operator": True, "max_concurrency": 3}
    ring = KeyRing(ServiceSettings(tenants={"a.b-c_1": settings}))
    first, second = (ring.tenant_of(key) for key in keys)
    assert first is not None
    assert first == second
    assert (first.name, first.operator, first.max_concurrency) == ("a.b-c_1", True, 3)


def test_a_digest_is_sha256() -> None:
    """FIPS 180-2, example B.1."""
    assert hash_key("abc") == (
        "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )


def test_a_new_key_is_printed_with_settings_that_let_it_in(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["keys", "new", "acme.prod"])
    assert caught.value.code == 0
    key, *lines = capsys.readouterr().out.splitlines()
    config = tmp_path / "semshare.toml"
    config.write_text("\n".join(lines))
    assert key not in config.read_text()
    tenant = KeyRing(load_settings(["--config", str(config)])[0]).tenant_of(key)
    assert tenant is not None
    assert tenant.name == "acme.prod"


def test_a_name_no_tenant_can_have(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["keys", "new", "a/b"])
    assert caught.value.code == 2
    assert "'a/b' can't name a tenant" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[tenants.a]\nkeys = ["secret"]', r"tenants\.a\.keys\.0"),
        ("[tenants.a]\nkeys = []", r"tenants\.a\.keys"),
        ("[tenants.a]\noperator = true", r"tenants\.a\.keys: Field required"),
        ('[tenants."a/b"]\nkeys = ["{digest}"]', r"tenants\.a/b"),
        ('[tenants.a]\nkeys = ["{digest}"]\nmax_doners = 1', r"tenants\.a\.max_doners.*max_donors"),
        (
            '[tenants.a]\nkeys = ["{digest}"]\n[tenants.b]\nkeys = ["{digest}"]',
            "'a' and 'b' have a key in common",
        ),
    ],
)
def test_settings_of_tenants_that_are_refused(tmp_path: Path, text: str, message: str) -> None:
    config = tmp_path / "semshare.toml"
    config.write_text(text.replace("{digest}", hash_key("k")))
    with pytest.raises(InvalidRequest, match=message) as caught:
        load_settings(["--config", str(config)])
    assert "secret" not in str(caught.value)


def test_with_keys_other_machines_may_ask(tmp_path: Path) -> None:
    config = tmp_path / "semshare.toml"
    config.write_text(f'[tenants.a]\nkeys = ["{hash_key("k")}"]')
    settings, _ = load_settings(["--config", str(config), "--host", "0.0.0.0"])  # noqa: S104
    assert not settings.allow_remote


def test_tenants_may_be_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEMSHARE_TENANTS", '{"a": {"keys": ["%s"]}}' % hash_key("k"))  # noqa: UP031
    assert list(load_settings()[0].tenants) == ["a"]
    monkeypatch.setenv("SEMSHARE_TENANTS", "a")
    with pytest.raises(InvalidRequest, match="tenants are written as JSON"):
        load_settings()


REFUSED = (("evil.example:8765", 403), ("localhost:99999", 403), ("localhost:abc", 403))


async def test_without_keys_a_name_that_points_here_is_refused(client: TestClient) -> None:
    for host, status in (*REFUSED, ("localhost", 200), ("127.0.0.1:1", 200)):
        async with client.get("/v1/requests", headers={"Host": host}) as response:
            assert response.status == status


async def test_where_others_may_ask_any_name_will_do(engine: FakeEngine) -> None:
    async with (
        running(engine, allow_remote=True) as client,
        client.get("/v1/requests", headers={"Host": "model.example"}) as response,
    ):
        assert response.status == 200
