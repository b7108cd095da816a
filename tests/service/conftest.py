"""Fixtures of the service's tests: a fake engine and a service over it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from aiohttp.test_utils import TestClient
from fake_engine import FakeEngine
from hypothesis import settings
from service_helpers import running

# How long one example takes says more about the machine than about the code.
settings.register_profile("no_deadline", deadline=None)
settings.load_profile("no_deadline")


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
async def client(engine: FakeEngine) -> AsyncIterator[TestClient]:
    async with running(engine) as started:
        yield started
