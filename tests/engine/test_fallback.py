"""Whatever fails on the way to a mixed prefill: a right answer, a reason, a counter, no leak."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from prompts import answerable, reworded, words
from tiny import tiny_engine

from semshare import PoolExhausted, ReusePolicy, SemShare

LIMIT = 1e-4
OFF = ReusePolicy(mode="off")
SEMANTIC = ReusePolicy(min_similarity=0.0)
PAPER = words(200, 1)
PROMPT = answerable(words(20, 2) + reworded(PAPER, 3))


@pytest.fixture
def engine() -> SemShare:
    engine = tiny_engine()
    engine.remember(words(12, 4) + PAPER)
    return engine


def fails(*_args: object, **_kwargs: object) -> None:
    raise RuntimeError("injected")


def fails_once(original: Callable[..., Any]) -> Callable[..., Any]:
    """`original`, but its first call raises half-way: after it has done its work."""
    calls = 0

    def wrapper(*args: object, **kwargs: object) -> object:
        nonlocal calls
        calls += 1
        result = original(*args, **kwargs)
        if calls == 1:
            raise RuntimeError("injected")
        return result

    return wrapper


Inject = Callable[[SemShare, pytest.MonkeyPatch], None]

INJECTIONS: dict[str, Inject] = {
    "find_donors": lambda e, patch: patch.setattr(e.library.vectors, "of", fails),
    "align": lambda e, patch: patch.setattr("semshare.planning.planner.align_fuzzy", fails),
    "guard": lambda e, patch: patch.setattr("semshare.planning.planner.unsafe_reuse", fails),
    "plan": lambda e, patch: patch.setattr("semshare.planning.planner.make_plan", fails),
    "load": lambda e, patch: patch.setattr(
        e._session.executor, "load", fails_once(e._session.executor.load)
    ),
    "prefill": lambda e, patch: patch.setattr(
        e._session.executor, "run", fails_once(e._session.executor.run)
    ),
}


def references(engine: SemShare) -> list[int]:
    return engine.pool.references(np.arange(engine.pool.n_pages)).tolist()


@pytest.mark.parametrize("stage", INJECTIONS)
def test_a_failure_in_any_stage_costs_speed_only(
    stage: str, engine: SemShare, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    expected = engine.score(PROMPT, "abc", policy=OFF)
    before = references(engine)
    INJECTIONS[stage](engine, monkeypatch)
    with caplog.at_level(logging.WARNING, logger="semshare"):
        used = ReusePolicy(min_similarity=0.0, selection="none")
        score = engine.score(PROMPT, "abc", policy=used, namespace="default")
    monkeypatch.undo()
    assert score.provenance.fallback == f"{stage}: RuntimeError"
    assert score.provenance.exact
    assert score.provenance.compute_fraction == 1.0
    assert score.provenance.mode == "semantic"
    assert engine.stats()[f"fallback:{stage}"] == 1
    assert torch.equal(score.logits, expected.logits)
    assert any(stage in record.getMessage() for record in caplog.records)
    # What was computed in full is exact and may stay as a prefix; nothing else may.
    kept = sum(len(node.pages) for node in engine.library.namespace("default").prefixes.nodes())
    donor_pages = {
        int(p) for d in engine.library.namespace("default").donors.values() for p in d.pages
    }
    assert sum(references(engine)) - sum(before) == len(PROMPT) // 16
    assert kept + len(donor_pages) == sum(references(engine))
    again = engine.score(answerable(words(20, 2) + reworded(PAPER, 5)), "abc", policy=SEMANTIC)
    assert again.provenance.fallback is None
    assert not again.provenance.exact


@pytest.mark.parametrize("stage", INJECTIONS)
def test_no_page_leaks_when_the_answer_is_not_kept(
    stage: str, engine: SemShare, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine._session.keeper, "cache_prefix", lambda *_: None)
    before = references(engine)
    INJECTIONS[stage](engine, monkeypatch)
    answer = engine.generate(PROMPT, max_tokens=3, policy=SEMANTIC)
    assert answer.provenance.fallback == f"{stage}: RuntimeError"
    assert references(engine) == before


def test_the_first_look_of_query_attention_may_fail_too(
    engine: SemShare, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine._session.keeper, "cache_prefix", lambda *_: None)
    expected = engine.score(PROMPT, "abc", policy=OFF)
    before = references(engine)
    monkeypatch.setattr("semshare.engine.rows.attention_mass", fails)
    used = ReusePolicy(min_similarity=0.0, selection="query_attention")
    score = engine.score(PROMPT, "abc", policy=used)
    assert score.provenance.fallback == "prefill: RuntimeError"
    assert torch.equal(score.logits, expected.logits)
    assert references(engine) == before


@pytest.mark.parametrize("what", ["keys", "values"])
@pytest.mark.parametrize("mode", ["prefix", "span", "semantic"])
def test_kv_that_is_not_finite_is_not_served(mode: str, what: str, engine: SemShare) -> None:
    prompt = answerable(words(12, 4) + PAPER) if mode == "prefix" else PROMPT
    (donor,) = engine.library.namespace("default").donors.values()
    used = ReusePolicy(mode=mode, min_similarity=0.0, fact_guard=False)
    assert engine.plan(prompt, policy=used).counts["fresh"] < len(prompt)
    expected = engine.score(prompt, "abc", policy=OFF)
    getattr(engine.pool, what)[1][torch.from_numpy(donor.slots)] = torch.nan
    score = engine.score(prompt, "abc", policy=used)
    assert score.provenance.fallback == "prefill: ArithmeticError"
    assert torch.equal(score.logits, expected.logits)
    assert engine.stats()["fallback:prefill"] == 1


def test_failures_are_counted_one_by_one(engine: SemShare, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("semshare.planning.planner.make_plan", fails)
    for _ in range(3):
        engine.score(PROMPT, "a", policy=SEMANTIC)
    assert engine.stats()["fallback:plan"] == 3
    assert "fallback:prefill" not in engine.stats()


def test_plan_says_what_fails_instead_of_hiding_it(
    engine: SemShare, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("semshare.planning.planner.make_plan", fails)
    with pytest.raises(RuntimeError, match="injected"):
        engine.plan(PROMPT, policy=SEMANTIC)


def test_an_answer_that_can_not_be_kept_is_still_given(
    engine: SemShare, monkeypatch: pytest.MonkeyPatch
) -> None:
    used = ReusePolicy(mode="prefix", remember=True)
    expected = engine.generate(PROMPT, max_tokens=5, policy=OFF)
    before = references(engine)
    monkeypatch.setattr(engine.library.vectors, "of", fails)
    answer = engine.generate(PROMPT, max_tokens=5, policy=used)
    monkeypatch.undo()
    assert answer.token_ids == expected.token_ids
    assert (answer.remembered, answer.donor) == ("no", None)
    assert engine.stats()["not_kept"] == 1
    assert sum(references(engine)) - sum(before) == (len(PROMPT) + 4) // 16  # the exact prefix
    engine.forget_all()
    assert engine.pool.used_bytes == 0


def test_a_failing_full_prefill_reaches_the_caller_and_leaves_no_page(
    engine: SemShare, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = references(engine)
    monkeypatch.setattr(engine.model, "layer_output", fails)
    with pytest.raises(RuntimeError, match="injected"):
        engine.generate(PROMPT, policy=SEMANTIC)
    assert references(engine) == before


def test_a_failing_decode_step_reaches_the_caller_and_leaves_no_page(
    engine: SemShare, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = references(engine)
    stream = engine.stream(PROMPT, policy=SEMANTIC, max_tokens=20)
    next(stream)
    monkeypatch.setattr(engine.model, "layer_output", fails)
    with pytest.raises(RuntimeError, match="injected"):
        list(stream)
    assert references(engine) == before


def test_a_prompt_larger_than_the_pool_is_an_error_with_the_way_out() -> None:
    engine = tiny_engine(kv_budget_bytes=8 * 16 * 1024)  # 128 slots
    with pytest.raises(PoolExhausted, match="128 free and nothing left to evict: raise kv_budget"):
        engine.generate(words(140, 1), max_tokens=2)
    assert engine.pool.used_bytes == 0
    assert len(engine.generate(words(100, 1), max_tokens=2).token_ids) == 2
