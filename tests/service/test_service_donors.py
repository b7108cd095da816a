"""Donors over HTTP: pages, one with its text, pins, times to live, publishing."""

from __future__ import annotations

from typing import Any

import pytest
from aiohttp.test_utils import TestClient
from fake_engine import FakeEngine
from service_helpers import running

from semshare_service.auth import hash_key


async def told(client: TestClient, method: str, path: str, **fields: Any) -> tuple[int, Any]:
    async with client.request(method, path, **fields) as response:
        return response.status, await response.json()


async def put(client: TestClient, **fields: Any) -> Any:
    status, donor = await told(client, "PUT", "/v1/donors", json=fields)
    assert status == 200
    return donor


async def test_a_donor_is_told_with_all_that_is_known_of_it(client: TestClient) -> None:
    donor = await put(client, text="four", namespace="n", pinned=True, ttl_s=60)
    assert donor == {
        "object": "donor",
        "id": "d0",
        "namespace": "n",
        "tokens": 4,
        "bytes": 400,
        "pinned": True,
        "created": 0.0,
        "last_used": 0.0,
        "expires": 60.0,
        "published": False,
    }
    status, one = await told(client, "GET", "/v1/donors/d0?namespace=n")
    assert (status, one) == (200, donor | {"text": "four"})
    status, error = await told(client, "GET", "/v1/donors/d0")
    assert (status, error["error"]["code"]) == (404, "not_found")


@pytest.mark.parametrize(
    ("limit", "pages"), [(1, ["d0", "d1", "d2"]), (2, ["d0 d1", "d2"]), (3, ["d0 d1 d2"])]
)
async def test_donors_come_in_pages_oldest_first(
    client: TestClient, limit: int, pages: list[str]
) -> None:
    for text in ("a", "b", "c"):
        await put(client, text=text)
    await put(client, text="d", namespace="n")
    seen, after = [], ""
    while True:
        status, page = await told(client, "GET", f"/v1/donors?limit={limit}{after}")
        assert (status, page["object"]) == (200, "list")
        seen.append(" ".join(donor["id"] for donor in page["data"]))
        if not page["has_more"]:
            break
        after = f"&after={page['data'][-1]['id']}"
    assert seen == pages


async def test_the_page_after_the_last_donor_is_empty(client: TestClient) -> None:
    await put(client, text="a")
    page = (await told(client, "GET", "/v1/donors?after=d0"))[1]
    assert (page["data"], page["has_more"]) == ([], False)


@pytest.mark.parametrize(
    ("query", "status", "param"),
    [
        ("limit=0", 400, "limit"),
        ("limit=1001", 400, "limit"),
        ("limit=many", 400, "limit"),
        ("pages=1", 400, "pages"),
        ("after=gone", 404, None),
    ],
)
async def test_pages_that_can_t_be_had(
    client: TestClient, query: str, status: int, param: str | None
) -> None:
    found, body = await told(client, "GET", f"/v1/donors?{query}")
    assert (found, body["error"]["param"]) == (status, param)


@pytest.mark.parametrize(
    ("changes", "pinned", "expires"),
    [
        ({"pinned": True}, True, 60.0),
        ({"pinned": None}, False, 60.0),
        ({"ttl_s": 5}, False, 5.0),
        ({"ttl_s": None}, False, None),
        ({"ttl_s": 0.5, "pinned": True}, True, 0.5),
    ],
)
async def test_what_is_left_out_stays_as_it_is(
    client: TestClient, changes: dict[str, Any], pinned: bool, expires: float | None
) -> None:
    await put(client, text="a", ttl_s=60)
    status, donor = await told(client, "PATCH", "/v1/donors/d0", json=changes)
    assert (status, donor["pinned"], donor["expires"]) == (200, pinned, expires)


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({}, None),
        ({"ttl_s": 0}, "ttl_s"),
        ({"ttl_s": -1}, "ttl_s"),
        ({"ttl_s": "1"}, "ttl_s"),
        ({"pinned": 1}, "pinned"),
        ({"tokens": 1}, "tokens"),
    ],
)
async def test_changes_that_are_refused(
    client: TestClient, engine: FakeEngine, changes: dict[str, Any], param: str | None
) -> None:
    status, body = await told(client, "PATCH", "/v1/donors/d0", json=changes)
    assert (status, body["error"]["param"]) == (400, param)
    assert engine.calls == []


async def test_only_operators_publish(engine: FakeEngine) -> None:
    tenants = {
        "acme": {"keys": [hash_key("a")]},
        "boss": {"keys": [hash_key("b")], "operator": True},
    }
    acme, boss = ({"headers": {"X-API-Key": key}} for key in "ab")
    async with running(engine, tenants=tenants) as client:
        await told(client, "PUT", "/v1/donors", json={"text": "x", "namespace": "n"}, **acme)
        path = "/v1/donors/d0/publish?namespace=n"
        status, body = await told(client, "POST", path, **acme)
        assert (status, body["error"]["code"]) == (403, "permission_denied")
        assert body["error"]["type"] == "permission_error"
        assert (await told(client, "POST", path, **boss))[0] == 404  # not among the operator's own
        status, donor = await told(client, "POST", f"{path}&tenant=acme", **boss)
        assert (status, donor["published"], donor["namespace"]) == (200, True, "n")
        assert (await told(client, "GET", "/v1/donors/d0?namespace=n", **acme))[1]["published"]


async def test_without_keys_everyone_may_publish(client: TestClient) -> None:
    await put(client, text="a")
    assert (await told(client, "POST", "/v1/donors/d0/publish"))[1]["published"]
