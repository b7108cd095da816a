"""Fixtures of the service's tests: a fake engine and a service over it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from aiohttp.test_utils import TestClient
from fake_engine import FakeEngine
from service_helpers import running


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
async def client(engine: FakeEngine) -> AsyncIterator[TestClient]:
    async with running(engine) as started:
        yield started
