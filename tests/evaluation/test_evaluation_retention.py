"""Runs of `bench retention` on a tiny model: its bytes, its rows, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny import tiny_engine

from semshare import InvalidRequest
from semshare.evaluation import bench_retention
from semshare.evaluation.bench_decode import WrongResult
from semshare.evaluation.bench_retention import run_retention


def test_the_rows_of_a_run_and_the_bytes_behind_them() -> None:
    engine = tiny_engine()
    record = run_retention(limit=1, tokens=700, engine=engine, progress=False)
    assert json.loads(json.dumps(record)) == record
    text = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text(encoding="utf-8")
    rows = [*record["retention"], *record["donors"]]
    assert [name for row in (record, *rows) for name in row if f"`{name}`" not in text] == []
    cuts = {(row["retention"], row["decay"]): row for row in record["retention"]}
    assert len(cuts) == 7
    page_bytes = engine.pool.page_size * engine.pool.bytes_per_slot
    for (share, _), row in cuts.items():
        assert row["kv_share"] == pytest.approx(share, abs=1e-3)
        if share < 1.0:
            pages = row["kv_bytes"] / page_bytes
            assert 0 <= pages - share * record["tokens"] / engine.pool.page_size <= 2
    full, int8 = record["donors"]
    assert (full["format"], int8["format"]) == ("full", "int8")
    assert full["kl"] == cuts[1.0, 0.0]["kl"]
    # 36 bytes of a token, a head's numbers and scales, in place of 128; and a part of a page.
    assert int8["donor_bytes"] == pytest.approx(full["donor_bytes"] * 36 / 128, rel=0.1)
    assert engine.stats()["donors"] == 0


def test_bytes_that_are_not_those_of_what_was_kept_end_the_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bench_retention, "_pages_held", lambda *_: 10)
    with pytest.raises(WrongResult, match=r"1\.000 of \d+ tokens' KV takes 10 pages: it should be"):
        run_retention(limit=1, tokens=700, engine=tiny_engine(), progress=False)


def test_a_scenario_without_gold_text_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="choose shifted or paraphrase"):
        run_retention(scenario="prefix", limit=1, tokens=700, engine=tiny_engine(), progress=False)
