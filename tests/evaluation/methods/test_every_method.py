"""What holds of every method: donors stay as they are, and the outcome says what was done."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from method_cases import (
    EXAMPLE,
    LIMIT,
    NAMESPACE,
    TASK,
    chat,
    difference,
    donor_keys,
    engine_for,
    kept_by,
    run,
)
from prompts import words
from tiny import VOCAB_SIZE, tiny_engine

from semshare import InvalidRequest, PromptTooLong, SemShare
from semshare.evaluation.methods.registry import METHODS, method_named

COMPRESSORS = {"snapkv", "pyramidkv", "h2o"}
OTHER_PROMPTS = {"donor_text": EXAMPLE.donor_text, "no_context": EXAMPLE.no_context}
CUT = {*COMPRESSORS, "semsharekv"}


@pytest.fixture(scope="module")
def engine() -> SemShare:
    return engine_for()


@pytest.mark.parametrize("name", METHODS)
def test_a_run_leaves_nothing_and_the_next_one_finds_the_same(engine: SemShare, name: str) -> None:
    before, keys = kept_by(engine), donor_keys(engine)
    first = run(engine, name)
    assert kept_by(engine) == before
    assert torch.equal(donor_keys(engine), keys)
    second = run(engine, name)
    assert difference(first, second) <= LIMIT
    assert first.token_ids == second.token_ids
    assert first.provenance.compute_fraction == second.provenance.compute_fraction
    assert (first.kv_bytes, first.own_kv_bytes) == (second.kv_bytes, second.own_kv_bytes)


@pytest.mark.parametrize("name", METHODS)
def test_the_outcome_says_what_was_done(engine: SemShare, name: str) -> None:
    outcome = run(engine, name)
    assert outcome.logits.shape == (len(TASK.continuation), VOCAB_SIZE)
    assert bool(torch.isfinite(outcome.logits).all())
    assert len(outcome.token_ids) <= TASK.max_tokens
    assert engine.session.encoder.decode(outcome.token_ids) == outcome.text
    assert outcome.provenance.fallback is None
    n = len(engine.encode(OTHER_PROMPTS.get(name) or EXAMPLE.target))
    assert len(outcome.provenance.source) == n
    assert outcome.own_kv_bytes <= outcome.kv_bytes
    slot = engine.pool.bytes_per_slot
    assert outcome.kv_bytes == pytest.approx(outcome.provenance.retained * n * slot, abs=slot / 2)
    assert (outcome.provenance.retained < 1) == (name in CUT)
    assert outcome.provenance.exact == (name in {"full", "rerun", "prefix", *OTHER_PROMPTS})
    timings = outcome.timings
    parts = timings.lookup_s + timings.plan_s + timings.load_s + timings.prefill_s
    assert 0 < parts <= timings.ttft_s
    assert timings.prefill_s > 0


@pytest.mark.parametrize("name", [name for name in METHODS if name not in {*CUT, *OTHER_PROMPTS}])
def test_where_there_is_no_donor_every_method_is_full_prefill(name: str) -> None:
    engine = tiny_engine()
    full, outcome = run(engine, "full"), run(engine, name)
    assert difference(full, outcome) <= LIMIT
    assert outcome.token_ids == full.token_ids
    if name != "rerun":
        assert outcome.provenance.compute_fraction == 1.0
    assert engine.library.names == []


@pytest.mark.parametrize("name", METHODS)
def test_a_prompt_that_does_not_fit_is_refused(name: str) -> None:
    engine = tiny_engine()
    long = chat(words(engine.max_context, 1))
    example = replace(EXAMPLE, target=long, donor_text=long, no_context=long)
    with pytest.raises(PromptTooLong):
        run(engine, name, example)
    assert engine.stats()["pool_bytes"] == 0


def test_only_controls_ask_for_more_than_a_target() -> None:
    bare = replace(EXAMPLE, donor_text=None, no_context=None)
    applying = [name for name, method in METHODS.items() if method.applies(bare)]
    assert set(METHODS) - set(applying) == set(OTHER_PROMPTS)
    assert all(method.applies(EXAMPLE) for method in METHODS.values())


@pytest.mark.parametrize("name", OTHER_PROMPTS)
def test_a_control_without_its_prompt_says_so(engine: SemShare, name: str) -> None:
    bare = replace(EXAMPLE, donor_text=None, no_context=None)
    with pytest.raises(InvalidRequest, match=f"'one' has no prompt for the method '{name}'"):
        run(engine, name, bare)


def test_controls_read_another_prompt_in_full(engine: SemShare) -> None:
    for name, prompt in OTHER_PROMPTS.items():
        assert prompt is not None
        expected = run(engine, "full", replace(EXAMPLE, target=prompt))
        assert torch.equal(run(engine, name).logits, expected.logits)


def test_a_name_that_is_no_method_names_those_that_are() -> None:
    assert method_named("semshare").name == "semshare"
    with pytest.raises(InvalidRequest, match="'snapkw': choose one of full, rerun, prefix"):
        method_named("snapkw")


def test_names_and_descriptions_are_fit_for_tables() -> None:
    for name, method in METHODS.items():
        assert method.name == name
        assert 0 < len(method.about) <= 130
        assert "\n" not in method.about


def test_rerun_computes_the_last_rows_alone_and_drops_its_namespace(engine: SemShare) -> None:
    names = engine.library.names
    full, rerun = run(engine, "full"), run(engine, "rerun")
    fresh = rerun.provenance.counts["fresh"]
    n = len(rerun.provenance.source)
    assert fresh == (n - 1) % engine.pool.page_size + 1
    assert rerun.provenance.counts["prefix"] == n - fresh
    assert rerun.provenance.compute_fraction == fresh / n
    assert difference(full, rerun) <= LIMIT
    assert engine.library.names == names == [NAMESPACE]
