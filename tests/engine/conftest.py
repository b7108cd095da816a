"""What the tests of storage share; other tests have engines of their own by the same name."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from below import Moody, storing_engine

from semshare import SemShare


@pytest.fixture
def tier(monkeypatch: pytest.MonkeyPatch) -> Moody:
    made = Moody()
    monkeypatch.setattr("semshare.engine.storage_setup.HostTier", lambda *_: made)
    return made


@pytest.fixture
def engine(tier: Moody) -> Iterator[SemShare]:
    with storing_engine() as made:
        yield made
