"""KV memory of requests over one donor: what is counted, and when nothing is reported."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from documented import undocumented
from tiny import tiny_engine, tiny_model, tiny_tokenizer

from semshare import BenchmarkRefused, InvalidRequest
from semshare.evaluation import bench_memory
from semshare.evaluation.bench_memory import SideName, Work, measure_side, run_memory
from semshare.evaluation.bounds import Bounds, Record
from semshare.evaluation.environment import available_bytes, peak_resident_bytes

# A random model's bytes are rarely text: pieces of an answer come late.
WORK = Work("tiny", "float32", tokens=900, requests=3, answer_tokens=60, split="test")


def in_this_process(work: Work, side: SideName) -> Record:
    return measure_side(tiny_engine(prefill_rows=450), work, side)


@pytest.fixture
def random_model_suffices(monkeypatch: pytest.MonkeyPatch) -> None:
    """A random model's answers are near nobody's bounds."""
    monkeypatch.setattr(bench_memory, "BOUNDS", Bounds({}))
    monkeypatch.setattr(bench_memory, "_in_new_process", in_this_process)


def test_bytes_are_those_of_the_pages_in_use(random_model_suffices: None) -> None:
    record = run_memory(
        requests=WORK.requests,
        tokens=WORK.tokens,
        answer_tokens=WORK.answer_tokens,
        model="tiny",
        progress=False,
    )
    # A slot of the tiny model: keys and values of 4 layers × 2 heads × 16 numbers in float32.
    page = 16 * 2 * 4 * 2 * 16 * 4
    pages = -(-(record["tokens"] + WORK.answer_tokens) // 16)
    # Prompts have one byte more or less, by the length of their questions.
    assert record["separate_bytes"] == pytest.approx(3 * pages * page, abs=3 * page)
    # The donor, and of each request at least what it says itself.
    assert pages * page < record["shared_bytes"] < 2 * pages * page
    assert record["saving"] == pytest.approx(
        1 - record["shared_bytes"] / record["separate_bytes"], abs=1e-4
    )
    assert record["peak_rss_shared"] >= record["loaded_rss"] > 0
    assert record["hit_rate"] > 0.5
    assert json.loads(json.dumps(record)) == record
    assert undocumented(record) == []


def test_answers_that_miss_the_bounds_report_no_memory() -> None:
    with pytest.raises(BenchmarkRefused, match=r"kl is .* No memory is reported"):
        in_this_process(WORK, "shared")


def test_requests_that_are_not_answered_at_the_same_time_are_refused() -> None:
    work = Work("tiny", "float32", tokens=900, requests=3, answer_tokens=2, split="test")
    with pytest.raises(BenchmarkRefused, match=r"only \d of 3 .* more than 2 answer tokens"):
        in_this_process(work, "separate")


def test_each_side_is_a_process_whose_refusal_is_told(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(BenchmarkRefused, match=r"^shared KV: kl is .* No memory is reported"):
        run_memory(
            requests=2,
            tokens=900,
            answer_tokens=60,
            model=str(tmp_path),
            dtype="float32",
            progress=False,
        )


@pytest.mark.parametrize("argument", ["requests", "tokens", "answer_tokens"])
def test_nothing_to_measure_is_refused(argument: str) -> None:
    with pytest.raises(InvalidRequest, match=f"{argument} is 0"):
        run_memory(**{argument: 0})


def test_peak_memory_grows_with_what_is_touched() -> None:
    before = peak_resident_bytes()
    touched = bytearray(before)  # as much again, more than is free of earlier peaks
    touched[::4096] = b"1" * len(range(0, len(touched), 4096))
    assert peak_resident_bytes() > before
    assert available_bytes() > 0
