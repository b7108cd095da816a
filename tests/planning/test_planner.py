"""Which indexes a request asks, and what it takes from them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from prompts import answerable, reworded, words
from tiny import tiny_engine

from semshare import ReusePolicy, SemShare
from semshare.planning.planner import Found

SEMANTIC = ReusePolicy(min_similarity=0.0)
PAPER = words(200, 1)
MOVED = answerable(words(20, 2) + PAPER)
REWORDED = answerable(words(20, 2) + reworded(PAPER, 3))


@pytest.fixture
def engine() -> SemShare:
    engine = tiny_engine()
    engine.remember(words(12, 4) + PAPER)
    return engine


def found(engine: SemShare, prompt: str, policy: ReusePolicy = SEMANTIC) -> Found:
    return engine._session.planner.find_donors(engine.encode(prompt), policy, "default")


def no_lookup(*_args: object) -> Any:
    pytest.fail("an index was asked that the request has no use for")


def test_each_mode_asks_only_its_own_indexes(
    engine: SemShare, monkeypatch: pytest.MonkeyPatch
) -> None:
    space = engine.library.namespace("default")
    monkeypatch.setattr(space.prompts, "nearest", no_lookup)
    monkeypatch.setattr(engine.library.vectors, "of", no_lookup)
    assert len(found(engine, MOVED, ReusePolicy(mode="span")).spans) == 1
    monkeypatch.setattr(space.spans, "find", no_lookup)
    nothing = found(engine, MOVED, ReusePolicy(mode="prefix"))
    assert (nothing.spans, nothing.similar, nothing.donors) == ((), (), {})


def test_similar_donors_are_not_looked_for_where_identical_text_covers_the_prompt(
    engine: SemShare, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert found(engine, REWORDED).similar
    monkeypatch.setattr(engine.library.vectors, "of", no_lookup)
    only_the_question_is_new = answerable(words(4, 2) + PAPER)
    assert found(engine, only_the_question_is_new).similar == ()
    with pytest.raises(pytest.fail.Exception):
        found(engine, only_the_question_is_new, replace(SEMANTIC, recompute=0.0))


def test_donors_less_similar_than_asked_for_are_left_out(engine: SemShare) -> None:
    vectors = [
        engine.library.vectors.of(engine.encode(p)) for p in (REWORDED, words(12, 4) + PAPER)
    ]
    similarity = float(vectors[0] @ vectors[1])
    for bound, is_used in ((similarity - 1e-3, True), (similarity + 1e-3, False)):
        used = replace(SEMANTIC, min_similarity=bound)
        assert bool(found(engine, REWORDED, used).similar) == is_used


def test_no_more_donors_are_tried_than_configured() -> None:
    engine = tiny_engine(max_donors_tried=2)
    for seed in range(4):
        engine.remember(words(12, 50 + seed) + reworded(PAPER, 60 + seed, share=0.3))
    target = engine.library.vectors.of(engine.encode(REWORDED))
    donors = engine.library.namespace("default").donors
    by_similarity = sorted(
        donors, key=lambda name: -float(engine.library.vectors.of(donors[name].ids) @ target)
    )
    assert list(found(engine, REWORDED).similar) == by_similarity[:2]


def test_every_donor_named_is_at_hand(engine: SemShare) -> None:
    result = found(engine, REWORDED)
    assert set(result.donors) == {span.donor for span in result.spans} | set(result.similar)


def test_serving_marks_the_donors_it_used_and_planning_marks_none(engine: SemShare) -> None:
    donors = engine.library.namespace("default").donors

    def used() -> dict[str, int]:
        return {name: donor.last_used for name, donor in donors.items()}

    before = used()
    plan = engine.plan(REWORDED, policy=SEMANTIC)
    assert plan.donors
    assert used() == before
    engine.generate(REWORDED, policy=SEMANTIC, max_tokens=1)
    assert {name for name, tick in used().items() if tick > before[name]} == set(plan.donors)


def test_looking_for_donors_makes_no_namespace(engine: SemShare) -> None:
    engine.plan(REWORDED, namespace="elsewhere")
    assert engine.library.names == ["default"]


def test_the_last_token_is_never_a_prefix_hit() -> None:
    engine = tiny_engine(page_size=8)
    prompt = words(64, 9)
    engine.remember(prompt)
    result = found(engine, prompt)
    assert len(result.prefix_slots) == 56
    assert result.prefix_donor == engine.donors()[0].id
