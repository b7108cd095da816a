"""The service as its settings make it, over a tiny random model whatever they name."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp.test_utils import TestClient
from service_helpers import running
from tiny import tiny_model, tiny_tokenizer

from semshare import EngineConfig, SemShare
from semshare_service.serve import engine_loader
from semshare_service.settings import ServiceSettings

POOL = 32 << 20


def load_tiny_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `SemShare.from_pretrained` do so from now on."""

    def from_pretrained(name: str, *, config: EngineConfig, **_: Any) -> SemShare:
        return SemShare(tiny_model(), tiny_tokenizer(), config=config, name=name)

    monkeypatch.setattr(SemShare, "from_pretrained", from_pretrained)


@asynccontextmanager
async def started(**settings: Any) -> AsyncIterator[TestClient]:
    """A client of the service, from its start to its stop; loads are given time."""
    settings = {"kv_budget_bytes": POOL, "storage_load_timeout_s": 60, **settings}
    async with running(engine_loader(ServiceSettings(**settings)), **settings) as client:
        yield client
