"""Prompts cut to what their layers retain: the logits of exactly those keys, and the pages."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from prompts import answerable, words
from properties import examples
from running import PAGE, pool_for, random_ids, transformers_logits
from tiny import EOS_ID, FAMILIES, VOCAB_SIZE, tiny_engine, tiny_model
from torch import Tensor

from semshare import Answer, InvalidPolicy, ReusePolicy, SemShare
from semshare.engine.adapter import NO_ROPE, ModelAdapter
from semshare.engine.executor import Executor
from semshare.engine.retain import looking_record, retain
from semshare.engine.rows import rotations
from semshare.errors import PoolExhausted
from semshare.kv import sequence as sequence_module
from semshare.kv.segment import Segment
from semshare.kv.sequence import KVSequence, Layout, lay_out
from semshare.planning.plan import full_plan
from semshare.planning.retention import RECENT, Retention
from semshare.types import Ids
from semshare_kernels import apply_rotary
from semshare_kernels.rotary import rotated

LIMIT = 1e-4  # max abs difference of float32 logits
IDS = random_ids(90, VOCAB_SIZE)
MORE = random_ids(6, VOCAB_SIZE, seed=1)  # come after the prompt
NOTHING = np.empty(0, np.int64)
DONOR_AT, VIEWED = 11, 40  # the prompt's tokens from 11 on are read where the first 40 lie
PROMPT = np.concatenate((IDS[60:71], IDS[:VIEWED], IDS[50:85]))
HALF = Retention(0.5, 0.0, sinks=4)
BY_DEPTH = Retention(0.6, 2.0, sinks=4)

_executors: dict[str, Executor] = {}


def executor_of(family: str) -> Executor:
    """A family's model with a pool of scattered pages; made once."""
    if family not in _executors:
        adapter = ModelAdapter(tiny_model(family))
        _executors[family] = Executor(adapter, pool_for(adapter, 200))
    return _executors[family]


@torch.inference_mode()
def prefilled(executor: Executor, retention: Retention) -> tuple[KVSequence, KVSequence]:
    """A prompt that reads some tokens of a donor with a shift, whole and cut."""
    donor = KVSequence(executor.pool, lay_out(full_plan(IDS)), NOTHING, room=0)
    executor.forward(donor, IDS, np.arange(len(IDS)))
    segments = [
        Segment(run.slot_start, run.positions + DONOR_AT, DONOR_AT)
        for run in donor.segments
        if run.positions[-1] < VIEWED
    ]
    viewed = np.concatenate([NOTHING, *(one.positions for one in segments)])
    own = np.setdiff1d(np.arange(len(PROMPT)), viewed)
    layout = Layout(tuple(segments), own, NOTHING, NOTHING, NOTHING)
    both = []
    for _ in range(2):
        sequence = KVSequence(
            executor.pool, layout, executor.pool.pages_of(donor.own[0]), room=len(MORE)
        )
        record = looking_record(full_plan(PROMPT))
        executor.forward(sequence, PROMPT[own], own, record=record)
        both.append(sequence)
    donor.release()
    cut = retain(executor, both[1], record, retention, room=len(MORE))
    assert cut is not None
    return both[0], cut


@torch.inference_mode()
def dense_logits(executor: Executor, whole: KVSequence, cut: KVSequence, ids: Ids) -> Tensor:
    """Logits `[n, vocab]` of `ids` after a prompt, of which each layer sees what `cut` retains.

    One softmax over gathered keys, with everything hidden that was dropped.
    """
    adapter, pool = executor.adapter, executor.pool
    assert cut.retained is not None
    n = whole.length
    at = torch.arange(n, n + len(ids))
    rope, table = adapter.rope(at), whole.key_table()
    hidden = adapter.embed(torch.from_numpy(ids.astype(np.int64)))
    for layer in range(adapter.n_layers):
        kind, window = adapter.rope_kinds[layer], adapter.windows[layer]
        query, key, value = adapter.attention_inputs(layer, hidden)
        if kind != NO_ROPE:
            query, key = (apply_rotary(part, *rope[kind]) for part in (query, key))
        before = pool.keys[layer][table.slots]
        turn = rotations(adapter, table.shifts).get(kind)
        before = before if turn is None else rotated(before, turn)
        keys = torch.cat((before, key))
        values = torch.cat((pool.values[layer][table.slots], value))
        group = adapter.n_heads // adapter.n_kv_heads
        keys, values = (part.repeat_interleave(group, dim=1) for part in (keys, values))
        distance = at[:, None] - torch.arange(n + len(ids))
        is_kept = torch.zeros(n + len(ids), dtype=torch.bool)
        is_kept[n:] = True
        is_kept[cut.retained.tables[layer].positions] = True
        seen = is_kept & (distance >= 0) & (distance < (window or n + len(ids)))
        scores = torch.einsum("qhd,khd->hqk", query, keys) * adapter.scale
        weights = scores.masked_fill(~seen, -torch.inf).softmax(dim=-1)
        attended = torch.einsum("hqk,khd->qhd", weights, values)
        hidden = adapter.layer_output(layer, hidden, attended)
    return adapter.logits(hidden)


@pytest.mark.parametrize("retention", [HALF, BY_DEPTH], ids=["alike", "by depth"])
@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_a_cut_prompt_has_the_logits_of_exactly_what_each_layer_retains(
    family: str, retention: Retention
) -> None:
    executor = executor_of(family)
    whole, cut = prefilled(executor, retention)
    expected = dense_logits(executor, whole, cut, MORE)
    forks = [cut.fork(room=len(MORE)), cut.fork(room=len(MORE))]
    together = executor.forward(forks[0], MORE, forks[0].append(len(MORE)), all_logits=True).logits
    assert float((together - expected).abs().max()) <= LIMIT
    # A token at a time, beside another answer of the same prompt and one of the whole prompt.
    plain = whole.fork(room=len(MORE))
    for index in range(len(MORE)):
        several = [cut, plain, forks[1]]
        at = np.concatenate([one.append(1) for one in several])
        got = executor.decode(several, np.repeat(MORE[index], 3), at)
        assert float((got[[0, 2]] - expected[index]).abs().max()) <= LIMIT
    undisturbed = whole.fork(room=1)
    alone = executor.forward(undisturbed, MORE, undisturbed.append(len(MORE)))
    assert float((got[1] - alone.logits[0]).abs().max()) <= LIMIT
    assert float((got[1] - got[0]).abs().max()) > LIMIT
    before = executor.pool.free_pages
    for one in (whole, cut, plain, undisturbed, *forks):
        one.release()
    assert executor.pool.free_pages > before


@given(share=st.floats(0.01, 1.0), decay=st.floats(0.0, 8.0))
@examples(25)
def test_a_cut_takes_the_pages_of_what_is_kept_and_gives_the_rest_back(
    share: float, decay: float
) -> None:
    executor = executor_of("llama")
    pool, n_layers = executor.pool, executor.adapter.n_layers
    free = pool.free_pages
    retention = Retention(share, decay, sinks=4)
    budgets = retention.budgets(len(IDS), n_layers)
    with torch.inference_mode():
        sequence = KVSequence(pool, lay_out(full_plan(IDS)), NOTHING, room=100)
        record = looking_record(full_plan(IDS))
        executor.forward(sequence, IDS, np.arange(len(IDS)), record=record)
        cut = retain(executor, sequence, record, retention, room=100)
    if sum(budgets) == len(IDS) * n_layers:
        assert cut is None
        sequence.release()
    else:
        assert cut is not None
        assert cut.retained is not None
        assert [len(table) for table in cut.retained.tables] == list(budgets)
        assert cut.retained.share == sum(budgets) / (len(IDS) * n_layers)
        assert free - pool.free_pages == -(-sum(budgets) // (n_layers * PAGE))
        for table in cut.retained.tables:
            assert set(table.positions) >= {*range(4), *range(len(IDS) - RECENT, len(IDS))}
        cut.release()
    assert pool.free_pages == free


@torch.inference_mode()
def test_without_pages_for_the_cells_nothing_changes() -> None:
    executor = executor_of("llama")
    pool = executor.pool
    free = pool.free_pages
    sequence = KVSequence(pool, lay_out(full_plan(IDS)), NOTHING, room=60)
    record = looking_record(full_plan(IDS))
    executor.forward(sequence, IDS, np.arange(len(IDS)), record=record)
    rest = pool.allocate(pool.free_pages * PAGE)
    spare_pages = 60 // PAGE  # fewer than half of the prompt takes
    with pytest.raises(PoolExhausted):
        retain(executor, sequence, record, Retention(0.9, 0.0, sinks=4), room=60)
    assert pool.free_pages == spare_pages
    more = executor.forward(sequence, MORE, sequence.append(len(MORE)), all_logits=True).logits
    expected = transformers_logits(executor.adapter.hf_model, np.concatenate((IDS, MORE)))
    assert float((more - expected[len(IDS) :]).abs().max()) <= LIMIT
    pool.release(rest)
    sequence.release()
    assert pool.free_pages == free


# ------------------------------------------------------------------ whole engine

STEM = words(300, 1)
KEEP_HALF = ReusePolicy(retention=0.5)
BYTES_PER_SLOT = tiny_engine().pool.bytes_per_slot


def test_an_answer_tells_what_was_retained_and_leaves_exact_kv_only() -> None:
    engine = tiny_engine(page_size=8)
    answer = engine.generate(answerable(STEM), max_tokens=12, policy=KEEP_HALF)
    assert answer.provenance.retained == 0.5
    assert not answer.provenance.exact
    assert answer.provenance.counts["fresh"] == answer.prompt_tokens
    # What stays is the prompt's prefix as it was before the cut, without the answer.
    page_bytes = 8 * engine.pool.bytes_per_slot
    assert engine.stats()["pool_bytes"] == answer.prompt_tokens // 8 * page_bytes
    more = [*engine.encode(answerable(STEM)).tolist(), *answer.token_ids]
    off = engine.score(more, "xyz", policy=ReusePolicy(mode="off"))
    hit = engine.score(more, "xyz", policy=ReusePolicy(mode="prefix"))
    assert hit.provenance.counts["prefix"] == answer.prompt_tokens // 8 * 8
    assert float((hit.logits - off.logits).abs().max()) <= LIMIT


@pytest.mark.parametrize("mode", ["off", "semantic"])
def test_the_first_token_is_that_of_the_whole_prompt(mode: str) -> None:
    engine = tiny_engine()
    prompt = answerable(STEM)
    whole = engine.score(prompt, "ab", policy=ReusePolicy(mode="off"))
    policy = ReusePolicy.from_mapping({"mode": mode, "retention": 0.3})
    cut = engine.score(prompt, "ab", policy=policy)
    assert cut.provenance.retained < 1.0
    assert float((cut.logits[0] - whole.logits[0]).abs().max()) <= LIMIT
    assert float((cut.logits[1] - whole.logits[1]).abs().max()) > LIMIT


def used_while_answering(engine: SemShare, policy: ReusePolicy) -> float:
    stream = engine.stream(answerable(STEM), max_tokens=4, policy=policy)
    next(stream)
    used = engine.stats()["pool_bytes"]
    stream.close()
    return used


def test_answers_of_one_prompt_share_its_cells() -> None:
    engine = tiny_engine(page_size=8)
    policy = ReusePolicy(mode="off", retention=0.5)
    one = engine.generate(answerable(STEM), max_tokens=8, policy=policy)
    several = engine.generate(answerable(STEM), max_tokens=8, policy=policy, n=3, temperature=0.0)
    assert [choice.token_ids for choice in several.choices] == [one.token_ids] * 3
    assert engine.stats()["pool_bytes"] == 0


def test_half_of_the_prompt_takes_half_of_the_pages() -> None:
    engine = tiny_engine(page_size=8)
    whole = used_while_answering(engine, ReusePolicy(mode="off"))
    half = used_while_answering(engine, ReusePolicy(mode="off", retention=0.5))
    page_bytes = 8 * engine.pool.bytes_per_slot
    assert whole == 41 * page_bytes  # 324 tokens of the prompt and four of the answer
    assert half == (21 + 1) * page_bytes  # cells of 162 slots, and a page for the answer
    assert engine.stats()["pool_bytes"] == 0


def test_preempted_prompts_are_cut_again(monkeypatch: pytest.MonkeyPatch) -> None:
    # Two prompts of 22 pages and the 20 that one of them keeps fit into 66, and the 40 that both
    # keep, but not with answers of 19 pages each.
    monkeypatch.setattr(sequence_module, "ROOM_TOKENS", 8)
    policy = ReusePolicy(mode="off", retention=0.9)

    def answers(pages: int) -> tuple[list[Answer], SemShare]:
        engine = tiny_engine(page_size=8, kv_budget_bytes=pages * 8 * BYTES_PER_SLOT)
        prompts = [answerable(words(150, seed)) for seed in (1, 2)]
        streams = [
            engine.stream(prompt, max_tokens=150, policy=policy, logit_bias={EOS_ID: -100.0})
            for prompt in prompts
        ]
        done: list[Answer | None] = [None, None]
        while None in done:  # in turns, a piece of each
            for index, stream in enumerate(streams):
                delta = next(stream, None)
                if delta is not None and delta.answer is not None:
                    done[index] = delta.answer
        return [answer for answer in done if answer is not None], engine

    roomy, _ = answers(400)
    tight, engine = answers(66)
    assert engine._session.scheduler.preemptions > 0
    for one, other in zip(roomy, tight, strict=True):
        assert one.token_ids == other.token_ids
        assert one.provenance.retained == other.provenance.retained < 1.0
    assert engine.stats()["pool_bytes"] == 0


def test_a_cut_prompt_that_is_remembered_waits_to_be_computed_in_full() -> None:
    engine = tiny_engine()
    policy = ReusePolicy(remember=True, retention=0.5)
    assert engine.generate(STEM, max_tokens=4, policy=policy).remembered == "pending"
    (donor,) = engine.complete_pending()
    again = engine.generate(STEM, max_tokens=4, policy=policy)
    assert again.remembered == "done"
    assert again.donor is not None
    assert again.donor.id == donor.id


def test_a_prompt_is_not_cut_where_the_cells_have_no_pages() -> None:
    engine = tiny_engine(page_size=8, kv_budget_bytes=22 * 8 * BYTES_PER_SLOT)
    prompt = words(150, 3)  # 19 pages, of 22
    answer = engine.generate(prompt, max_tokens=8, policy=ReusePolicy(mode="off", retention=0.5))
    assert answer.provenance.retained == 1.0
    assert answer.provenance.exact
    assert engine.stats()["retention_skipped"] == 1


def test_a_short_prompt_is_kept_whole() -> None:
    engine = tiny_engine()
    answer = engine.generate(words(30, 1), max_tokens=2, policy=KEEP_HALF)
    assert answer.provenance.retained == 1.0
    assert answer.provenance.exact


def test_the_divergence_of_a_cut_does_not_step_reuse_down() -> None:
    engine = tiny_engine()
    engine.remember(STEM)
    prompt = answerable(words(40, 8) + STEM)
    policy = ReusePolicy(mode="span", max_divergence=1e-9)
    assert engine.verify(prompt, policy=ReusePolicy(mode="span", retention=0.3)).kl > 1e-9
    assert engine.generate(prompt, max_tokens=1, policy=policy).provenance.mode == "span"


@pytest.mark.parametrize("value", [0, 0.0, -0.1, 1.1, float("nan"), True, "0.5"])
def test_a_share_that_keeps_nothing_or_more_than_all_is_refused(value: object) -> None:
    with pytest.raises(InvalidPolicy, match=r"retention"):
        ReusePolicy.from_mapping({"retention": value})


@pytest.mark.parametrize("repair", ["idle", "eager"])
def test_a_cut_prompt_is_not_repaired(repair: str) -> None:
    with pytest.raises(InvalidPolicy, match=r"set repair to off or retention to 1"):
        ReusePolicy.from_mapping({"retention": 0.9, "repair": repair})
