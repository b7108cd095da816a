"""Continuous batching by hand: who is computed with whom, who waits, who goes, what it costs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from invariants import assert_all_that_is_kept_is_exact, assert_nothing_is_held
from prompts import answerable, reworded, words
from stepping import OFF, PREFIX, Stepped, long_ago, tokens_of
from tiny import EOS_ID

from semshare import DeadlineExceeded, InvalidRequest, PoolExhausted, ReusePolicy
from semshare.engine.generation import Generation
from semshare.engine.rows import DecodeRows, Rows
from semshare.engine.sampling import SamplingParams
from semshare.errors import StepFailed

NO_END = SamplingParams(logit_bias={EOS_ID: -100.0})
SLOT_BYTES = 1024  # of the tiny llama
PAGE = 8
SEMANTIC = ReusePolicy(min_similarity=0.0)
PAPER = words(200, 1)
REWRITTEN = answerable(words(20, 2) + reworded(PAPER, 3))


def pages(n: int) -> dict[str, Any]:
    """Settings of an engine with a pool of `n` pages."""
    return {"kv_budget_bytes": n * PAGE * SLOT_BYTES, "page_size": PAGE}


def alone(prompt: str, **fields: Any) -> list[list[int]]:
    """The tokens of a request that is the only one of its engine."""
    stepped = Stepped()
    return tokens_of(stepped.finish(stepped.submit(prompt, **fields))[0])


# -------------------------------------------------------------- what a request says


@pytest.mark.parametrize("prefill_rows", [1, 7, 256])
def test_a_request_says_the_same_alone_and_among_others(prefill_rows: int) -> None:
    prompts = [words(20 + 13 * i, i) for i in range(6)]
    expected = [alone(prompt, max_tokens=5 + i, policy=OFF) for i, prompt in enumerate(prompts)]
    stepped = Stepped(prefill_rows=prefill_rows)
    started = []
    for i, prompt in enumerate(prompts):
        started.append(stepped.submit(prompt, max_tokens=5 + i, policy=OFF))
        stepped.step()
    assert [tokens_of(one) for one in stepped.finish(*started)] == expected
    batches = [rows for one in stepped.passes for rows in one if isinstance(rows, DecodeRows)]
    assert prefill_rows == 1 or max(len(rows.ids) for rows in batches) > 1


def test_a_preempted_request_says_what_it_says_without() -> None:
    first, second = words(30, 1), words(30, 2)
    expected = [alone(prompt, max_tokens=40, policy=OFF) for prompt in (first, second)]
    # Two prompts and 20 tokens of each fit, their answers' other tokens don't.
    stepped = Stepped(**pages(13))
    started = [stepped.submit(prompt, max_tokens=40, policy=OFF) for prompt in (first, second)]
    assert sum(pages_wanted(one) for one in started) > 13
    assert [tokens_of(one) for one in stepped.finish(*started)] == expected
    assert_nothing_is_held(stepped.engine)


def pages_wanted(generation: Generation) -> int:
    """Pages of a prompt and its whole answer."""
    return -(-(len(generation.request.ids) + generation.request.max_tokens) // PAGE)


def test_the_youngest_goes_when_answers_outgrow_the_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("semshare.kv.sequence.ROOM_TOKENS", PAGE)
    prompts = [words(24, seed) for seed in range(3)]
    expected = [alone(prompt, max_tokens=30, policy=OFF) for prompt in prompts]
    stepped = Stepped(**pages(14))
    started = [stepped.submit(prompt, max_tokens=30, policy=OFF) for prompt in prompts]
    order = []
    for _ in range(300):
        stepped.step()
        order += [one for one in started if one.ended and one not in order]
        if len(order) == 3:
            break
    assert order == started, "the oldest never goes"
    assert stepped.scheduler.preemptions >= 1
    assert [tokens_of(one) for one in stepped.finish(*started)] == expected
    pieces = [[token for piece in one.outbox for token in piece.token_ids] for one in started]
    assert [[piece] for piece in pieces] == expected, "no piece is given twice"
    assert_nothing_is_held(stepped.engine)


def test_several_answers_share_the_prompts_pages() -> None:
    prompt = words(80, 1)
    sampling = SamplingParams(temperature=1.0, seed=7)
    stepped = Stepped()
    started = stepped.submit(prompt, n=3, max_tokens=6, sampling=sampling)
    stepped.step()
    used = stepped.engine.pool.n_pages - stepped.engine.pool.free_pages
    assert used == 80 // PAGE + 3
    (answer,) = stepped.finish(started)
    (first,) = alone(prompt, max_tokens=6, sampling=sampling)
    assert answer.choices[0].token_ids == first
    assert len({tuple(choice.token_ids) for choice in answer.choices}) == 3


def test_answers_of_one_prompt_that_do_not_fit_at_once_come_later() -> None:
    """Slots for three answers are missing when the prompt is there: all three begin again."""
    prompt, other = words(24, 1), words(24, 2)
    expected = alone(prompt, n=3, max_tokens=12, policy=OFF)
    stepped = Stepped(**pages(10))
    running = stepped.submit(other, max_tokens=12, policy=OFF)
    stepped.step()
    started = stepped.submit(prompt, n=3, max_tokens=12, policy=OFF)
    stepped.finish(running, started)
    assert stepped.scheduler.preemptions >= 1
    assert tokens_of(stepped.finish(started)[0]) == expected
    assert_nothing_is_held(stepped.engine)


def test_an_answer_that_began_on_mixed_kv_is_not_called_exact_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its donor is forgotten while it is preempted, so that the second time all is computed."""
    monkeypatch.setattr("semshare.kv.sequence.ROOM_TOKENS", PAGE)
    stepped = Stepped(**pages(110))
    stepped.engine.remember(words(12, 4) + PAPER)
    older = stepped.submit(words(300, 7), max_tokens=200, sampling=NO_END)
    mixed = stepped.submit(REWRITTEN, policy=SEMANTIC, max_tokens=200, sampling=NO_END)
    while not stepped.scheduler.preemptions:
        stepped.step()
    assert mixed.has_answered
    stepped.engine.forget_all()
    stepped.finish(older)
    (answer,) = stepped.finish(mixed)
    assert mixed.prompt.plan.is_exact
    assert not answer.provenance.exact


# ------------------------------------------------------------------ what is shared


@pytest.mark.parametrize("prefill_rows", [16, 256, 1024])
@pytest.mark.parametrize("policy", [PREFIX, SEMANTIC], ids=["exact", "mixed"])
def test_identical_prompts_are_prefilled_once(policy: ReusePolicy, prefill_rows: int) -> None:
    stepped = Stepped(prefill_rows=prefill_rows)
    stepped.engine.remember(words(12, 4) + PAPER)
    single = Stepped()
    single.engine.remember(words(12, 4) + PAPER)
    prompt = REWRITTEN if policy is SEMANTIC else words(400, 5)
    (expected,) = single.finish(single.submit(prompt, policy=policy))
    stepped.passes.clear()
    started = [stepped.submit(prompt, policy=policy) for _ in range(4)]
    answers = stepped.finish(*started)
    assert [tokens_of(one) for one in answers] == [tokens_of(expected)] * 4
    rows = round(answers[0].provenance.compute_fraction * len(started[0].request.ids))
    assert sum(stepped.rows_of_prompts) == rows
    assert [one.provenance.compute_fraction for one in answers[1:]] == [0.0] * 3
    assert all(one.provenance.exact == expected.provenance.exact for one in answers)


def test_a_shared_beginning_is_computed_once() -> None:
    system = words(64, 1)
    stepped = Stepped()
    started = [stepped.submit(system + words(16, 10 + i)) for i in range(4)]
    stepped.finish(*started)
    assert sum(stepped.rows_of_prompts) == 64 + 4 * 16


def test_mode_off_shares_nothing() -> None:
    stepped = Stepped()
    started = [stepped.submit(words(40, 1), policy=OFF) for _ in range(3)]
    stepped.finish(*started)
    assert sum(stepped.rows_of_prompts) == 3 * 40


def test_namespaces_share_nothing() -> None:
    stepped = Stepped()
    started = [stepped.submit(words(40, 1), namespace=name) for name in "abc"]
    stepped.finish(*started)
    assert sum(stepped.rows_of_prompts) == 3 * 40


def test_what_a_forgotten_prompt_leaves_is_joined_by_nobody() -> None:
    """Forgetting hits a prompt in the middle of its prefill, with another waiting for it."""
    stepped = Stepped(prefill_rows=16)
    running = stepped.submit(words(20, 1), max_tokens=40)
    stepped.step()
    leader, follower = (stepped.submit(words(64, 2)) for _ in range(2))
    stepped.step()
    stepped.engine.forget_all()
    stepped.finish(leader, follower, running)
    computed = sum(stepped.rows_of_prompts)
    assert computed == 20 + 64 + 64


def test_forgetting_hits_those_that_joined_a_prompt() -> None:
    stepped = Stepped()
    leader, follower = (stepped.submit(words(64, 2), max_tokens=6) for _ in range(2))
    stepped.step()
    assert follower.served is not None
    stepped.engine.forget_all()
    stepped.finish(leader, follower)
    assert stepped.engine.pool.used_bytes == 0, "something of them was kept"


def test_forgetting_hits_who_has_been_preempted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("semshare.kv.sequence.ROOM_TOKENS", PAGE)
    stepped = Stepped(**pages(9))
    started = [stepped.submit(words(24, seed), max_tokens=30) for seed in range(2)]
    while not stepped.scheduler.preemptions:
        stepped.step()
    stepped.engine.forget_all()
    stepped.finish(*started)
    assert stepped.engine.pool.used_bytes == 0, "something of them was kept"


# ---------------------------------------------------------------------- who waits


def test_a_long_prompt_does_not_stall_an_answer() -> None:
    stepped = Stepped(prefill_rows=10)
    running = stepped.submit(words(20, 1), max_tokens=60, sampling=NO_END)
    stepped.step()
    others = [stepped.submit(words(n, n)) for n in (150, 7, 90)]
    before = len(stepped.passes)
    while not all(one.ended for one in others):
        given = len(running.continuations[0].tokens)
        stepped.step()
        assert len(running.continuations[0].tokens) == given + 1
    assert max(stepped.rows_of_prompts[before:]) == 10


def test_a_prompt_that_nobody_waits_beside_is_not_cut() -> None:
    stepped = Stepped(prefill_rows=10)
    stepped.finish(stepped.submit(words(150, 1), max_tokens=1))
    assert stepped.rows_of_prompts == [150]


def test_namespaces_take_turns() -> None:
    stepped = Stepped(max_answers=2)
    many = [stepped.submit(words(20, seed), namespace="many") for seed in range(4)]
    one = stepped.submit(words(20, 9), namespace="one")
    stepped.step()
    assert {held.request.namespace for held in stepped.scheduler.active} == {"many", "one"}
    stepped.finish(*many, one)


def test_no_more_answers_than_allowed_are_decoded() -> None:
    stepped = Stepped(max_answers=4)
    started = [stepped.submit(words(20, seed), n=1 + seed % 3) for seed in range(8)]
    while not all(one.ended for one in started):
        stepped.step()
        assert sum(one.request.n for one in stepped.scheduler.active) <= 4
    with pytest.raises(InvalidRequest, match="at most 4"):
        stepped.engine.generate("x", n=5)


# ---------------------------------------------------------------------- how it ends


def test_a_deadline_that_is_over_before_a_request_begins() -> None:
    stepped = Stepped()
    late = stepped.submit(words(20, 1), deadline=long_ago())
    with pytest.raises(DeadlineExceeded, match="allow more time"):
        stepped.finish(late)
    assert stepped.passes == []
    assert_nothing_is_held(stepped.engine)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Sets the time by which deadlines are measured."""

    def to(now: float) -> None:
        monkeypatch.setattr(
            "semshare.engine.scheduler.time", SimpleNamespace(monotonic=lambda: now)
        )

    to(0.0)
    return to


def test_a_deadline_ends_an_answer_where_it_is(clock: Callable[[float], None]) -> None:
    expected = alone(words(20, 1), max_tokens=9, n=2)
    stepped = Stepped()
    started = stepped.submit(words(20, 1), max_tokens=9, n=2, deadline=5.0)
    for _ in range(3):
        stepped.step()
    clock(5.0)
    (answer,) = stepped.finish(started)
    assert [choice.finish_reason for choice in answer.choices] == ["deadline"] * 2
    assert tokens_of(answer) == [tokens[:3] for tokens in expected]
    assert_nothing_is_held(stepped.engine)


def test_a_deadline_in_the_middle_of_a_prefill(clock: Callable[[float], None]) -> None:
    stepped = Stepped(prefill_rows=8)
    running = stepped.submit(words(20, 1), max_tokens=20)
    stepped.step()
    late = stepped.submit(words(60, 2), deadline=5.0)
    stepped.step()
    assert late.served is not None
    clock(6.0)
    with pytest.raises(DeadlineExceeded):
        stepped.finish(late)
    stepped.finish(running)
    assert_nothing_is_held(stepped.engine)


def test_a_deadline_of_one_who_was_preempted(
    clock: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("semshare.kv.sequence.ROOM_TOKENS", PAGE)
    stepped = Stepped(**pages(9))
    running = stepped.submit(words(24, 1), max_tokens=30)
    late = stepped.submit(words(24, 2), max_tokens=30, deadline=5.0)
    while not stepped.scheduler.preemptions:
        stepped.step()
    given = list(late.continuations[0].tokens)
    clock(5.0)
    (answer,) = stepped.finish(late)
    assert (answer.finish_reason, answer.token_ids) == ("deadline", given)
    assert answer.remembered == "no"
    stepped.finish(running)
    assert_nothing_is_held(stepped.engine)


def test_closing_a_stream_frees_all_at_once() -> None:
    stepped = Stepped()
    stream = stepped.engine.stream(words(40, 1), max_tokens=9, n=2, policy=OFF)
    next(stream)
    assert stepped.engine.pool.used_bytes > 0
    stream.close()
    assert stepped.engine.pool.used_bytes == 0
    assert_nothing_is_held(stepped.engine)


@pytest.mark.parametrize("cancelled", ["waiting", "prefilling", "leader", "follower"])
def test_a_request_may_be_cancelled_at_any_time(cancelled: str) -> None:
    expected = alone(words(60, 2))
    stepped = Stepped(prefill_rows=16, max_answers=3)
    running = stepped.submit(words(20, 1), max_tokens=30)
    stepped.step()
    leader, follower = (stepped.submit(words(60, 2)) for _ in range(2))
    waiting = stepped.submit(words(60, 3), n=3)
    stepped.step()
    by_name = {
        "waiting": waiting,
        "prefilling": leader,
        "leader": leader,
        "follower": follower,
    }
    stepped.cancel(by_name[cancelled])
    rest = [one for one in (running, leader, follower, waiting) if one is not by_name[cancelled]]
    answers = stepped.finish(*rest)
    for one, answer in zip(rest, answers, strict=True):
        if one in (leader, follower):
            assert tokens_of(answer) == expected
    assert_nothing_is_held(stepped.engine)


def test_a_full_pool_ends_the_only_answer_with_length(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("semshare.kv.sequence.ROOM_TOKENS", PAGE)
    stepped = Stepped(**pages(5))
    (answer,) = stepped.finish(stepped.submit(words(20, 1), max_tokens=100, sampling=NO_END))
    # The last token needs no slot.
    assert (answer.finish_reason, len(answer.token_ids)) == ("length", 5 * PAGE - 20 + 1)
    assert_nothing_is_held(stepped.engine)


def test_a_prompt_that_never_fits_gets_the_pools_error_and_others_their_answers() -> None:
    stepped = Stepped(**pages(6))
    small, large = stepped.submit(words(20, 1)), stepped.submit(words(100, 2))
    stepped.finish(small)
    with pytest.raises(PoolExhausted, match="104 KV slots wanted"):
        stepped.finish(large)
    assert_nothing_is_held(stepped.engine)


# ------------------------------------------------------------------ what goes wrong


class Broken:
    """An executor's `run` that raises when `if_among` says so."""

    def __init__(
        self, stepped: Stepped, error: BaseException, if_among: Callable[[Sequence[Rows]], bool]
    ) -> None:
        self._run, self._error, self._if_among = (
            stepped.session.executor.run,
            error,
            if_among,
        )
        stepped.session.executor.run = self  # type: ignore[assignment,method-assign]

    def __call__(self, several: Sequence[Rows]) -> list[Any]:
        if self._if_among(several):
            raise self._error
        return self._run(several)


def test_an_interrupt_breaks_off_who_is_computed_and_leaks_nothing() -> None:
    stepped = Stepped(max_answers=2)
    computed = [stepped.submit(words(20, seed), max_tokens=9) for seed in range(2)]
    stepped.step()
    waiting = stepped.submit(words(20, 5))
    stepped.step()
    run = stepped.session.executor.run
    Broken(stepped, KeyboardInterrupt(), lambda _: True)
    with pytest.raises(KeyboardInterrupt):
        stepped.step()
    stepped.session.executor.run = run  # type: ignore[method-assign]
    for one in computed:
        with pytest.raises(StepFailed, match="send it again"):
            stepped.finish(one)
    assert tokens_of(stepped.finish(waiting)[0]) == alone(words(20, 5))
    assert_nothing_is_held(stepped.engine)


def test_an_interrupt_reaches_the_thread_that_computes_as_it_is() -> None:
    stepped = Stepped()
    stream = stepped.engine.stream(words(20, 1), policy=OFF)
    next(stream)
    Broken(stepped, KeyboardInterrupt(), lambda _: True)
    with pytest.raises(KeyboardInterrupt):
        list(stream)
    assert stepped.engine.pool.used_bytes == 0


@pytest.mark.parametrize("answer", [0, 1])
def test_only_the_request_that_breaks_a_pass_fails(answer: int) -> None:
    prompts = [words(20 + seed, seed) for seed in range(4)]
    kept = ReusePolicy(mode="prefix", remember=True)  # then the first answers' rows are no batch
    expected = [alone(prompt, n=3, max_tokens=6, policy=kept) for prompt in prompts]
    stepped = Stepped()
    started = [stepped.submit(prompt, n=3, max_tokens=6, policy=kept) for prompt in prompts]
    stepped.step()
    bad = {id(started[1].continuations[answer].sequence)}

    def is_bad(several: Sequence[Rows]) -> bool:
        return any(
            id(sequence) in bad
            for rows in several
            for sequence in (rows.sequences if isinstance(rows, DecodeRows) else (rows.sequence,))
        )

    Broken(stepped, RuntimeError("injected"), is_bad)
    good = [one for one in started if one is not started[1]]
    answers = stepped.finish(*good)
    assert [tokens_of(one) for one in answers] == [expected[i] for i in (0, 2, 3)]
    with pytest.raises(RuntimeError, match="injected"):
        stepped.finish(started[1])
    assert_nothing_is_held(stepped.engine)


def test_an_error_in_a_followers_beginning_is_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    stepped = Stepped()
    leader, follower = (stepped.submit(words(40, 1)) for _ in range(2))
    prefilled = stepped.session.prefilled

    def fails_for_the_follower(served: Any) -> None:
        if served is follower.served:
            raise RuntimeError("injected")
        prefilled(served)

    monkeypatch.setattr(stepped.session, "prefilled", fails_for_the_follower)
    assert tokens_of(stepped.finish(leader)[0]) == alone(words(40, 1))
    with pytest.raises(RuntimeError, match="injected"):
        stepped.finish(follower)
    assert_nothing_is_held(stepped.engine)


def test_an_error_in_joining_is_the_followers(monkeypatch: pytest.MonkeyPatch) -> None:
    stepped = Stepped()
    leader, follower = (stepped.submit(words(40, 1)) for _ in range(2))

    def fails(*_args: object, **_options: object) -> None:
        raise RuntimeError("injected")

    monkeypatch.setattr("semshare.engine.served.Served.joined", fails)
    assert tokens_of(stepped.finish(leader)[0]) == alone(words(40, 1))
    with pytest.raises(RuntimeError, match="injected"):
        stepped.finish(follower)
    assert_nothing_is_held(stepped.engine)


def test_an_answer_that_cannot_begin_leaks_no_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    stepped = Stepped()
    started = stepped.submit(words(40, 1), n=3, policy=OFF)
    continuation = stepped.session.continuation

    def fails_for_the_third(generation: Generation, index: int, sequence: Any) -> Any:
        if index == 2:
            raise RuntimeError("injected")
        return continuation(generation, index, sequence)

    monkeypatch.setattr(stepped.session, "continuation", fails_for_the_third)
    with pytest.raises(RuntimeError, match="injected"):
        stepped.finish(started)
    assert stepped.engine.pool.used_bytes == 0


def test_a_mixed_prefill_that_fails_among_others_waits_for_slots() -> None:
    """Computing everything takes more slots than reuse; others have them at the moment."""
    moved = answerable(words(20, 2) + PAPER)
    stepped = Stepped(**pages(60))
    stepped.engine.remember(words(12, 4) + PAPER, pinned=True)
    running = stepped.submit(words(20, 1), max_tokens=80, sampling=NO_END)
    stepped.step()
    mixed = stepped.submit(moved, policy=SEMANTIC)
    run = stepped.session.executor.run
    calls = []

    def nan_once(several: Sequence[Rows]) -> list[Any]:
        results = run(several)
        if not calls and any(
            not isinstance(rows, DecodeRows) and len(rows.ids) > 1 for rows in several
        ):
            calls.append(several)
            results[-1].logits.fill_(torch.nan)
        return results

    stepped.session.executor.run = nan_once  # type: ignore[method-assign]
    stepped.step()
    assert calls
    assert mixed in stepped.scheduler._admission.waiting
    answers = stepped.finish(mixed, running)
    assert not answers[0].provenance.exact
    assert_nothing_is_held(stepped.engine)


def test_a_deadline_while_a_preempted_prompt_is_computed_again_keeps_nothing_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its slots are others' by then, and those that it has again are not filled yet."""
    monkeypatch.setattr("semshare.kv.sequence.ROOM_TOKENS", PAGE)
    stepped = Stepped(**pages(110), prefill_rows=16)
    running = stepped.submit(words(20, 6), max_tokens=200, sampling=NO_END)
    older = stepped.submit(words(300, 7), max_tokens=200, sampling=NO_END)
    younger = stepped.submit(words(300, 8), max_tokens=200, sampling=NO_END)
    while not stepped.scheduler.preemptions:
        stepped.step()
    stepped.cancel(older)
    stepped.engine.library.clear("default")  # so that there is more than a chunk to compute
    stepped.step()
    assert younger in stepped.scheduler._prefilling
    assert younger.has_answered
    younger.request = replace(younger.request, deadline=0.0)
    (answer,) = stepped.finish(younger)
    assert answer.finish_reason == "deadline"
    assert not stepped.session.counters["not_kept"]  # nor was it tried
    stepped.finish(running)
    assert_all_that_is_kept_is_exact(stepped.engine)
    assert_nothing_is_held(stepped.engine)
