"""Answering over a donor in a tier: what is measured, and when nothing is reported."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from documented import undocumented
from tiny import tiny_model, tiny_tokenizer

from semshare import BenchmarkRefused, InvalidRequest
from semshare.evaluation import bench_storage, storage_tier
from semshare.evaluation.bench_storage import run_storage
from semshare.evaluation.redis_server import server_binary
from semshare.evaluation.restart import restart_s
from semshare.kv.tiers.stack import TierStack

SMALL = {"tokens": 1200, "repeats": 1, "restart_donors": 20, "model": "tiny", "progress": False}


@pytest.fixture(autouse=True)
def random_model(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = tiny_model("llama"), tiny_tokenizer()
    monkeypatch.setattr(bench_storage, "load_model", lambda *_, **__: parts)
    monkeypatch.setattr(storage_tier, "POOL_BYTES", 32 << 20)


def test_each_tier_is_measured() -> None:
    record = run_storage(**SMALL)
    assert record["disk_speedup"] == pytest.approx(record["compute_s"] / record["disk_s"], rel=0.01)
    assert (record["redis_s"] is not None) == (server_binary() is not None)
    assert 0.2 < record["wanted_fraction"] < 0.4
    assert record["wanted_fraction"] < record["bytes_read_fraction"] < 0.6
    assert record["max_logit_difference"] < 1e-3
    assert record["restart_s"] > 0
    assert json.loads(json.dumps(record)) == record
    assert undocumented(record) == []


def test_kv_that_is_not_what_was_stored_reports_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    read = TierStack.read

    def wrong(*arguments: Any) -> torch.Tensor:
        return read(*arguments) * 1.01

    monkeypatch.setattr(TierStack, "read", wrong)
    with pytest.raises(BenchmarkRefused, match="logits over a loaded prefix"):
        run_storage(**SMALL)


def test_a_donor_that_is_not_loaded_reports_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TierStack, "records", lambda _: {})
    with pytest.raises(BenchmarkRefused, match="was not loaded"):
        run_storage(**SMALL)


def test_a_restart_without_donors_is_refused_in_words() -> None:
    for wrong in ({"tokens": 10}, {"repeats": 0}, {"restart_donors": -1}):
        with pytest.raises(InvalidRequest, match="at least 200, 1 and 0"):
            run_storage(**{**SMALL, **wrong})


def test_donors_are_found_after_a_restart() -> None:
    assert restart_s(30) < 30
