"""Repair while decoding: afterwards all is as if nothing had been reused, and nobody is harmed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from invariants import (
    LIMIT,
    assert_all_that_is_kept_is_exact,
    assert_nothing_is_held,
    kv_by_full_prefill,
)
from prompts import answerable, reworded, words
from properties import examples
from running import transformers_logits
from stepping import OFF, Stepped, tokens_of
from tiny import EOS_ID, FAMILIES, tiny_engine

from semshare import ReusePolicy
from semshare.engine.generation import Generation
from semshare.engine.rows import DecodeRows, PromptRows, Rows
from semshare.engine.sampling import SamplingParams
from semshare.errors import PoolExhausted

NO_END = SamplingParams(logit_bias={EOS_ID: -100.0})
PAPER = words(200, 1)
DONOR = words(12, 4) + PAPER
MIXED = answerable(words(20, 2) + reworded(PAPER, 3))
N = len(MIXED)


def eager(**fields: Any) -> ReusePolicy:
    defaults = {"min_similarity": 0.0, "selection": "first_k", "repair": "eager"}
    return ReusePolicy(**(defaults | fields))


def stepped_with_donor(**config: Any) -> Stepped:
    stepped = Stepped(**config)
    stepped.engine.remember(DONOR)
    stepped.passes.clear()
    return stepped


def assert_as_by_full_prefill(stepped: Stepped, generation: Generation) -> None:
    """The KV of all answers is a full prefill's, and so are the logits of a next token."""
    engine = stepped.engine
    for one in generation.going_on:
        ids = np.concatenate((generation.request.ids, np.array(one.tokens, np.int32)))
        computed = len(generation.request.ids) + one.computed
        table = one.sequence.key_table(computed)
        assert not table.shifts.any()
        slots = torch.from_numpy(table.slots)
        for layer, (keys, values) in enumerate(kv_by_full_prefill(engine, ids[:computed])):
            assert float((engine.pool.keys[layer][slots] - keys).abs().max()) <= LIMIT
            assert float((engine.pool.values[layer][slots] - values).abs().max()) <= LIMIT
        rows = one.next_rows(1)
        with torch.inference_mode():
            (result,) = stepped.session.executor.run([rows])
        expected = transformers_logits(engine.model.hf_model, ids[: computed + 1])[-1]
        assert float((result.logits[-1] - expected).abs().max()) <= LIMIT


@examples(16)
@given(
    family=st.sampled_from(list(FAMILIES)),
    repair_rows=st.sampled_from([16, 50, 400]),
    n=st.integers(1, 3),
    moved=st.integers(0, 30),
    share=st.sampled_from([0.0, 0.1, 0.4]),
    selection=st.sampled_from(["none", "first_k", "donor_history", "deviation"]),
    seed=st.integers(0, 99),
)
def test_a_repaired_answer_goes_on_from_a_full_prefills_kv(
    family: str, repair_rows: int, n: int, moved: int, share: float, selection: Any, seed: int
) -> None:
    with mock.patch("semshare.kv.sequence.MIN_VIEW_TOKENS", 16):
        stepped = Stepped(tiny_engine(family, page_size=8, repair_rows=repair_rows))
        paper = words(90, seed)
        stepped.engine.remember(words(12, 100) + paper)
        prompt = answerable(words(moved, 101) + reworded(paper, seed + 1, share))
        started = stepped.submit(
            prompt, policy=eager(selection=selection), n=n, max_tokens=40, sampling=NO_END
        )
        stepped.step()
        while not (started.prompt.exact and all_computed(started)):
            stepped.step()
        assert_as_by_full_prefill(stepped, started)
        (answer,) = stepped.finish(started)
    assert answer.provenance.exact or answer.provenance.repaired_after is not None
    assert_all_that_is_kept_is_exact(stepped.engine)


def all_computed(generation: Generation) -> bool:
    """Whether all answers have the KV of all tokens but their last."""
    return all(one.computed == len(one.tokens) - 1 for one in generation.continuations)


def test_the_rest_of_an_answer_is_that_of_a_full_prefill() -> None:
    """As if the first token had been said by a full prefill: only it can differ."""
    stepped = stepped_with_donor(repair_rows=400, prefill_rows=400)
    started = stepped.submit(MIXED, policy=eager(), max_tokens=20, sampling=NO_END)
    (answer,) = stepped.finish(started)
    assert not answer.provenance.exact
    # The pass that repairs the prompt also computes the second token; the next pass both again.
    assert answer.provenance.repaired_after == 2
    full = Stepped()
    ids = np.concatenate((started.request.ids, np.array(answer.token_ids[:2], np.int32)))
    rest = full.submit(ids, policy=OFF, max_tokens=18, sampling=NO_END)
    assert tokens_of(full.finish(rest)[0]) == [answer.token_ids[2:]]


def prompt_rows(stepped: Stepped, started: Generation) -> int:
    """Rows of prompts that were computed."""
    return sum(
        int((rows.positions < len(started.request.ids)).sum())
        for several in stepped.passes
        for rows in several
        if isinstance(rows, PromptRows)
    )


def test_a_repair_in_chunks_takes_so_many_rows_a_step_and_enters_the_tree_at_its_end() -> None:
    stepped = stepped_with_donor(repair_rows=50, prefill_rows=50)
    started = stepped.submit(MIXED, policy=eager(), max_tokens=30, sampling=NO_END)
    stepped.step()
    mixed_rows = stepped.rows_of_prompts[0]
    prefix = stepped.session.cached_tokens(started.request.ids, "default")
    for chunk in range(-(-N // 50)):
        assert stepped.session.cached_tokens(started.request.ids, "default") == prefix
        assert not started.prompt.repaired
        stepped.step()
        assert stepped.rows_of_prompts[-1] == min(50, N - 50 * chunk)
    assert started.prompt.repaired
    assert stepped.session.cached_tokens(started.request.ids, "default") == (N - 1) // 8 * 8
    (answer,) = stepped.finish(started)
    assert answer.provenance.repaired_after == 1 + -(-N // 50)
    assert prompt_rows(stepped, started) == mixed_rows + N


def test_a_chunk_of_a_repair_comes_when_the_steps_have_left_room_for_it() -> None:
    stepped = stepped_with_donor(repair_rows=10, prefill_rows=50)
    stepped.submit(MIXED, policy=eager(), max_tokens=20, sampling=NO_END)
    for _ in range(16):
        stepped.step()
    decoding = stepped.rows_of_prompts[1:]
    assert decoding == [0, 0, 0, 0, 50] * 3


@pytest.mark.parametrize("n", [1, 3])
def test_a_repaired_prompt_becomes_a_donor_without_another_pass(n: int) -> None:
    stepped = stepped_with_donor(repair_rows=100, prefill_rows=100)
    started = stepped.submit(MIXED, policy=eager(remember=True), n=n, max_tokens=9, sampling=NO_END)
    (answer,) = stepped.finish(started)
    assert answer.remembered == "done"
    assert answer.donor is not None
    assert answer.donor.tokens == N
    mixed_rows = round(answer.provenance.compute_fraction * N)
    assert prompt_rows(stepped, started) == mixed_rows + N
    assert_all_that_is_kept_is_exact(stepped.engine)


def test_a_prompt_that_was_not_repaired_in_time_waits_to_be_computed() -> None:
    stepped = stepped_with_donor(repair_rows=8, prefill_rows=8)
    started = stepped.submit(MIXED, policy=eager(remember=True), max_tokens=4, sampling=NO_END)
    (answer,) = stepped.finish(started)
    assert (answer.remembered, answer.provenance.repaired_after) == ("pending", None)
    assert_all_that_is_kept_is_exact(stepped.engine)


def test_all_answers_of_a_prompt_are_repaired_together() -> None:
    stepped = stepped_with_donor(repair_rows=60, prefill_rows=60)
    started = stepped.submit(MIXED, policy=eager(), n=3, max_tokens=30, sampling=NO_END)
    while not started.served or not started.prompt.repaired:
        stepped.step()
    assert sum(stepped.rows_of_prompts[1:]) == N
    assert started.repair is not None
    exact = started.repair.sequence.key_table().slots
    for one in started.continuations:
        np.testing.assert_array_equal(one.sequence.key_table(N).slots, exact)
    stepped.finish(started)
    assert_nothing_is_held(stepped.engine)


def test_an_idle_repair_goes_on_only_while_nobody_else_is_there() -> None:
    stepped = stepped_with_donor(repair_rows=50, prefill_rows=50)
    policy = eager(repair="idle")
    started = stepped.submit(MIXED, policy=policy, max_tokens=60, sampling=NO_END)
    stepped.step()
    stepped.step()
    assert stepped.rows_of_prompts[-1] == 50
    other = stepped.submit(words(20, 9), max_tokens=5, sampling=NO_END)
    stepped.step()  # the other's prompt
    while not other.ended:
        assert stepped.rows_of_prompts[-1] in (0, 20)
        stepped.step()
    stepped.step()
    assert stepped.rows_of_prompts[-1] == 50
    (answer,) = stepped.finish(started)
    assert answer.provenance.repaired_after is not None


def without_repair(**fields: Any) -> list[list[int]]:
    """Tokens of the mixed prompt as it is."""
    stepped = stepped_with_donor()
    started = stepped.submit(MIXED, policy=eager(repair="off"), max_tokens=9, **fields)
    return tokens_of(stepped.finish(started)[0])


def fails_in_repairs(stepped: Stepped, at: int) -> None:
    """From the chunk number `at` on, rows of a repair raise."""
    run = stepped.session.executor.run
    seen: set[int] = set()

    def is_repair(rows: Rows) -> bool:
        repairs = [one.repair for one in stepped.scheduler.active if one.repair]
        return isinstance(rows, PromptRows) and rows.sequence in [r.sequence for r in repairs]

    def broken(several: Sequence[Rows]) -> Any:
        repairs = [rows for rows in several if is_repair(rows)]
        seen.update(int(rows.positions[0]) for rows in repairs)
        if repairs and len(seen) > at:
            raise RuntimeError("injected")
        return run(several)

    stepped.session.executor.run = broken  # type: ignore[method-assign]


@pytest.mark.parametrize("at", [0, 2])
@pytest.mark.parametrize("n", [1, 2])
def test_a_repair_that_fails_leaves_the_answer_as_it_is(at: int, n: int) -> None:
    stepped = stepped_with_donor(repair_rows=40, prefill_rows=40)
    fails_in_repairs(stepped, at)
    started = stepped.submit(MIXED, policy=eager(), n=n, max_tokens=9)
    (answer,) = stepped.finish(started)
    assert answer.provenance.repaired_after is None
    if at == 0:
        assert tokens_of(answer) == without_repair(n=n)
    assert all(choice.finish_reason in ("stop", "length") for choice in answer.choices)
    assert_all_that_is_kept_is_exact(stepped.engine)


def test_a_repair_without_slots_leaves_the_answer_as_it_is() -> None:
    """The pinned donor, the mixed prompt and its answer fill the pool."""
    pages = -(-len(DONOR) // 8) + -(-(N + 9) // 8) + 1
    stepped = Stepped(kv_budget_bytes=pages * 8 * 1024, history_tokens=0)
    stepped.engine.remember(DONOR, pinned=True)
    (answer,) = stepped.finish(stepped.submit(MIXED, policy=eager(), max_tokens=9))
    assert not answer.provenance.exact
    assert answer.provenance.repaired_after is None
    assert tokens_of(answer) == without_repair()
    assert_nothing_is_held(stepped.engine)


def test_an_answer_that_ends_before_its_repair_leaks_nothing() -> None:
    for most in range(1, 7):
        stepped = stepped_with_donor(repair_rows=60, prefill_rows=60)
        stepped.finish(stepped.submit(MIXED, policy=eager(), max_tokens=most, sampling=NO_END))
        assert_all_that_is_kept_is_exact(stepped.engine)


def test_a_request_may_be_cancelled_at_any_time_of_its_repair() -> None:
    for steps in range(1, 8):
        stepped = stepped_with_donor(repair_rows=60, prefill_rows=60)
        started = stepped.submit(MIXED, policy=eager(), n=2, max_tokens=20, sampling=NO_END)
        for _ in range(steps):
            stepped.step()
        stepped.cancel(started)
        assert_all_that_is_kept_is_exact(stepped.engine)


def test_an_answer_that_ended_while_others_are_repaired_is_not_taken_for_exact() -> None:
    """The first of three answers ends on mixed KV; then the pool asks for the repair's slots."""
    stepped = stepped_with_donor(repair_rows=60, prefill_rows=60)
    started = stepped.submit(
        MIXED, policy=eager(remember=True), n=3, max_tokens=12, sampling=NO_END
    )
    stepped.step()
    stepped.step()
    started.continuations[0].end("stop")
    while not started.prompt.repaired:
        stepped.step()
    started.give_up_repair()
    (answer,) = stepped.finish(started)
    assert answer.remembered == "done"
    assert_all_that_is_kept_is_exact(stepped.engine)


def test_an_answer_is_decoded_beside_its_repair() -> None:
    stepped = stepped_with_donor(repair_rows=40, prefill_rows=40)
    started = stepped.submit(MIXED, policy=eager(), max_tokens=20, sampling=NO_END)
    stepped.step()
    while not started.prompt.repaired:
        stepped.step()
        kinds = [type(rows) for rows in stepped.passes[-1]]
        assert kinds == [DecodeRows, PromptRows]
    stepped.finish(started)


def test_slots_that_are_missing_at_the_very_end_of_a_repair(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The prompt is exact, but the second answer can't be moved onto it."""
    stepped = stepped_with_donor(repair_rows=400, prefill_rows=400)
    started = stepped.submit(MIXED, policy=eager(), n=2, max_tokens=12, sampling=NO_END)
    stepped.step()
    allocate = stepped.engine.pool.allocate
    calls: list[int] = []

    def full_at_the_third(n_slots: int) -> Any:
        calls.append(n_slots)
        if len(calls) == 3:  # the repair's own slots, then those of two answers
            raise PoolExhausted(n_slots, 0, stepped.engine.pool.n_slots)
        return allocate(n_slots)

    monkeypatch.setattr(stepped.engine.pool, "allocate", full_at_the_third)
    (answer,) = stepped.finish(started)
    assert len(calls) >= 3
    assert [len(tokens) for tokens in tokens_of(answer)] == [12, 12]
    assert answer.provenance.repaired_after is None
    assert_all_that_is_kept_is_exact(stepped.engine)
