"""A forced answer goes through the scheduler's own steps, and repair is measured on it."""

from __future__ import annotations

import json

import pytest
import torch
from documented import undocumented
from tiny import EOS_ID, tiny_engine

from semshare import BenchmarkRefused, InvalidRequest, PromptTooLong, ReusePolicy
from semshare.evaluation import bench_repair
from semshare.evaluation.bench_repair import BINS, run_repair
from semshare.evaluation.forced import answer_alone, decode_forced, without_end
from semshare.evaluation.measure import FULL

PROMPT = "A text of which a tiny random model makes what it makes. " * 6
GIVEN = [7, 200, 31, 100, 99, 8, 8, 250]


def test_logits_are_those_that_score_gives() -> None:
    engine = tiny_engine()
    forced = decode_forced(engine, PROMPT, tokens=GIVEN, n=len(GIVEN), policy=FULL)
    scored = engine.score(PROMPT, GIVEN, policy=FULL)
    assert forced.tokens == GIVEN
    assert float((forced.logits - scored.logits).abs().max()) < 1e-4
    assert len(forced.seconds) == len(GIVEN)
    assert all(seconds > 0 for seconds in forced.seconds)
    assert engine.stats()["pool_bytes"] == 0


def test_without_given_tokens_the_answer_is_greedy_and_does_not_end() -> None:
    engine = tiny_engine()
    assert EOS_ID in without_end(engine)
    forced = decode_forced(engine, PROMPT, tokens=None, n=40, policy=FULL)
    likeliest = forced.logits.clone()
    likeliest[:, list(without_end(engine))] = -torch.inf
    assert forced.tokens == likeliest.argmax(dim=-1).tolist()
    assert len(forced.tokens) == 40


def test_an_answer_that_does_not_fit_is_refused() -> None:
    engine = tiny_engine()
    n = engine.max_context
    with pytest.raises(PromptTooLong):
        decode_forced(engine, PROMPT, tokens=None, n=n, policy=FULL)
    with pytest.raises(PromptTooLong):
        answer_alone(engine, PROMPT, max_tokens=n, policy=FULL, namespace="default")


def test_an_answer_alone_is_that_of_generate_and_no_later_prompt_finds_it() -> None:
    engine, exact = tiny_engine(), ReusePolicy(mode="prefix")
    alone = answer_alone(engine, PROMPT, max_tokens=12, policy=exact, namespace="default")
    decode_forced(engine, PROMPT, tokens=GIVEN, n=8, policy=exact, leaves_nothing=True)
    assert engine.stats()["pool_bytes"] == 0
    generated = engine.generate(PROMPT, max_tokens=12, policy=exact)
    assert generated.provenance.counts["prefix"] == 0
    assert (alone.token_ids, alone.text) == (generated.token_ids, generated.text)
    assert alone.timings.ttft_s > 0
    assert engine.stats()["pool_bytes"] > 0


def test_repair_leaves_nothing_but_rounding_from_where_the_record_says() -> None:
    record = run_repair(
        tokens=3600,
        limit=1,
        repeats=1,
        answer_tokens=64,
        progress=False,
        engine=tiny_engine(repair_rows=256),
    )
    assert undocumented(record) == []
    assert json.loads(json.dumps(record)) == record
    # Everything but the exact prefix is computed again, 256 rows a step.
    assert record["repair_steps"] == -(-record["tokens"] // 256)
    by_position, mixed = (
        record[name] for name in ("kl_by_answer_position", "kl_by_answer_position_unrepaired")
    )
    assert len(by_position) == len(mixed) == BINS
    exact_bins = BINS - (record["repair_steps"] + 1) * BINS // 64 - 1
    assert max(by_position[-exact_bins:]) < 1e-6 < min(mixed)
    assert record["kl_second_half"] < 1e-6 < record["kl_second_half_unrepaired"]
    assert record["kl_first_half"] == pytest.approx(sum(by_position[:4]) / 4, abs=1e-6)


def test_a_repair_that_takes_longer_than_the_answer_is_refused() -> None:
    with pytest.raises(BenchmarkRefused, match=r"not repaired within 8 tokens .* No speed"):
        run_repair(
            tokens=3600,
            limit=1,
            repeats=1,
            answer_tokens=8,
            progress=False,
            engine=tiny_engine(),
        )


def test_without_a_usable_donor_there_is_nothing_to_measure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bench_repair, "REPAIRED", ReusePolicy(mode="prefix", repair="eager"))
    with pytest.raises(BenchmarkRefused, match=r"nothing to repair, .* No speed is reported"):
        run_repair(
            tokens=3600,
            limit=1,
            repeats=1,
            answer_tokens=8,
            progress=False,
            engine=tiny_engine(),
        )


def test_kl_after_repair_beyond_rounding_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(bench_repair.ROUNDING_KL, torch.float32, -1.0)
    with pytest.raises(BenchmarkRefused, match=r"after its repair KL is .* No speed"):
        run_repair(
            tokens=3600,
            limit=1,
            repeats=1,
            answer_tokens=64,
            progress=False,
            engine=tiny_engine(repair_rows=256),
        )


@pytest.mark.parametrize(
    ("argument", "least"), [("limit", 1), ("repeats", 1), ("answer_tokens", 8)]
)
def test_nothing_to_measure_is_refused(argument: str, least: int) -> None:
    with pytest.raises(InvalidRequest, match=f"{argument} is {least - 1}: .* at least {least}"):
        run_repair(**{argument: least - 1})
