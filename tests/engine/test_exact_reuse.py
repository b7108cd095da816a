"""Prefix reuse is lossless, and what is kept as exact is exact, whatever happened before."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test
from invariants import LIMIT, assert_all_that_is_kept_is_exact
from prompts import answerable, reworded, words
from properties import examples
from tiny import FAMILIES, tiny_engine

from semshare import ReusePolicy
from semshare.config import REUSE_MODES, SELECTION_NAMES

OFF = ReusePolicy(mode="off")
PREFIX = ReusePolicy(mode="prefix")
STEM = words(150, 1)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prefix_hit_has_the_logits_of_a_full_prefill(family: str) -> None:
    engine = tiny_engine(family, page_size=8)
    engine.remember(STEM + words(30, 2))
    prompt, continuation = answerable(STEM), words(10, 3)
    score = engine.score(prompt, continuation, policy=PREFIX)
    assert score.provenance.exact
    assert score.provenance.counts["prefix"] == len(STEM) // 8 * 8
    expected = engine.score(prompt, continuation, policy=OFF)
    assert expected.provenance.counts["prefix"] == 0
    assert float((score.logits - expected.logits).abs().max()) <= LIMIT
    assert float((score.logprobs - expected.logprobs).abs().max()) <= LIMIT


def test_the_same_prompt_again_computes_less_than_a_page() -> None:
    engine = tiny_engine(page_size=8)
    for n in (64, 65, 71):  # ends with a page, begins one, fills one but for a token
        prompt = words(n, n)
        engine.score(prompt, "x")
        again = engine.score(prompt, "x").provenance
        assert again.counts["prefix"] == (n - 1) // 8 * 8
        assert again.compute_fraction == (n - (n - 1) // 8 * 8) / n


def test_answers_extend_the_cached_prefix() -> None:
    engine = tiny_engine(page_size=4)
    prompt = words(40, 4)
    answer = engine.generate(prompt, max_tokens=30)
    turn_two = [
        *engine.encode(prompt).tolist(),
        *answer.token_ids,
        *engine.encode(words(9, 5)).tolist(),
    ]
    score = engine.score(turn_two, "x")
    # A last token has no KV unless the end token was picked from its logits.
    computed = 40 + len(answer.token_ids) - (answer.finish_reason == "length")
    assert score.provenance.counts["prefix"] == computed // 4 * 4
    expected = engine.score(turn_two, "x", policy=OFF)
    assert float((score.logits - expected.logits).abs().max()) <= LIMIT


def test_mode_off_neither_reads_nor_writes() -> None:
    engine = tiny_engine()
    engine.generate(STEM, max_tokens=4, policy=OFF)
    assert engine.score(STEM, "x", policy=PREFIX).provenance.counts["prefix"] == 0
    assert engine.score(STEM, "x", policy=OFF).provenance.counts["prefix"] == 0
    assert engine.score(STEM, "x", policy=PREFIX).provenance.counts["prefix"] > 0


policies = st.builds(
    ReusePolicy,
    mode=st.sampled_from(REUSE_MODES),
    recompute=st.sampled_from([0.0, 0.2, 1.0]),
    selection=st.sampled_from(SELECTION_NAMES),
    only_unmatched=st.booleans(),
    min_similarity=st.just(0.0),
    min_span=st.sampled_from([8, 16]),
    sink_tokens=st.sampled_from([0, 4]),
    tail_tokens=st.sampled_from([1, 8, 24]),
    head_tokens=st.sampled_from([0, 32]),
    fact_guard=st.booleans(),
    remember=st.booleans(),
)
# Stems, moved text and rewordings of a few texts, so that all kinds of hits happen.
TEXTS = [
    text
    for seed in range(3)
    for base in [words(60, seed)]
    for text in (
        base,
        base + words(20, 10),
        words(9, 11) + base,
        reworded(base, 12),
        answerable(base),
    )
]


class KeepingMachine(RuleBasedStateMachine):
    """Requests of every kind; at the end all that is cached must be exact and accounted for."""

    @initialize(
        family=st.sampled_from(["llama", "qwen2-window", "gemma3", "smollm3-nope"]),
        pages=st.sampled_from([16, 4_000]),  # 16 hold one request: what was kept has to go
    )
    def start(self, family: str, pages: int) -> None:
        self.is_small = pages == 16
        budget = pages * 8 * 1024  # a slot takes 1,024 bytes
        self.engine = tiny_engine(family, page_size=8, history_tokens=3, kv_budget_bytes=budget)
        assert self.engine.pool.n_pages == pages

    @rule(text=st.sampled_from(TEXTS), namespace=st.sampled_from("ab"))
    def remember(self, text: str, namespace: str) -> None:
        self.engine.remember(text, namespace=namespace)

    @rule(text=st.sampled_from(TEXTS), used=policies, namespace=st.sampled_from("ab"))
    def generate(self, text: str, used: ReusePolicy, namespace: str) -> None:
        answer = self.engine.generate(text, policy=used, namespace=namespace, max_tokens=5)
        assert answer.provenance.fallback is None or self.is_small
        approximate = used.remember and not answer.provenance.exact
        assert (answer.remembered == "pending") == approximate

    @rule(text=st.sampled_from(TEXTS), used=policies, namespace=st.sampled_from("ab"))
    def score(self, text: str, used: ReusePolicy, namespace: str) -> None:
        score = self.engine.score(text, "again", policy=used, namespace=namespace)
        if score.provenance.exact:
            expected = self.engine.score(text, "again", policy=OFF)
            assert float((score.logits - expected.logits).abs().max()) <= LIMIT

    @rule(text=st.sampled_from(TEXTS), used=policies)
    def give_up_midway(self, text: str, used: ReusePolicy) -> None:
        stream = self.engine.stream(text, policy=used, namespace="a", max_tokens=5)
        next(stream)
        stream.close()

    @rule(data=st.data(), namespace=st.sampled_from("ab"))
    def forget(self, data: st.DataObject, namespace: str) -> None:
        if infos := self.engine.donors(namespace=namespace):
            self.engine.forget(data.draw(st.sampled_from(infos)).id, namespace=namespace)

    @rule()
    def complete_pending(self) -> None:
        self.engine.complete_pending()
        assert self.engine.stats()["pending"] == 0

    def teardown(self) -> None:
        if hasattr(self, "engine"):
            assert_all_that_is_kept_is_exact(self.engine)
            self.engine.forget_all()
            assert self.engine.pool.used_bytes == 0


def test_nothing_approximate_is_ever_kept() -> None:
    settings = examples(12)
    run_state_machine_as_test(KeepingMachine, settings=settings)


@pytest.mark.parametrize("selection", SELECTION_NAMES)
def test_an_approximate_answer_leaves_no_prefix_behind(selection: str) -> None:
    engine = tiny_engine(page_size=8)
    engine.remember(words(20, 20) + STEM)
    prompt = answerable(reworded(STEM, 21))
    used = ReusePolicy(selection=selection, min_similarity=0.0, remember=True)

    def cached() -> int:
        return engine.plan(prompt, policy=PREFIX).counts["prefix"]

    before = cached()
    for call in (engine.generate, lambda p, **kw: engine.score(p, "abc", **kw)):
        result: Any = call(prompt, policy=used)
        assert not result.provenance.exact
        assert cached() == before == 0
    assert engine.donors()[0].tokens == len(STEM) + 20
    assert len(engine.donors()) == 1
