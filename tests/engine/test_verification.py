"""An answer scored in full and with reuse: in pieces, and without a trace."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from prompts import answerable, words
from tiny import CONTEXT, EOS_ID, tiny_engine

from semshare import PoolExhausted, PromptTooLong, ReusePolicy, SemShare
from semshare.engine.executor import Executor, ForwardResult
from semshare.engine.rows import Rows

STEM = words(200, 5)
PROMPT = answerable(words(60, 6) + STEM)
SPAN = ReusePolicy(mode="span", recompute=0.0, fact_guard=False)
ROWS = 32


@pytest.fixture
def engine() -> SemShare:
    engine = tiny_engine(prefill_rows=ROWS)
    engine.remember(STEM)
    return engine


def test_an_answer_diverges_as_its_scores_do(engine: SemShare) -> None:
    found = engine.verify_answer(PROMPT, [5, 6, 7], policy=SPAN)
    full = engine.score(PROMPT, [5, 6, 7], policy=ReusePolicy(mode="off")).logits
    reused = engine.score(PROMPT, [5, 6, 7], policy=SPAN).logits
    logs = full.double().log_softmax(-1), reused.double().log_softmax(-1)
    expected = (logs[0].exp() * (logs[0] - logs[1])).sum(-1).mean()
    (one,) = found.by_mode
    assert one.divergence.kl == pytest.approx(float(expected), rel=1e-3)
    assert one.divergence.top1 == float((full.argmax(-1) == reused.argmax(-1)).double().mean())
    assert (one.mode, one.counts, one.divergence.tokens) == ("span", True, 3)
    assert found.in_force == "span"


def test_nothing_is_kept_of_it(engine: SemShare) -> None:
    before = engine.stats()
    for policy in (SPAN, replace(SPAN, mode="prefix"), replace(SPAN, remember=True)):
        engine.verify_answer(PROMPT, [5, 6, 7], policy=policy)
    after = engine.stats()
    assert (after["pool_bytes"], after["donors"]) == (before["pool_bytes"], before["donors"])
    assert after["pending"] == 0
    assert engine.plan(PROMPT, policy=SPAN).counts["prefix"] == 0


def test_it_runs_in_bounded_pieces_without_the_lock_between(
    engine: SemShare, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[int] = []
    original = Executor.run

    def counting(executor: Executor, several: Sequence[Rows]) -> list[ForwardResult]:
        rows.append(sum(len(one.ids) for one in several))
        return original(executor, several)

    pauses: list[int] = []
    monkeypatch.setattr(Executor, "run", counting)
    engine.verify_answer(
        PROMPT, [5] * (ROWS * 3), policy=SPAN, between=lambda: pauses.append(len(rows))
    )
    assert max(rows) <= ROWS
    assert sum(rows) > len(PROMPT)
    assert set(range(1, len(rows) + 1)) <= set(pauses)  # one after each piece


class _EnoughError(Exception):
    pass


@pytest.mark.parametrize("pieces", [1, 2, 9, 11])
def test_what_between_raises_ends_it_and_frees_its_slots(engine: SemShare, pieces: int) -> None:
    before = engine.stats()
    left = [None] * (pieces - 1)

    def between() -> None:
        if not left:
            raise _EnoughError
        left.pop()

    with pytest.raises(_EnoughError):
        engine.verify_answer(PROMPT, [5, 6, 7], policy=SPAN, between=between)
    assert engine.stats()["pool_bytes"] == before["pool_bytes"]
    assert engine.generate(PROMPT, max_tokens=2, policy=SPAN).provenance.mode == "span"


def test_a_mode_above_the_bound_is_followed_by_the_next(engine: SemShare) -> None:
    policy = replace(SPAN, mode="semantic", max_divergence=1e-9)
    found = engine.verify_answer(PROMPT, [5, 6, 7], policy=policy)
    assert [one.mode for one in found.by_mode] == ["semantic", "span"]
    assert found.in_force == "prefix"


def test_what_has_no_room_is_refused_and_an_empty_answer_is_its_end(engine: SemShare) -> None:
    assert engine.verify_answer(PROMPT, [], policy=SPAN).by_mode[0].divergence.tokens == 1
    with pytest.raises(PromptTooLong):
        engine.verify_answer("x" * (CONTEXT - 2), [5, 6, EOS_ID], policy=SPAN)


def test_cached_prefixes_make_room_for_it_and_donors_do_not() -> None:
    probe = tiny_engine(page_size=8)
    page = probe.pool.page_size * probe.pool.bytes_per_slot
    engine = tiny_engine(page_size=8, kv_budget_bytes=80 * page)
    engine.remember(STEM)  # 25 pages
    for seed in (31, 32, 33):
        engine.generate(words(150, seed), max_tokens=1, policy=ReusePolicy(mode="prefix"))
    prompt = STEM[:160]
    assert engine.pool.free_pages < engine.pool.pages_for(len(prompt) + 1)
    assert engine.verify_answer(prompt, [5], policy=SPAN).by_mode[0].divergence.tokens == 1
    for seed in (41, 42, 43):
        engine.remember(words(120, seed), namespace="other")
    donors = engine.stats()["donors"]
    with pytest.raises(PoolExhausted):
        engine.verify_answer(prompt, [5], policy=SPAN)
    assert engine.stats()["donors"] == donors
