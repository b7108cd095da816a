"""Memory and disk do what every tier must; `test_redis.py` holds the server's tier to the same."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
from tier_conformance import MakeTier, TierConformance

from semshare.kv.tiers.disk import DiskTier
from semshare.kv.tiers.disk_index import INDEX_BYTES
from semshare.kv.tiers.host import HostTier
from semshare.kv.tiers.tier import Tier


class TestHost(TierConformance):
    @pytest.fixture
    def make_tier(self) -> MakeTier:
        return HostTier


class TestDisk(TierConformance):
    unit = 400_000

    @pytest.fixture
    def make_tier(self, tmp_path: Path) -> Iterator[MakeTier]:
        with ExitStack() as stack:

            def open_one(budget_bytes: int) -> Tier:
                whole = budget_bytes * 17 // 16 + INDEX_BYTES * 9 // 8
                return stack.enter_context(closing(DiskTier(tmp_path, "model", whole, "lru")))

            yield open_one
