"""The engine's own promises: answers, donors, namespaces, limits, memory."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from prompts import answerable, reworded, words
from tiny import EOS_ID, FAMILIES, VOCAB_SIZE, tiny_engine, tiny_model, tiny_tokenizer

from semshare import (
    Answer,
    EngineConfig,
    InvalidRequest,
    NotFound,
    PoolExhausted,
    PromptTooLong,
    ReusePolicy,
    SemShare,
    TextDelta,
)
from semshare.donors import traits
from semshare.donors.embedders import ModelEmbedder
from semshare.donors.library import DonorLibrary
from semshare.donors.token_lsh import TokenLSH
from semshare.engine import keeper
from semshare.engine.sampling import Picked, Sampler
from semshare.engine.served import Served
from semshare.kv import sequence
from semshare.planning.monitor import CLEAN_BEFORE_UP
from semshare.types import Scores

OFF = ReusePolicy(mode="off")
PREFIX = ReusePolicy(mode="prefix")
SPAN = ReusePolicy(mode="span")
SEMANTIC = ReusePolicy(min_similarity=0.0)

PAPER = words(200, 1)
DONOR = words(12, 4) + PAPER
MOVED = answerable(words(20, 2) + PAPER)
REWORDED = answerable(words(20, 2) + reworded(PAPER, 3))


@pytest.fixture
def engine() -> SemShare:
    return tiny_engine()


@pytest.fixture
def no_layer(monkeypatch: pytest.MonkeyPatch) -> Callable[[SemShare], None]:
    """Returns a function after which any layer of an engine that runs fails the test."""

    def forbid(engine: SemShare) -> None:
        def runs(*_args: object) -> None:
            pytest.fail("a layer ran")

        for name in ("embed", "attention_inputs", "layer_output", "logits"):
            monkeypatch.setattr(engine.model, name, runs)

    return forbid


# ------------------------------------------------------------------ answers


@pytest.mark.parametrize("family", ["llama", "mistral-window", "gemma3", "phi3-partial"])
@pytest.mark.parametrize("used", [OFF, PREFIX, SEMANTIC], ids=lambda p: p.mode)
def test_generate_is_the_argmax_of_score(family: str, used: ReusePolicy) -> None:
    engine = tiny_engine(family)
    engine.remember(DONOR)
    answer = engine.generate(REWORDED, max_tokens=12, policy=used)
    assert answer.provenance.exact == (used.mode != "semantic")
    score = engine.score(REWORDED, answer.token_ids, policy=used)
    assert score.logits.argmax(-1).tolist() == score.token_ids == answer.token_ids
    best = score.logits.log_softmax(-1).max(-1).values
    assert torch.equal(score.logprobs, best)


def test_greedy_generation_is_that_of_transformers() -> None:
    model = tiny_model("llama")
    engine = SemShare(model, tiny_tokenizer(), config=EngineConfig(kv_budget_bytes=8 << 20))
    ids = torch.from_numpy(engine.encode(PAPER).astype(np.int64))[None]
    theirs = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=16, do_sample=False
    )
    answer = engine.generate(PAPER, max_tokens=16)
    expected = theirs[0, ids.shape[1] :].tolist()
    assert answer.token_ids == [token for token in expected if token != EOS_ID]
    assert answer.prompt_tokens == len(PAPER)


def test_scores_are_shaped_as_promised(engine: SemShare) -> None:
    for continuation, n in (("x", 1), ("xyz", 3), ([7], 1), (np.array([7, 8]), 2)):
        score = engine.score(PAPER, continuation)
        assert score.logits.shape == (n, engine.model.vocab_size)
        assert score.logits.dtype == score.logprobs.dtype == torch.float32
        assert score.logprobs.shape == (n,)
        at = torch.tensor(score.token_ids)
        expected = score.logits.log_softmax(-1)[torch.arange(n), at]
        assert torch.equal(score.logprobs, expected)


def test_text_messages_and_ids_are_the_same_prompt(engine: SemShare) -> None:
    messages = [{"role": "user", "content": "hello there"}]
    ids = engine.encode(messages)
    by_messages = engine.generate(messages, max_tokens=5, policy=OFF)
    by_ids = engine.generate(ids.tolist(), max_tokens=5, policy=OFF)
    assert by_messages.token_ids == by_ids.token_ids


def test_timings_add_up(engine: SemShare) -> None:
    engine.remember(DONOR)
    timings = engine.generate(REWORDED, max_tokens=6, policy=SEMANTIC).timings
    stages = (
        timings.tokenize_s + timings.lookup_s + timings.plan_s + timings.load_s + timings.prefill_s
    )
    assert 0 < stages <= timings.ttft_s
    assert min(timings.lookup_s, timings.plan_s, timings.load_s, timings.prefill_s) > 0
    assert timings.decode_s > 0


def test_seeds_repeat_and_greedy_ignores_them(engine: SemShare) -> None:
    def tokens(**options: Any) -> list[int]:
        return engine.generate(PAPER, max_tokens=12, **options).token_ids

    assert tokens(temperature=1.0, seed=3) == tokens(temperature=1.0, seed=3)
    assert tokens(temperature=1.0, seed=3) != tokens(temperature=1.0, seed=4)
    assert tokens(seed=3) == tokens(seed=4) == tokens(temperature=1.0, top_k=1)


def test_logprobs_are_those_of_scoring_the_answer(engine: SemShare) -> None:
    options: dict[str, Any] = {"temperature": 0.8, "seed": 1, "logit_bias": {9: 3.0}}
    answer = engine.generate(PAPER, max_tokens=8, policy=OFF, logprobs=3, **options)
    assert answer.token_ids == engine.generate(PAPER, max_tokens=8, policy=OFF, **options).token_ids
    (choice,) = answer.choices
    assert (choice.text, choice.token_ids) == (answer.text, answer.token_ids)
    assert choice.finish_reason == answer.finish_reason
    score = engine.score(PAPER, answer.token_ids, policy=OFF)
    assert [found.token_id for found in choice.logprobs] == answer.token_ids
    told = torch.tensor([found.logprob for found in choice.logprobs])
    torch.testing.assert_close(told, score.logprobs, atol=1e-4, rtol=0)
    for found, logits in zip(choice.logprobs, score.logits, strict=True):
        assert [token for token, _ in found.top] == logits.topk(3).indices.tolist()


def test_answers_without_logprobs_have_none(engine: SemShare) -> None:
    assert engine.generate(PAPER, max_tokens=3).choices[0].logprobs == ()


def test_a_bias_bans_and_min_p_narrows(engine: SemShare) -> None:
    greedy = engine.generate(PAPER, max_tokens=1, policy=OFF).token_ids
    banned = engine.generate(PAPER, max_tokens=1, policy=OFF, logit_bias={greedy[0]: -100.0})
    assert banned.token_ids != greedy
    hot = engine.generate(PAPER, max_tokens=1, policy=OFF, temperature=5.0, min_p=1.0)
    assert hot.token_ids == greedy
    with pytest.raises(InvalidRequest, match=f"logit_bias names token {VOCAB_SIZE}"):
        engine.generate(PAPER, logit_bias={VOCAB_SIZE: 1.0})


# ------------------------------------------------------------- ends, streams


@pytest.fixture
def says(monkeypatch: pytest.MonkeyPatch) -> Callable[[Sequence[int]], None]:
    """Returns a function that makes engines sample these tokens, whatever the logits."""

    def script(tokens: Sequence[int]) -> None:
        left = iter(tokens)
        monkeypatch.setattr(Sampler, "pick", lambda self, logits: Picked(next(left), None))

    return script


def ids_of(engine: SemShare, text: str) -> list[int]:
    return engine.encode(text).tolist()


def test_the_end_token_stops_and_is_not_part_of_the_answer(engine: SemShare, says: Any) -> None:
    says([*ids_of(engine, "hi"), EOS_ID, 9])
    answer = engine.generate(PAPER, max_tokens=10)
    assert (answer.text, answer.finish_reason) == ("hi", "stop")
    assert answer.token_ids == ids_of(engine, "hi")


def test_an_answer_may_be_empty(engine: SemShare, says: Any) -> None:
    says([EOS_ID])
    answer = engine.generate(PAPER, max_tokens=10)
    assert (answer.text, answer.token_ids, answer.finish_reason) == ("", [], "stop")


def test_max_tokens_ends_with_length(engine: SemShare, says: Any) -> None:
    says([*ids_of(engine, "abc"), EOS_ID])
    answer = engine.generate(PAPER, max_tokens=3)
    assert (answer.text, answer.finish_reason) == ("abc", "length")


@pytest.mark.parametrize("stop", ["END", ["END"], ["never", "END"]])
def test_a_stop_string_across_tokens_ends_the_answer_before_it(
    engine: SemShare, says: Any, stop: Any
) -> None:
    says(ids_of(engine, "one ENd END two"))
    answer = engine.generate(PAPER, max_tokens=50, stop=stop)
    assert (answer.text, answer.finish_reason) == ("one ENd ", "stop")
    assert answer.token_ids == ids_of(engine, "one ENd END")


def test_streamed_pieces_and_tokens_add_up_to_the_answer(engine: SemShare, says: Any) -> None:
    text = "a€ 🙂 é END"
    says(ids_of(engine, text)[:-1])
    *pieces, last = engine.stream(PAPER, max_tokens=len(ids_of(engine, text)) - 1, stop=["END"])
    assert all(piece.answer is None for piece in pieces)
    assert last.answer is not None
    assert "".join(piece.text for piece in pieces) == last.answer.text == text[:-1]
    assert [t for piece in pieces for t in piece.token_ids] == last.answer.token_ids
    assert not any("\ufffd" in piece.text for piece in pieces)


def test_streamed_logprobs_come_with_their_tokens(engine: SemShare) -> None:
    *pieces, last = engine.stream(PAPER, max_tokens=6, logprobs=0)
    assert last.answer is not None
    told = [found for piece in pieces for found in piece.logprobs]
    assert tuple(told) == last.answer.choices[0].logprobs
    for piece in pieces:
        assert [found.token_id for found in piece.logprobs] == piece.token_ids


def small_context(tokens: int) -> SemShare:
    """An engine whose model has a context of `tokens`, and that never says its end token."""
    model = tiny_model("llama")
    model.config.max_position_embeddings = tokens
    engine = SemShare(model, tiny_tokenizer(), config=EngineConfig(kv_budget_bytes=8 << 20))
    engine._session.eos = frozenset()
    return engine


@pytest.mark.parametrize("n", [61, 62, 63])
def test_the_context_is_filled_to_its_last_token(n: int) -> None:
    engine = small_context(64)
    answer = engine.generate([5] * n, max_tokens=50)
    assert (len(answer.token_ids), answer.finish_reason) == (64 - n, "length")


@pytest.mark.parametrize("n", [50, 60, 63])
def test_donors_near_the_context_limit_are_remembered(n: int) -> None:
    engine = small_context(64)
    assert engine.remember([5] * n).tokens == n


def test_a_prompt_without_room_for_an_answer_is_refused_with_both_numbers() -> None:
    engine = small_context(64)
    for call in (engine.generate, engine.remember, engine.plan, engine.verify):
        with pytest.raises(PromptTooLong, match=r"has 64 tokens; .* holds 64"):
            call([5] * 64)
    with pytest.raises(PromptTooLong, match=r"has 66 tokens; .* holds 64"):
        engine.score([5] * 60, [6] * 6)
    assert engine.score([5] * 60, [6] * 4).logits.shape[0] == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_tokens": 0}, "max_tokens is 0: it must be a whole number, at least 1"),
        ({"max_tokens": 2.5}, "max_tokens is 2.5"),
        ({"max_tokens": True}, "max_tokens is True"),
        ({"policy": {"mode": "span"}}, "policy is a dict"),
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"top_p": 2.0}, "top_p is 2.0"),
        ({"top_k": -3}, "top_k is -3"),
    ],
)
def test_bad_options_are_refused_before_anything_runs(
    engine: SemShare, no_layer: Any, options: dict[str, Any], message: str
) -> None:
    no_layer(engine)
    with pytest.raises(InvalidRequest, match=message):
        engine.stream(PAPER, **options)  # at the call, not at the first piece
    for prompt in ("", [], [-1], [10_000]):
        with pytest.raises(InvalidRequest):
            engine.stream(prompt)


def test_a_stream_given_up_midway_releases_its_pages(engine: SemShare) -> None:
    engine.remember(DONOR)
    before = engine.pool.references(np.arange(engine.pool.n_pages)).tolist()
    for used in (OFF, SEMANTIC):
        stream = engine.stream(REWORDED, policy=used, max_tokens=40)
        next(stream)
        assert engine.pool.used_bytes > sum(d.bytes for d in engine.donors())
        stream.close()
        assert engine.pool.references(np.arange(engine.pool.n_pages)).tolist() == before
    engine.stream(REWORDED)  # never started: nothing was taken
    assert engine.pool.references(np.arange(engine.pool.n_pages)).tolist() == before


def test_streams_take_turns(engine: SemShare) -> None:
    """Several answers at once, step by step, each as if it were alone."""
    prompts = [words(50 + 10 * i, i) for i in range(3)]
    expected = [engine.generate(p, max_tokens=8, policy=OFF).token_ids for p in prompts]
    streams = [engine.stream(p, max_tokens=8) for p in prompts]
    answers: list[Answer | None] = [None] * 3
    while None in answers:
        for i, stream in enumerate(streams):
            delta: TextDelta | None = next(stream, None)
            if delta is not None and delta.answer is not None:
                answers[i] = delta.answer
    assert [answer.token_ids for answer in answers if answer] == expected


def test_threads_share_an_engine() -> None:
    engine = tiny_engine()
    engine.remember(DONOR)
    prompts = [answerable(words(20, i) + reworded(PAPER, i)) for i in range(6)]
    expected = [engine.generate(p, max_tokens=6, policy=SEMANTIC).token_ids for p in prompts]
    found: dict[int, list[int]] = {}

    def ask(i: int) -> None:
        torch.set_num_threads(1)
        found[i] = engine.generate(prompts[i], max_tokens=6, policy=SEMANTIC).token_ids

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[i] for i in range(6)] == expected


# ------------------------------------------------------------ donors, memory


def test_donors_are_listed_forgotten_and_not_found(engine: SemShare) -> None:
    first = engine.remember(PAPER)
    second = engine.remember(words(50, 9), pinned=True)
    assert [info.id for info in engine.donors()] == [first.id, second.id]
    assert (first.tokens, first.namespace, first.pinned) == (200, "default", False)
    assert second.pinned
    assert first.bytes == 13 * 16 * 1024  # 200 tokens take 13 pages of 16 slots
    engine.forget(first.id)
    assert [info.id for info in engine.donors()] == [second.id]
    with pytest.raises(NotFound, match=f"no donor '{first.id}' in this namespace"):
        engine.forget(first.id)
    with pytest.raises(NotFound, match="in this namespace"):
        engine.forget(second.id, namespace="other")
    engine.forget(second.id)
    assert engine.pool.used_bytes == 0


def test_forgetting_stops_reuse(engine: SemShare) -> None:
    donor = engine.remember(DONOR)
    assert engine.plan(MOVED).counts["span"] > 100
    engine.forget(donor.id)
    assert engine.plan(MOVED).counts == {"fresh": len(MOVED), "prefix": 0, "span": 0, "fuzzy": 0}


def test_forget_all_of_one_namespace_or_of_all(engine: SemShare) -> None:
    for namespace in "ab":
        engine.remember(DONOR, namespace=namespace)
        engine.generate(MOVED, namespace=namespace, policy=PREFIX, max_tokens=3)
    engine.forget_all("a")
    assert engine.donors(namespace="a") == []
    assert len(engine.donors(namespace="b")) == 1
    assert engine.plan(MOVED, namespace="a", policy=PREFIX).counts["prefix"] == 0
    assert engine.plan(MOVED, namespace="b", policy=PREFIX).counts["prefix"] > 0
    engine.forget_all()
    assert engine.pool.used_bytes == 0
    engine.forget_all("never seen")


@pytest.mark.parametrize(("forgotten", "kept"), [("default", 0), (None, 0), ("other", 1)])
def test_what_is_forgotten_while_it_is_answered_is_not_kept(
    engine: SemShare, forgotten: str | None, kept: int
) -> None:
    pieces = engine.stream(PAPER, max_tokens=8, policy=replace(PREFIX, remember=True))
    next(pieces)
    engine.forget_all(forgotten)
    *_, last = pieces
    assert last.answer is not None
    assert last.answer.remembered == ("done" if kept else "no")
    assert len(engine.donors()) == kept
    assert (engine.plan(PAPER, policy=PREFIX).counts["prefix"] > 0) == bool(kept)
    if not kept:
        assert engine.pool.used_bytes == 0


def test_a_donor_whose_prefix_others_build_on_counts_as_used() -> None:
    engine = tiny_engine(kv_budget_bytes=36 * 16 * 1024)
    first, second = (engine.remember(words(150, seed)) for seed in (20, 21))
    turn = words(150, 20) + words(40, 22)
    engine.generate(turn, max_tokens=1, policy=PREFIX)  # its own cached end belongs to nobody
    for _ in range(2):
        engine.generate(turn + words(9, 23), max_tokens=1, policy=PREFIX)
    engine.remember(words(250, 24))
    assert engine.donors()[0].id == first.id
    assert second not in engine.donors()


@pytest.mark.parametrize("used", [PREFIX, SPAN, SEMANTIC], ids=lambda p: p.mode)
def test_namespaces_never_mix(engine: SemShare, used: ReusePolicy) -> None:
    engine.remember(DONOR, namespace="a")
    engine.generate(DONOR + words(30, 8), namespace="a", max_tokens=2)
    for i, prompt in enumerate((DONOR, DONOR + words(30, 8), MOVED, REWORDED)):
        nothing = engine.plan(prompt, policy=used, namespace="b").counts
        assert nothing == {"fresh": len(prompt), "prefix": 0, "span": 0, "fuzzy": 0}
        answer = engine.generate(prompt, policy=used, namespace=f"b{i}", max_tokens=1)
        assert answer.provenance.reused == 0
    hits = [engine.plan(p, policy=used, namespace="a").counts for p in (DONOR, MOVED, REWORDED)]
    assert hits[0]["prefix"] > 0
    if used.mode != "prefix":
        assert hits[1]["span"] > 100
    if used.mode == "semantic":
        assert hits[2]["fuzzy"] > 0


def test_remembering_an_exact_answer_is_done_at_once(engine: SemShare) -> None:
    answer = engine.generate(PAPER, max_tokens=4, policy=replace(PREFIX, remember=True))
    assert answer.remembered == "done"
    assert answer.donor == engine.donors()[0]
    assert answer.donor is not None
    assert answer.donor.tokens == len(PAPER)
    assert engine.plan(MOVED).counts["span"] > 100
    (donor,) = engine.library.namespace("default").donors.values()
    # Three answer tokens were computed; each spends one unit of attention a layer and head,
    # on the prompt or on the answer.
    spent = 3 * engine.model.n_layers * engine.model.n_heads
    assert 0.5 * spent < float(donor.history.sum()) <= spent * (1 + 1e-5)


def test_remembering_an_approximate_answer_waits_to_be_computed(engine: SemShare) -> None:
    engine.remember(DONOR)
    used = replace(SEMANTIC, remember=True)
    for _ in range(2):  # asked twice, remembered once
        answer = engine.generate(REWORDED, max_tokens=4, policy=used)
        assert (answer.remembered, answer.donor) == ("pending", None)
    assert engine.stats()["pending"] == 1
    assert len(engine.donors()) == 1
    (info,) = engine.complete_pending()
    assert info.tokens == len(REWORDED)
    assert info in engine.donors()
    assert engine.stats()["pending"] == 0
    assert engine.complete_pending() == []
    again = engine.generate(REWORDED, max_tokens=4, policy=used)
    assert again.remembered == "done"
    assert again.provenance.counts["prefix"] > 0


def test_a_pending_prompt_that_does_not_fit_now_is_not_lost() -> None:
    engine = tiny_engine(kv_budget_bytes=32 * 16 * 1024)
    engine.remember(DONOR, pinned=True)
    engine.generate(REWORDED, max_tokens=1, policy=replace(SEMANTIC, remember=True))
    block = engine.pool.allocate(engine.pool.free_pages * 16)
    with pytest.raises(PoolExhausted):
        engine.complete_pending()
    assert engine.stats()["pending"] == 1
    engine.pool.release(block)
    assert len(engine.complete_pending()) == 1


def test_no_more_prompts_wait_than_allowed(
    engine: SemShare, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeper, "MAX_PENDING", 1)
    engine.remember(DONOR)
    used = replace(SEMANTIC, remember=True)
    for prompt, remembered in ((REWORDED, "pending"), (MOVED, "no"), (REWORDED, "pending")):
        assert engine.generate(prompt, max_tokens=1, policy=used).remembered == remembered
    assert engine.stats()["pending"] == 1


def test_what_waits_is_computed_a_few_at_a_time_and_what_fails_goes_last(
    engine: SemShare, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.remember(DONOR)
    used = replace(SEMANTIC, remember=True)
    for prompt in (REWORDED, MOVED):
        engine.generate(prompt, max_tokens=1, policy=used)
    with monkeypatch.context() as patch:
        patch.setattr(DonorLibrary, "add", lambda *_args, **_options: pytest.fail("no room"))
        with pytest.raises(pytest.fail.Exception):
            engine.complete_pending()
    assert engine.stats()["pending"] == 2
    (info,) = engine.complete_pending(limit=1)
    assert info.tokens == len(MOVED)
    assert engine.stats()["pending"] == 1


def test_forgetting_everything_forgets_what_waits_too(engine: SemShare) -> None:
    for namespace in "ab":
        engine.remember(DONOR, namespace=namespace)
        used = replace(SEMANTIC, remember=True)
        engine.generate(REWORDED, max_tokens=1, policy=used, namespace=namespace)
    engine.forget_all("a")
    assert engine.stats()["pending"] == 1
    engine.complete_pending()
    assert engine.donors(namespace="a") == []
    assert len(engine.donors(namespace="b")) == 2


@pytest.mark.parametrize(("forgotten", "kept"), [("default", 0), ("other", 1)])
def test_what_is_forgotten_while_it_is_computed_is_not_kept(
    engine: SemShare, monkeypatch: pytest.MonkeyPatch, forgotten: str, kept: int
) -> None:
    engine.remember(DONOR)
    engine.generate(REWORDED, max_tokens=1, policy=replace(SEMANTIC, remember=True))
    first_history = engine._session.outside.first_history

    def forget_meanwhile(served: Served) -> Scores:
        engine.forget_all(forgotten)
        return first_history(served)

    monkeypatch.setattr(engine._session.outside, "first_history", forget_meanwhile)
    assert len(engine.complete_pending()) == kept
    assert len(engine.donors()) == 2 * kept
    assert engine.complete_pending() == []


def test_remembering_a_known_prompt_embeds_nothing_again(
    engine: SemShare, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = engine.remember(DONOR)
    for owner, name in ((TokenLSH, "encode"), (ModelEmbedder, "embed"), (traits, "mark_facts")):
        monkeypatch.setattr(owner, name, lambda *_args: pytest.fail("done again"))
    again = engine.remember(DONOR, pinned=True)
    assert again == replace(info, pinned=True, last_used=again.last_used)


def test_forgetting_everything_forgets_what_waits_in_namespaces_that_hold_nothing(
    engine: SemShare,
) -> None:
    donor = engine.remember(DONOR)
    engine.generate(REWORDED, max_tokens=1, policy=replace(SEMANTIC, remember=True))
    used = replace(SEMANTIC, max_divergence=1e-9, fact_guard=False)
    engine.verify(REWORDED, policy=used, max_tokens=4)
    engine.forget(donor.id)
    engine.forget_all()
    assert engine.stats()["pending"] == 0
    assert engine.generate(REWORDED, policy=used, max_tokens=1).provenance.mode == "semantic"


def test_an_answer_ends_where_the_pool_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sequence, "ROOM_TOKENS", 16)
    engine = tiny_engine(kv_budget_bytes=16 * 16 * 1024)
    engine._session.eos = frozenset()
    prompt = words(100, 9)
    block = engine.pool.allocate((engine.pool.free_pages - 9) * 16)
    answer = engine.generate(prompt, max_tokens=200, policy=OFF)
    assert answer.finish_reason == "length"
    assert 9 * 16 - 100 <= len(answer.token_ids) <= 9 * 16 - 100 + 1
    engine.pool.release(block)
    assert (
        engine.generate(prompt, max_tokens=60, policy=OFF).token_ids[:40] == (answer.token_ids[:40])
    )


def test_not_remembering_leaves_no_donor(engine: SemShare) -> None:
    answer = engine.generate(PAPER, max_tokens=4)
    assert (answer.remembered, answer.donor, engine.donors()) == ("no", None, [])


def test_history_is_the_attention_of_the_answer(engine: SemShare) -> None:
    """Summed by brute force from the definition, over the tokens that were decoded."""
    engine.remember(PAPER)
    (donor,) = engine.library.namespace("default").donors.values()
    assert donor.history.shape == (len(PAPER),)
    model = tiny_model("llama").eval()
    model.set_attn_implementation("eager")
    answer = engine.generate(PAPER, max_tokens=8, policy=OFF)
    ids = [*engine.encode(PAPER).tolist(), *answer.token_ids]
    with torch.inference_mode():
        attentions = model(input_ids=torch.tensor([ids]), output_attentions=True).attentions
    total = sum(layer[0, :, len(PAPER) :, : len(PAPER)].sum(dim=(0, 1)) for layer in attentions)
    np.testing.assert_allclose(donor.history, total.numpy(), atol=1e-3)


def test_without_history_tokens_none_is_recorded() -> None:
    engine = tiny_engine(history_tokens=0)
    engine.remember(PAPER)
    (donor,) = engine.library.namespace("default").donors.values()
    assert not donor.history.any()


def test_under_a_small_budget_old_donors_go_pinned_ones_stay_and_answers_are_right() -> None:
    engine = tiny_engine(kv_budget_bytes=64 * 16 * 1024, history_tokens=2)  # 64 pages
    pinned = engine.remember(words(200, 100), pinned=True)  # 13 pages
    for i in range(12):
        paper = words(200, i)
        engine.remember(paper)
        prompt = answerable(words(20, 200 + i) + paper)
        answer = engine.generate(prompt, max_tokens=4, policy=SPAN)
        assert answer.provenance.fallback is None
        assert answer.provenance.counts["span"] > 150
        exact = engine.generate(prompt, max_tokens=4, policy=PREFIX)
        assert exact.token_ids == engine.generate(prompt, max_tokens=4, policy=OFF).token_ids
        assert engine.stats()["pool_bytes"] <= engine.stats()["pool_budget_bytes"]
        assert pinned.id in [info.id for info in engine.donors()]
    assert engine.stats()["donors_evicted"] >= 8
    assert len(engine.donors()) < 6
    latest = engine.donors()[-1]
    assert latest.tokens == 200


def test_a_donor_in_use_survives_its_eviction(engine: SemShare) -> None:
    donor = engine.remember(DONOR)
    expected = engine.generate(REWORDED, max_tokens=8, policy=SEMANTIC).token_ids
    stream = engine.stream(REWORDED, max_tokens=8, policy=SEMANTIC)
    next(stream)
    engine.forget(donor.id)
    # Whoever comes now writes over every page that is free.
    for layer in (*engine.pool.keys, *engine.pool.values):
        free = np.flatnonzero(engine.pool.references(np.arange(engine.pool.n_pages)) == 0)
        layer[torch.from_numpy(engine.pool.slots_of(free))] = torch.nan
    *_, last = stream
    assert last.answer is not None
    assert last.answer.token_ids == expected


def test_stats_count_tokens_and_pages(engine: SemShare) -> None:
    engine.remember(DONOR)
    before = engine.stats()
    provenance = engine.generate(REWORDED, max_tokens=2, policy=SEMANTIC).provenance
    after = engine.stats()
    assert after["requests"] == before["requests"] + 1
    for source, tokens in provenance.counts.items():
        assert after[f"tokens:{source}"] - before[f"tokens:{source}"] == tokens
    assert after["donors"] == 1
    assert after["pool_bytes"] == engine.donors()[0].bytes
    assert after["pool_pages_free"] == engine.pool.n_pages - 14


# ------------------------------------------------------------- plan, verify


def test_plan_runs_no_layer_and_says_what_generate_does(engine: SemShare, no_layer: Any) -> None:
    engine.remember(DONOR)
    provenance = engine.score(REWORDED, "x", policy=SEMANTIC).provenance
    no_layer(engine)
    plan = engine.plan(REWORDED, policy=SEMANTIC)
    np.testing.assert_array_equal(plan.source, provenance.source)
    np.testing.assert_array_equal(plan.position, provenance.donor_position)
    assert plan.donors == provenance.donors
    for selection in ("query_attention", "deviation", "random"):
        engine.plan(REWORDED, policy=replace(SEMANTIC, selection=selection))
    assert engine.plan(REWORDED, policy=OFF).counts["fresh"] == len(REWORDED)


def test_only_unmatched_false_may_recompute_identical_text(engine: SemShare) -> None:
    engine.remember(DONOR)
    narrow = engine.plan(MOVED, policy=replace(SPAN, selection="tail", recompute=0.5))
    wide = engine.plan(
        MOVED, policy=replace(SPAN, selection="tail", recompute=0.5, only_unmatched=False)
    )
    assert wide.counts["span"] < 0.6 * narrow.counts["span"]


def test_the_guard_computes_changed_facts(engine: SemShare) -> None:
    body = words(60, 30)
    engine.remember(f"{words(9, 31)} {body} it cost 1234 units then {body}")
    first, second = (reworded(body, seed, share=0.15) for seed in (33, 34))
    prompt = answerable(f"{words(17, 32)} {first} it cost 9876 units then {second}")
    used = replace(SEMANTIC, selection="none")
    at = prompt.index("9876")
    guarded = engine.plan(prompt, policy=used)
    assert (guarded.source[at : at + 4] == 0).all()
    unguarded = engine.plan(prompt, policy=replace(used, fact_guard=False))
    assert (unguarded.source[at : at + 4] != 0).any()


def test_verify_measures_and_reuse_steps_down(engine: SemShare) -> None:
    engine.remember(DONOR)
    used = replace(SEMANTIC, max_divergence=1e-9, fact_guard=False)
    divergence = engine.verify(REWORDED, policy=used, max_tokens=6)
    assert divergence.kl > 1e-6
    assert divergence.tokens == 6
    assert engine.generate(REWORDED, policy=used, max_tokens=2).provenance.mode == "prefix"
    tolerant = replace(used, max_divergence=100.0)
    assert engine.generate(REWORDED, policy=tolerant, max_tokens=2).provenance.mode == "semantic"
    elsewhere = engine.generate(REWORDED, policy=used, namespace="other", max_tokens=2)
    assert elsewhere.provenance.mode == "semantic"
    engine.forget_all("default")
    assert engine.generate(REWORDED, policy=used, max_tokens=2).provenance.mode == "semantic"


def test_reuse_steps_down_only_as_far_as_it_must_and_up_again(engine: SemShare) -> None:
    engine.remember(DONOR)
    wide = replace(SEMANTIC, fact_guard=False)
    semantic = engine.verify(REWORDED, policy=wide, max_tokens=6).kl
    span = engine.verify(REWORDED, policy=replace(wide, mode="span"), max_tokens=6).kl
    better = engine.verify(MOVED, policy=wide, max_tokens=6).kl
    assert span < better < semantic
    engine.forget_all()
    engine.remember(DONOR)
    used = replace(wide, max_divergence=(better + semantic) / 2)
    assert engine.verify(REWORDED, policy=used, max_tokens=6).kl == pytest.approx(semantic)
    answer = engine.generate(REWORDED, policy=used, max_tokens=2)
    assert answer.provenance.mode == "span"
    np.testing.assert_array_equal(
        engine.plan(REWORDED, policy=used).source,
        engine.plan(REWORDED, policy=replace(used, mode="span")).source,
    )
    for _ in range(3):  # exact, so that nothing is learned about semantic reuse
        engine.verify(words(200, 77), policy=used, max_tokens=6)
    assert engine.generate(REWORDED, policy=used, max_tokens=2).provenance.mode == "span"
    for _ in range(CLEAN_BEFORE_UP):  # now semantic reuse does better
        assert engine.generate(REWORDED, policy=used, max_tokens=2).provenance.mode == "span"
        engine.verify(MOVED, policy=used, max_tokens=6)
    assert engine.generate(REWORDED, policy=used, max_tokens=2).provenance.mode == "semantic"


def test_verify_of_an_exact_path_measures_nothing_but_rounding(engine: SemShare) -> None:
    engine.remember(DONOR)
    divergence = engine.verify(answerable(DONOR), policy=PREFIX, max_tokens=6)
    assert abs(divergence.kl) < 1e-6
    assert divergence.top1 == 1.0


def test_verify_of_a_prompt_whose_answer_is_empty(engine: SemShare, says: Any) -> None:
    engine.remember(DONOR)
    says([EOS_ID])
    assert engine.verify(REWORDED, policy=SEMANTIC).tokens == 1


# ------------------------------------------------------------- every family


@pytest.mark.parametrize("family", FAMILIES)
def test_the_whole_path_in_bfloat16(family: str) -> None:
    """Nothing on the way mixes dtypes; the answer is that of the mixture, whatever it is."""
    engine = SemShare(
        tiny_model(family).bfloat16(),
        tiny_tokenizer(),
        config=EngineConfig(kv_budget_bytes=8 << 20),
    )
    assert engine.dtype == "bfloat16"
    engine.remember(DONOR)
    for selection in ("donor_history", "deviation", "query_attention"):
        used = replace(SEMANTIC, selection=selection)
        answer = engine.generate(REWORDED, max_tokens=3, policy=used)
        assert answer.provenance.fallback is None
        assert answer.provenance.counts["span"] > 50


def test_a_forgotten_donor_is_gone_even_where_a_later_request_extended_it() -> None:
    engine = tiny_engine()
    rng = np.random.default_rng(3)
    prompt, question, other = (rng.integers(4, 260, n).astype(np.int32) for n in (200, 40, 40))
    donor = engine.remember(prompt)
    engine.generate(np.concatenate((prompt, question)), max_tokens=2)
    engine.forget(donor.id)
    plan = engine.plan(np.concatenate((prompt, other)), policy=ReusePolicy(mode="prefix"))
    assert plan.counts["prefix"] == 0
    assert engine.pool.used_bytes == 0
