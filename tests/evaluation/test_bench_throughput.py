"""Each part of the throughput benchmark: what it compares, and when it reports no speed."""

from __future__ import annotations

import json

import numpy as np
import pytest
from documented import undocumented
from tiny import VOCAB_SIZE, tiny_engine

from semshare import BenchmarkRefused, InvalidRequest, SemShare
from semshare.evaluation import throughput_batches, throughput_decode, throughput_semantic
from semshare.evaluation.bench_throughput import PARTS, run_throughput
from semshare.evaluation.throughput_batches import (
    EXACT,
    answer_together,
    generate_batch,
    measure_batches,
)
from semshare.evaluation.throughput_decode import measure_decode, step_flops
from semshare.evaluation.throughput_semantic import measure_semantic, rewritten_examples
from semshare.types import Ids

PARAGRAPH = np.random.default_rng(0).integers(4, VOCAB_SIZE, 120).astype(np.int32)


def prompts(n: int) -> list[Ids]:
    """Of different lengths, after a common prefix."""
    ends = [np.arange(10, 14 + index, dtype=np.int32) for index in range(n)]
    return [np.concatenate((PARAGRAPH, end)) for end in ends]


def silent(_: str) -> None:
    pass


def test_a_padded_batch_gives_the_tokens_of_the_engine() -> None:
    engine = tiny_engine()
    asked = prompts(5)
    ours = answer_together(engine, asked, 12, EXACT, "bench")
    theirs = generate_batch(engine, asked, 12)
    assert [answer.token_ids for answer in ours] == theirs
    assert [len(tokens) for tokens in theirs] == [12] * 5
    assert sum(answer.provenance.counts["prefix"] > 0 for answer in ours) == 4


def test_a_part_of_transformers_requests_is_scaled_by_batches(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = iter(range(1000))
    monkeypatch.setattr(throughput_batches.time, "perf_counter", lambda: float(next(clock)))
    monkeypatch.setattr(throughput_batches, "BATCHES", (2,))
    monkeypatch.setattr(throughput_batches, "answer_together", fake_answers)
    monkeypatch.setattr(
        throughput_batches, "generate_batch", lambda _, asked, n: [[1] * n] * len(asked)
    )
    found = measure_batches(tiny_engine(), prompts(6), 4, 3, silent)
    assert (found.batch, found.measured) == (2, 4)  # whole batches: two of three
    assert found.transformers_s == pytest.approx(1 * 3 / 2)
    assert found.ours_s == 1.0
    assert found.agreement == 1.0


def fake_answers(_engine: SemShare, asked: list[Ids], n: int, *_: object) -> list[object]:
    return [type("Answer", (), {"token_ids": [1] * n}) for _ in asked]


def test_agreement_ends_at_the_first_difference() -> None:
    ours = [[1, 2, 3, 4], [1, 9, 3, 4], [5, 5, 5, 5]]
    theirs = [[1, 2, 3, 4], [1, 2, 3, 4], [6, 5, 5, 5]]
    # 4 of 4, 1 of 2 and 0 of 1.
    assert throughput_batches._agreement(ours, theirs) == pytest.approx(5 / 7)


def test_other_tokens_than_transformers_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        throughput_batches, "generate_batch", lambda _, asked, n: [[5] * n] * len(asked)
    )
    with pytest.raises(BenchmarkRefused, match=r"at least 0.99 should be. No speed"):
        measure_batches(tiny_engine(), prompts(2), 4, 2, silent)


@pytest.mark.parametrize("family", ["llama", "mistral-window"])
def test_a_copy_decodes_as_what_it_was_copied_from(family: str) -> None:
    found = measure_decode(tiny_engine(family), PARAGRAPH, batch=3, repeats=2)
    assert (found.batch, found.keys) == (3, len(PARAGRAPH) + 4)  # one untimed, one to compare
    assert 0 <= found.kl < 1e-6


def test_wrong_copies_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throughput_decode.Executor, "load", lambda *_: None)
    engine = tiny_engine()
    make = throughput_decode._pool

    def filled(*sizes: object) -> object:
        pool = make(*sizes)
        pool.all_keys.zero_()
        pool.all_values.zero_()
        return pool

    monkeypatch.setattr(throughput_decode, "_pool", filled)
    with pytest.raises(BenchmarkRefused, match=r"nats a row from decode over copies .* No speed"):
        measure_decode(engine, PARAGRAPH, batch=2, repeats=1)


def test_copies_that_do_not_fit_into_memory_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throughput_decode, "available_bytes", lambda: 1 << 20)
    with pytest.raises(BenchmarkRefused, match=r"64 copies of 120 .* 1 MiB are free"):
        measure_decode(tiny_engine(), PARAGRAPH, batch=64, repeats=1)


def test_operations_of_a_step_by_hand() -> None:
    # Per layer: q 48×96, k and v 48×32 each, o 96×48, three of 48×96; the head 48×260.
    linears = 4 * (48 * 96 + 2 * 48 * 32 + 96 * 48 + 3 * 48 * 96) + 48 * VOCAB_SIZE
    # Per layer, key and query head: 16 products and sums for the score, 16 for the value.
    attention = 4 * 6 * (2 * 16 + 2 * 16) * 100
    assert step_flops(tiny_engine().model, 3, 100) == 3 * (2 * linears + attention)


def test_four_requests_for_each_rewritten_donor() -> None:
    examples = rewritten_examples(2, "test")
    assert len({example.id for example in examples}) == len(examples) == 8
    assert len({example.donors[0][0]["content"] for example in examples}) == 2
    assert len({example.target[0]["content"] for example in examples}) == 8
    with pytest.raises(InvalidRequest, match="7 rewritten passages wanted, the split 'test' has 6"):
        rewritten_examples(7, "test")


def short_examples() -> list[object]:
    """Of rewrites that fit into a tiny model's context."""
    examples = rewritten_examples(6, "test")
    return sorted(examples, key=lambda one: len(one.target[0]["content"]))[:4]


def test_what_prefills_in_semantic_mode_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throughput_semantic, "LEAST_PGR", -100.0)  # it is a random model
    engine = tiny_engine()
    found = measure_semantic(engine, short_examples(), silent)
    assert found.requests == 4
    assert 0 < found.compute_fraction < 0.5
    assert found.semantic_s < found.full_s
    assert engine.stats()["donors"] == 0


def test_a_gap_that_is_not_recovered_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throughput_semantic, "LEAST_PGR", 100.0)
    with pytest.raises(BenchmarkRefused, match=r"PGR is .*, the least is 100.0. No speed"):
        measure_semantic(tiny_engine(), short_examples(), silent)


def test_a_fallback_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = tiny_engine()
    monkeypatch.setattr(engine.session.planner, "align", fail)
    with pytest.raises(BenchmarkRefused, match=r"4 requests fell back .* at align: .* No speed"):
        measure_semantic(engine, short_examples(), silent)


def fail(*_: object) -> None:
    raise RuntimeError("no alignment today")


def test_a_record_of_some_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throughput_semantic, "LEAST_PGR", -100.0)
    monkeypatch.setattr(throughput_batches, "BATCHES", (2,))
    monkeypatch.setattr(throughput_decode, "_MATRIX_SIDES", (64,))
    engine = tiny_engine()
    record = run_throughput(
        parts=PARTS[:3],
        requests=3,
        limit=1,
        tokens=700,
        long_tokens=900,
        answer_tokens=6,
        repeats=1,
        progress=False,
        engine=engine,
    )
    assert undocumented(record) == []
    assert json.loads(json.dumps(record)) == record
    assert record["parts"] == list(PARTS[:3])
    assert record["transformers_measured"] == 2
    for ratio in ("vs_transformers", "vs_unshared_decode", "vs_unshared_decode_8k"):
        assert record[ratio] > 0
    assert record["vs_transformers"] == pytest.approx(
        record["transformers_s"] / record["together_s"], rel=0.05
    )
    assert record["roofline_ratio_8k"] == pytest.approx(
        record["shared_step_s_8k"] / record["roofline_s_8k"], rel=0.05
    )
    assert "semantic_prefill_saving" not in record


def test_unknown_parts_and_numbers_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="'c' can't be measured: choose from transformers,"):
        run_throughput(parts=["c"])
    with pytest.raises(InvalidRequest, match="requests is 0"):
        run_throughput(requests=0)
