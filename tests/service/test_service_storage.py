"""Donors below the pool: over a restart of the service, each tenant its own, closed at the stop."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import shutil
import signal
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from aiohttp.test_utils import TestClient
from fake_engine import FakeEngine
from isolation_cases import INDEXES, PAPER, TENANTS, Asker, Askers, completions
from service_helpers import entered, running, status_where
from tiny_service import POOL, load_tiny_models, started

from semshare.cli import main
from semshare_service.client import AsyncClient
from semshare_service.engine_closing import EngineClosing
from semshare_service.serve import engine_loader, serve
from semshare_service.settings import ServiceSettings


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    load_tiny_models(monkeypatch)


async def told(client: TestClient, method: str, path: str, body: object = None) -> Any:
    async with client.request(method, path, json=body) as response:
        assert response.status == 200
        return await response.json()


async def storage_of(client: TestClient) -> Any:
    """Once the engine has told."""
    while (found := await told(client, "GET", "/v1/stats"))["pool"] is None:
        pass
    return found["storage"]


async def test_donors_survive_a_restart_of_the_service(tmp_path: Path) -> None:
    async with started(storage_disk_path=tmp_path) as client:
        donor = await told(
            client, "PUT", "/v1/donors", {"text": PAPER, "pinned": True, "ttl_s": 3600}
        )
    assert list(tmp_path.glob("*/blobs/*"))
    async with started(storage_disk_path=tmp_path) as client:
        (tier,) = (await storage_of(client))["tiers"]
        assert (tier["name"], tier["budget_bytes"]) == ("disk", 64 << 30)
        assert tier["used_bytes"] > 0
        (found,) = (await told(client, "GET", "/v1/donors"))["data"]
        assert found == donor | {"last_used": found["last_used"]}
        assert (await told(client, "GET", f"/v1/donors/{donor['id']}"))["text"] == PAPER
        for prompt, policy in INDEXES.values():
            body = {"prompt": prompt, "max_tokens": 1, "semshare": policy}
            answer = (await told(client, "POST", "/v1/completions", body))["semshare"]
            assert answer["tokens"]["fresh"] < len(PAPER) // 2
            assert {span["donor"] for span in answer["spans"]} <= {None, donor["id"]}
            assert answer["fallback"] is None
        async with client.get("/metrics") as response:
            lines = (await response.text()).splitlines()
        assert 'semshare:tier_unavailable_total{tier="disk"} 0.0' in lines
        assert "semshare:tier_loads_total 0.0" not in lines


async def test_a_smaller_format_survives_too_and_is_no_exact_prefix(tmp_path: Path) -> None:
    form = {"storage_format": "int8", "storage_compression": "zstd"}
    async with started(storage_disk_path=tmp_path, **form) as client:
        await told(client, "PUT", "/v1/donors", {"text": PAPER})
    async with started(storage_disk_path=tmp_path, **form) as client:
        for name, (prompt, policy) in INDEXES.items():
            body = {"prompt": prompt, "max_tokens": 1, "semshare": policy}
            answer = (await told(client, "POST", "/v1/completions", body))["semshare"]
            assert (answer["tokens"]["fresh"] < len(PAPER) // 2) == (name != "prefix"), name
    async with started(
        storage_disk_path=tmp_path
    ) as client:  # another format's are others, and stay
        assert (await told(client, "GET", "/v1/donors"))["data"] == []
    assert list(tmp_path.glob("*/blobs/*"))


async def test_a_disk_that_goes_away_costs_no_request(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    async with started(storage_disk_path=folder) as client:
        donor = await told(client, "PUT", "/v1/donors", {"text": PAPER})
    async with started(storage_disk_path=folder) as client:
        shutil.rmtree(folder)
        for prompt, policy in INDEXES.values():
            body = {"prompt": prompt, "max_tokens": 1, "semshare": policy}
            answer = (await told(client, "POST", "/v1/completions", body))["semshare"]
            assert answer["fallback"] is None
        assert (await storage_of(client))["tiers"][0]["name"] == "disk"
        async with client.get("/metrics") as response:
            text = await response.text()
        (unavailable,) = re.findall(r'tier_unavailable_total{tier="disk"} (\S+)', text)
        assert float(unavailable) > 0
        await told(client, "DELETE", f"/v1/donors/{donor['id']}")
        assert (await told(client, "GET", "/v1/donors"))["data"] == []


async def test_what_is_deleted_does_not_come_back_with_a_restart(tmp_path: Path) -> None:
    async with started(storage_disk_path=tmp_path) as client:
        donor = await told(client, "PUT", "/v1/donors", {"text": PAPER})
    async with started(storage_disk_path=tmp_path) as client:
        await told(client, "DELETE", f"/v1/donors/{donor['id']}")
    async with started(storage_disk_path=tmp_path) as client:
        assert (await told(client, "GET", "/v1/donors"))["data"] == []
    assert not list(tmp_path.glob("*/blobs/*"))


async def test_tenants_stay_apart_after_a_restart(tmp_path: Path) -> None:
    async with started(storage_disk_path=tmp_path, tenants=TENANTS) as client:
        donor = await Asker(client, "acme").remember()
    async with started(storage_disk_path=tmp_path, tenants=TENANTS) as client:
        acme, other, boss = (Asker(client, key) for key in TENANTS)
        assert [await one.listed() for one in (acme, other, boss)] == [[donor], [], []]
        for stranger in (other, boss):
            for method in ("GET", "DELETE"):
                assert (await stranger.told(method, f"/v1/donors/{donor}"))[0] == 404
        for name, (prompt, policy) in INDEXES.items():
            assert await other.reused(prompt, policy) == 0, name
            assert await acme.reused(prompt, policy) > len(PAPER) // 2, name
        # The other's requests come first, so that nothing is in the pool yet that it could find.
        await completions(Askers(None, acme, other, boss, donor))  # type: ignore[arg-type]
        # What all tenants' donors take is for operators.
        stats = [(await one.told("GET", "/v1/stats"))[1] for one in (acme, boss)]
        assert stats[0]["storage"] is None
        assert stats[1]["storage"]["tiers"][0]["used_bytes"] > 0
        assert b"semshare:tier_" not in (await acme.bytes_of("GET", "/metrics"))[1]
        assert b"semshare:tier_bytes" in (await boss.bytes_of("GET", "/metrics"))[1]


async def test_what_was_published_is_found_by_all_after_a_restart(tmp_path: Path) -> None:
    async with started(storage_disk_path=tmp_path, tenants=TENANTS) as client:
        donor = await Asker(client, "acme").remember()
        boss = Asker(client, "boss")
        assert (await boss.told("POST", f"/v1/donors/{donor}/publish?tenant=acme"))[0] == 200
    async with started(storage_disk_path=tmp_path, tenants=TENANTS) as client:
        other = Asker(client, "other")
        for prompt, policy in INDEXES.values():
            assert await other.reused(prompt, policy) > len(PAPER) // 2
        assert await other.listed() == []
        assert (await other.told("DELETE", f"/v1/donors/{donor}"))[0] == 404


def test_a_folder_in_use_ends_the_command_and_names_its_holder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    settings = ServiceSettings(kv_budget_bytes=POOL, storage_disk_path=tmp_path)
    holder = engine_loader(settings)()
    try:
        with pytest.raises(SystemExit) as caught:
            main(["serve", "--port", "0", "--storage-disk-path", str(tmp_path)])
    finally:
        holder.close()
    assert caught.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("semshare: ")
    assert f"in use by process {os.getpid()} on " in last
    assert "Traceback" not in caplog.text


# ---- the stop


@dataclass
class ClosingEngine(FakeEngine):
    """Stays in `close` until `let_go` is set, or fails there."""

    let_go: Event = field(default_factory=Event)
    problem: Exception | None = None

    def close(self, timeout_s: float = 30.0) -> None:
        super().close(timeout_s)
        assert self.let_go.wait(timeout=60)
        if self.problem is not None:
            raise self.problem


async def test_the_stop_closes_the_engine_after_the_last_request() -> None:
    engine = ClosingEngine()
    engine.hold.clear()
    engine.let_go.set()
    address: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    settings = ServiceSettings(port=0, concurrency=1, shutdown_timeout_s=60)
    service = asyncio.create_task(
        serve(settings, load=lambda: engine, on_listening=address.set_result)
    )
    async with AsyncClient(await address) as client:
        while not (await client.ready()).ready:
            pass
        request = asyncio.create_task(client.complete("x"))
        await entered(engine)
        os.kill(os.getpid(), signal.SIGTERM)
        assert engine.closed == []
        engine.hold.set()
        assert (await request).text == "one two three four"
    await service
    (left_s,) = engine.closed
    assert 0 < left_s < 60  # what the request has left of it


async def test_an_engine_that_was_not_loaded_is_not_closed() -> None:
    assert await EngineClosing(1.0).finish(None)


async def test_a_tier_that_hangs_does_not_hold_up_the_stop(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("semshare_service.engine_closing._LET_GO_S", 0.01)
    engine = ClosingEngine()
    closing = EngineClosing(0.01)
    closing.begin()
    with caplog.at_level(logging.WARNING):
        assert not await closing.finish(engine)
    assert "donors that were not written yet are lost" in caplog.text
    engine.let_go.set()


async def test_an_engine_that_fails_to_close_ends_the_stop_all_the_same(
    caplog: pytest.LogCaptureFixture,
) -> None:
    engine = ClosingEngine(problem=OSError("prompt"))
    engine.let_go.set()
    async with running(engine) as client:
        await status_where(client, lambda status: status.state == "ready")
    assert len(engine.closed) == 1
    assert "closing the engine failed: OSError" in caplog.text
    assert "prompt" not in caplog.text
