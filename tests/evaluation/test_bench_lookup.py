"""Lookups over small texts: what they find is right, or no speed is told."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from documented import undocumented

from semshare import BenchmarkRefused, InvalidRequest
from semshare.donors.embedders import HashEmbedder
from semshare.donors.prompt_index import PromptIndex, SimilarDonor
from semshare.donors.span_index import Span, SpanIndex
from semshare.donors.stored_prefixes import StoredPrefixes
from semshare.evaluation import bench_lookup, lookup_extrapolation
from semshare.evaluation.bench_lookup import run_lookup
from semshare.evaluation.lookup_texts import (
    KINDS,
    Sources,
    make_donors,
    make_targets,
    packaged_sources,
)
from semshare.types import Ids


def text(seed: int) -> Ids:
    """Frequent ids and rare ones, as in any language."""
    rng = np.random.default_rng(seed)
    return np.minimum(rng.zipf(1.3, 6000), 4000).astype(np.int32)


SOURCES = Sources((text(1), text(2)), text(3))


def small_run() -> dict[str, Any]:
    return run_lookup(
        donors=400, targets=40, progress=False, sources=SOURCES, embedder=HashEmbedder()
    )


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_lookup, "SIZES", (100, 200))
    monkeypatch.setattr(bench_lookup, "RESTART", 200)
    monkeypatch.setattr(lookup_extrapolation, "FLAT_LIMIT", 150)
    monkeypatch.setattr(lookup_extrapolation, "EXTRAPOLATED", 1000)


def test_the_record_is_of_the_largest_point_and_documented() -> None:
    record = small_run()
    assert undocumented(record) == undocumented(record["points"][0]) == []
    assert json.loads(json.dumps(record)) == record
    assert [point["donors"] for point in record["points"]] == [100, 200, 400]
    largest = record["points"][-1]
    for name in ("donors", "p50_ms", "p99_ms", "recall_at_1", "bytes_per_donor"):
        assert record[name] == largest[name]
    for point in record["points"]:
        assert 0 < point["p50_ms"] <= point["p99_ms"]
        assert point["recall_at_1"] == 1.0, "vectors are compared as they are"
        assert point["span_recall"] > 0.98
        assert sum(point["bytes_by_part"].values()) == pytest.approx(
            point["bytes_per_donor"], abs=3
        )
    assert record["index_donors"] == 200
    assert record["index_s"] == record["points"][1]["build_s"]
    assert record["extrapolated"]["donors"] == 1000
    assert record["embed_ms"] > 0


def test_donors_are_different_and_the_first_ones_always_the_same() -> None:
    many = make_donors(SOURCES, 300)
    assert len({donor.tobytes() for donor in many}) == 300
    assert all(198 <= len(donor) < 400 for donor in many)
    for few, donor in zip(make_donors(SOURCES, 30), many, strict=False):
        np.testing.assert_array_equal(few, donor)


def test_targets_are_of_all_kinds_and_hold_what_they_say() -> None:
    donors = make_donors(SOURCES, 20)
    targets = make_targets(SOURCES, donors, 40)
    assert [target.kind for target in targets[:4]] == list(KINDS)
    joined = b"".join(donor.tobytes() for donor in donors)
    for target in targets:
        assert bool(target.planted) == (target.kind in ("recombined", "continued"))
        for start, end in target.planted:
            assert target.ids[start:end].tobytes() in joined


@pytest.mark.parametrize(
    ("index", "method", "wrong", "message"),
    [
        (
            PromptIndex,
            "nearest",
            lambda *_: [SimilarDonor("donor-0", 0.1)],
            "recall_at_1 is 0.000 among 400 donors: at least 0.98",
        ),
        (SpanIndex, "find", lambda *_, **__: [], "span_recall is 0.000 among 400 donors"),
        (
            SpanIndex,
            "find",
            lambda *_, **__: [Span(0, 16, "donor-0", 3)],
            "is not the same text in both",
        ),
        (StoredPrefixes, "match", lambda *_: None, "a common beginning of .* tokens: found None"),
    ],
)
def test_what_is_not_found_is_refused(
    monkeypatch: pytest.MonkeyPatch,
    index: type,
    method: str,
    wrong: Callable[..., Any],
    message: str,
) -> None:
    monkeypatch.setattr(index, method, wrong)
    with pytest.raises(BenchmarkRefused, match=rf"lookup: .*{message}.* No speed is reported"):
        small_run()


def test_too_few_are_refused() -> None:
    with pytest.raises(InvalidRequest, match=r"99 donors and 40 targets: .* at least 100 and 4"):
        run_lookup(donors=99, targets=40)


def test_the_packaged_texts_are_long_and_one_of_them_is_in_no_donor() -> None:
    def by_bytes(parts: list[str], *, add_special_tokens: bool) -> dict[str, list[list[int]]]:
        assert not add_special_tokens
        return {"input_ids": [list(part[:50].encode()) for part in parts]}

    sources = packaged_sources(by_bytes)
    assert len(sources.donors) == 3
    assert all(len(ids) > 10_000 for ids in (*sources.donors, sources.other))
    assert not any(np.array_equal(sources.other, ids) for ids in sources.donors)
