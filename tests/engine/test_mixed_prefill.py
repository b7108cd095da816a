"""Mixed prefill: against a dense definition of it, and the work it really skips."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from prompts import answerable, reworded, words
from tiny import FAMILIES, tiny_engine

from semshare import ReusePolicy, SemShare, TokenSource
from semshare.config import SELECTION_NAMES
from semshare.engine.adapter import NO_ROPE
from semshare.engine.first_look import query_attention
from semshare.engine.prefill import Prefill
from semshare.engine.stopwatch import Stopwatch
from semshare.kv import sequence
from semshare.kv.sequence import lay_out
from semshare.planning.deviation import keep_most_deviating
from semshare.types import ReusePlan
from semshare_kernels import apply_rotary
from semshare_kernels.mixed import reference
from semshare_kernels.rotary import rotated

LIMIT = 1e-4  # max abs difference of float32 logits
OFF = ReusePolicy(mode="off")

# Three donors: two papers and one that is only similar to the target's last part.
PAPER_A, PAPER_B, PAPER_C = words(170, 1), words(150, 2), words(140, 3)
TARGET = answerable(
    words(30, 4) + PAPER_B + words(20, 5) + PAPER_A + reworded(PAPER_C, 6, share=0.2)
)

UNRELATED = words(160, 7).upper()  # no letter in common

_engines: dict[str, SemShare] = {}


def with_papers(engine: SemShare) -> SemShare:
    """`engine`, which remembers the three papers now, each after another beginning."""
    for seed, paper in enumerate((PAPER_A, PAPER_B, PAPER_C)):
        engine.remember(words(15 + 7 * seed, 50 + seed) + paper + words(11, 60 + seed))
    return engine


def engine_of(family: str) -> SemShare:
    """An engine with the papers, made once: approximate answers leave nothing behind."""
    if family not in _engines:
        _engines[family] = with_papers(tiny_engine(family))
    return _engines[family]


def policy(**changes: Any) -> ReusePolicy:
    return ReusePolicy(**({"min_similarity": 0.0, "recompute": 0.3} | changes))


@torch.inference_mode()
def logits_by_definition(engine: SemShare, plan: ReusePlan) -> torch.Tensor:
    """`[vocab]` of the last token: one dense attention over keys that were all moved."""
    model, pool = engine.model, engine.pool
    n = len(plan.ids)
    reused = np.flatnonzero(plan.source != TokenSource.FRESH)
    slots = torch.from_numpy(plan.slots[reused])
    rotation = model.shift_rotation(torch.from_numpy(reused - plan.position[reused]))
    rows = torch.from_numpy(plan.rows_to_run)
    hidden = model.embed(torch.from_numpy(plan.ids.astype(np.int64))[rows])
    for index, kind in enumerate(model.rope_kinds):
        query, key, value = model.attention_inputs(index, hidden)
        stored = pool.keys[index][slots]
        if kind != NO_ROPE:
            cos_sin = model.rope(rows)[kind]
            query, key = (apply_rotary(x, *cos_sin) for x in (query, key))
            stored = rotated(stored, rotation[kind])
        keys, values = (torch.zeros(n, *key.shape[1:]) for _ in range(2))
        keys[reused], values[reused] = stored, pool.values[index][slots]
        if plan.deviation is not None:
            kept = keep_most_deviating(
                plan.deviation, index, rows.numpy(), key, value, keys[rows], values[rows]
            )
            if kept is not None:
                rows, hidden, query, key, value = (
                    x[kept] for x in (rows, hidden, query, key, value)
                )
        keys[rows], values[rows] = key, value
        seen = reference.visible(rows, torch.arange(n), model.windows[index])
        attended, _ = reference.attend(query, keys, values, seen, model.scale)
        hidden = model.layer_output(index, hidden, attended)
    return model.logits(hidden[-1:])[0]


@torch.inference_mode()
def attention_by_definition(engine: SemShare, plan: ReusePlan, first: int) -> np.ndarray:
    """`[n]` attention that the rows from position `first` on pay, over all layers and heads."""
    total = torch.zeros(len(plan.ids))

    def attend(query: Any, key: Any, value: Any, mask: Any, scale: float) -> Any:
        out, lse = original(query, key, value, mask, scale)
        k = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
        weights = (torch.einsum("qhd,khd->qhk", query, k) * scale - lse[..., None]).exp()
        rows = torch.from_numpy(plan.rows_to_run >= first)
        total.add_((weights * mask[:, None])[rows].sum(dim=(0, 1)))
        return out, lse

    original = reference.attend
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reference, "attend", attend)
        logits_by_definition(engine, plan)
    return total.numpy()


@pytest.mark.parametrize("family", ["llama", "gemma3", "smollm3-nope"])
def test_the_questions_attention_equals_its_definition(family: str) -> None:
    engine = engine_of(family)
    used = policy(selection="query_attention", tail_tokens=24)
    draft = engine._session.draft(engine.encode(TARGET), used, "default", Stopwatch())
    plan = engine._session.planner.question_plan(draft)
    assert any(view.shift for view in lay_out(plan).views)
    with torch.inference_mode():
        session = engine.session
        found, _ = query_attention(session.executor, session.planner, draft, Stopwatch())
    expected = attention_by_definition(engine, plan, len(TARGET) - 24)
    assert expected.sum() == pytest.approx(24 * engine.model.n_heads * engine.model.n_layers)
    np.testing.assert_allclose(found, expected, atol=1e-3)


@pytest.mark.parametrize("min_view", [1, 16, 128, 10_000])
@pytest.mark.parametrize("family", FAMILIES)
def test_mixed_prefill_equals_its_definition(
    family: str, min_view: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Views in place, with rotated queries, and copies, with moved keys, mean the same."""
    monkeypatch.setattr(sequence, "MIN_VIEW_TOKENS", min_view)
    engine = engine_of(family)
    plan = engine.plan(TARGET, policy=policy())
    assert plan.counts["span"] > 300
    assert plan.counts["fuzzy"] > 5
    score = engine.score(TARGET, [5], policy=policy())
    np.testing.assert_array_equal(score.provenance.source, plan.source)
    expected = logits_by_definition(engine, plan)
    assert float((score.logits[0] - expected).abs().max()) <= LIMIT


@pytest.fixture
def count_rows(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Returns a function that lists the rows that leave each layer from now on."""

    def watch(engine: SemShare) -> list[int]:
        rows: list[int] = []
        original = engine.model.layer_output

        def counting(*arguments: Any) -> Any:
            hidden = original(*arguments)
            rows.append(len(hidden))
            return hidden

        monkeypatch.setattr(engine.model, "layer_output", counting)
        return rows

    return watch


@pytest.mark.parametrize("only_unmatched", [True, False])
@pytest.mark.parametrize("selection", SELECTION_NAMES)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_selection_skips_the_work_it_says_in_every_family(
    family: str, selection: str, only_unmatched: bool, count_rows: Any
) -> None:
    engine = engine_of(family)
    used = policy(selection=selection, only_unmatched=only_unmatched)
    rows = count_rows(engine)
    score = engine.score(TARGET, [5], policy=used)  # one token: nothing but the prefill runs
    provenance = score.provenance
    assert provenance.fallback is None
    assert not provenance.exact
    n, layers = len(provenance.source), engine.model.n_layers
    assert provenance.compute_fraction == sum(rows) / (n * layers)
    assert provenance.compute_fraction < 0.75
    assert len(provenance.donors) == 3
    assert bool(torch.isfinite(score.logits).all())
    fresh = provenance.counts["fresh"]
    if selection == "deviation":
        assert rows[0] > rows[1] >= rows[2] >= rows[3] > fresh
    elif selection == "query_attention":
        assert len(rows) == 2 * layers
        assert rows[layers:] == [fresh] * layers
        assert rows[0] <= fresh
    else:
        assert rows == [fresh] * layers


@pytest.mark.parametrize(
    ("prompt", "changes"),
    [
        (UNRELATED, {}),
        (TARGET, {"mode": "prefix"}),
        (TARGET, {"mode": "span"}),  # and only what is unmatched may be chosen
        (TARGET, {"recompute": 0.0}),
    ],
)
def test_query_attention_takes_no_first_look_where_nothing_can_be_chosen(
    prompt: str, changes: dict[str, Any], count_rows: Any
) -> None:
    engine = with_papers(tiny_engine())
    rows = count_rows(engine)
    provenance = engine.score(
        prompt, [5], policy=policy(selection="query_attention", **changes)
    ).provenance
    assert rows == [provenance.counts["fresh"]] * engine.model.n_layers
    assert provenance.compute_fraction == rows[0] / len(provenance.source)


def test_an_unrelated_prompt_is_computed_once_and_exactly(count_rows: Any) -> None:
    engine = with_papers(tiny_engine())
    expected = engine.score(UNRELATED, [5], policy=OFF)
    rows = count_rows(engine)
    score = engine.score(UNRELATED, [5])
    assert rows == [len(UNRELATED)] * engine.model.n_layers
    assert score.provenance.exact
    assert score.provenance.compute_fraction == 1.0
    assert torch.equal(score.logits, expected.logits)


def test_recomputing_all_that_may_be_chosen_is_exact() -> None:
    engine = with_papers(tiny_engine("qwen3"))
    used = policy(recompute=1.0, selection="random", only_unmatched=False)
    score = engine.score(TARGET, [5], policy=used)
    expected = engine.score(TARGET, [5], policy=OFF)
    assert score.provenance.counts["fresh"] == len(score.provenance.source)
    assert float((score.logits - expected.logits).abs().max()) <= LIMIT


@pytest.mark.parametrize("only_unmatched", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_deviation_equals_its_definition(family: str, only_unmatched: bool) -> None:
    """A row that is dropped keeps its reused KV from that layer on, and its computed KV before."""
    engine = engine_of(family)
    used = policy(selection="deviation", only_unmatched=only_unmatched)
    plan = engine.plan(TARGET, policy=used)
    assert plan.deviation is not None
    score = engine.score(TARGET, [5], policy=used)
    assert float((score.logits[0] - logits_by_definition(engine, plan)).abs().max()) <= LIMIT


@torch.inference_mode()
def test_deviation_that_keeps_everything_is_exact() -> None:
    engine = engine_of("gemma3")
    plan = engine.plan(TARGET, policy=policy(selection="deviation", only_unmatched=False))
    assert plan.deviation is not None
    everything = len(plan.deviation.candidates)
    schedule = replace(plan.deviation, keep=(everything,) * engine.model.n_layers)
    watch = Stopwatch()
    run = Prefill(engine._session.executor, replace(plan, deviation=schedule), watch, room=0)
    run.run(watch)
    run.sequence.release()
    assert run.logits is not None
    assert run.rows_computed == len(plan.ids) * engine.model.n_layers
    expected = engine.score(TARGET, [5], policy=OFF).logits
    assert float((run.logits - expected).abs().max()) <= LIMIT


@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_context_served_as_a_span_is_exact(family: str) -> None:
    """With pages too large for a prefix hit, an identical prompt is one span at shift 0."""
    engine = tiny_engine(family, page_size=512)
    context = words(200, 8)
    engine.remember(context + words(5, 9))
    prompt = answerable(context, 1)
    used = ReusePolicy(mode="span", fact_guard=False, head_tokens=0)
    score = engine.score(prompt, words(6, 10), policy=used)
    assert score.provenance.counts == {"fresh": 28, "prefix": 0, "span": 196, "fuzzy": 0}
    assert not score.provenance.exact  # it can't know
    expected = engine.score(prompt, words(6, 10), policy=OFF)
    assert float((score.logits - expected.logits).abs().max()) <= LIMIT


def test_a_shifted_span_comes_from_each_of_several_donors() -> None:
    engine = engine_of("llama")
    provenance = engine.score(TARGET, [5], policy=policy(mode="span")).provenance
    assert provenance.mode == "span"
    names = [provenance.donors[i] for i in (provenance.donor[100], provenance.donor[300])]
    by_tokens = {info.id: info.tokens for info in engine.donors()}
    assert [by_tokens[name] for name in names] == [22 + 150 + 11, 15 + 170 + 11]
    at = provenance.donor_position
    assert at[100] == 22 + (100 - 30)
    assert at[300] == 15 + (300 - 30 - 150 - 20)
