"""What a namespace's prompts and donors may take."""

from __future__ import annotations

from typing import Any

import pytest
from prompts import answerable, words
from tiny import tiny_engine

from semshare import InvalidRequest, PromptOverLimit, QuotaExceeded, ReusePolicy, SemShare
from semshare.engine.limits import NamespaceLimits

KEPT = ReusePolicy(mode="span", recompute=0.0, remember=True)
PAPER = words(200, 1)
MOVED = answerable(words(20, 2) + PAPER)


def limited(**limits: Any) -> SemShare:
    """An engine in which all namespaces `a/…` have these limits together, and others have none."""
    engine = tiny_engine()
    bounds = NamespaceLimits(prefix="a/", **limits)
    engine.limit(lambda name: bounds if name.startswith("a/") else NamespaceLimits())
    return engine


def test_the_number_of_donors_counts_over_namespaces_before_anything_is_computed() -> None:
    engine = limited(max_donors=2)
    engine.remember("one", namespace="a/x")
    second = engine.remember("two", namespace="a/y")
    requests = engine.stats()["requests"]
    with pytest.raises(QuotaExceeded, match=r"2 donors are kept, of 2 \(max_donors\)"):
        engine.remember("three", namespace="a/x")
    assert engine.stats()["requests"] == requests
    assert engine.remember("two", namespace="a/y", pinned=True).id == second.id  # no new one
    engine.remember("three", namespace="b")
    engine.forget(second.id, namespace="a/y")
    engine.remember("three", namespace="a/x")


def test_bytes_of_donors_count() -> None:
    page = tiny_engine().remember("one").bytes
    engine = limited(max_donor_bytes=3 * page)
    engine.remember(words(17, 1), namespace="a/x")  # two pages of 16 slots
    with pytest.raises(QuotaExceeded, match=f"of {2 * page} bytes beside {2 * page} .*{3 * page}"):
        engine.remember(words(17, 2), namespace="a/x")
    engine.remember(words(16, 2), namespace="a/x")


def test_an_answer_stands_where_its_prompt_may_not_be_kept() -> None:
    engine = limited(max_donors=1)
    engine.remember(PAPER, namespace="a/x")
    for prompt in ("exact", MOVED):
        answer = engine.generate(prompt, policy=KEPT, namespace="a/x", max_tokens=2)
        assert (answer.remembered, answer.donor, len(answer.token_ids)) == ("no", None, 2)
    assert "not_kept" not in engine.stats()
    assert engine.stats()["pending"] == 0
    again = engine.generate(PAPER, policy=KEPT, namespace="a/x", max_tokens=2)
    assert again.remembered == "done"  # it is a donor already


def test_a_prompt_that_waits_is_dropped_where_others_have_taken_the_room() -> None:
    engine = limited(max_donors=2)
    engine.remember(PAPER, namespace="a/x")
    answer = engine.generate(MOVED, policy=KEPT, namespace="a/x", max_tokens=2)
    assert answer.remembered == "pending"
    engine.remember("last", namespace="a/y")
    requests = engine.stats()["requests"]
    assert engine.complete_pending() == []
    assert engine.stats()["pending"] == 0
    assert engine.stats()["requests"] == requests


def test_room_that_is_taken_while_a_prompt_is_computed_is_not_taken_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = limited(max_donors=1)
    first_history = engine.session.outside.first_history

    def interrupted(served: Any) -> Any:
        monkeypatch.undo()
        engine.remember("quicker", namespace="a/y")
        return first_history(served)

    monkeypatch.setattr(engine.session.outside, "first_history", interrupted)
    with pytest.raises(QuotaExceeded):
        engine.remember("slower", namespace="a/x")
    assert [len(engine.donors(namespace=name)) for name in ("a/x", "a/y")] == [0, 1]


@pytest.mark.parametrize("method", ["generate", "plan", "remember", "verify"])
def test_long_prompts_are_refused(method: str) -> None:
    engine = limited(max_prompt_tokens=10)
    call = getattr(engine, method)
    call("x" * 10, namespace="a/x")
    with pytest.raises(PromptOverLimit, match=r"11 tokens and may have 10 \(max_prompt_tokens\)"):
        call("x" * 11, namespace="a/x")
    call("x" * 11, namespace="b")


@pytest.mark.parametrize("ttl_s", [0, -1.0, float("inf"), float("nan")])
def test_a_time_to_live_is_above_0_and_finite(ttl_s: float) -> None:
    engine = tiny_engine()
    donor = engine.remember("a donor")
    with pytest.raises(InvalidRequest, match="ttl_s is"):
        engine.remember("another", ttl_s=ttl_s)
    with pytest.raises(InvalidRequest, match="ttl_s is"):
        engine.update_donor(donor.id, ttl_s=ttl_s)
    assert engine.donors() == [donor]
