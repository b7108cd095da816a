import json
import re
from contextlib import AbstractContextManager, nullcontext
from dataclasses import fields

import pytest
import torch
from documented import undocumented
from rich.cells import cell_len
from tiny import tiny_engine

from semshare import (
    BenchmarkRefused,
    InvalidRequest,
    ReusePolicy,
    SemShare,
    Timings,
)
from semshare.engine import loading
from semshare.evaluation import bench, demo, facts, progress
from semshare.evaluation.bench import run_ttft
from semshare.evaluation.bounds import FidelityMissed
from semshare.evaluation.facts import fact_pairs, judge, run_facts
from semshare.evaluation.measure import Bench, median_timings
from semshare.evaluation.paper_scenarios import question_last
from semshare.evaluation.texts import paraphrase_pairs

# Everything but the question's last token from the donor: no fidelity on a random model.
CARELESS = ReusePolicy(
    mode="span", recompute=0.0, selection="none", sink_tokens=0, tail_tokens=1, fact_guard=False
)
ISSUE_FIELDS = (
    "scenario tokens full_s reuse_s speedup compute_fraction efficiency kl top1 kl_floor "
    "top1_floor pgr hit_rate lookup_s model machine versions"
).split()


def test_a_prefix_run_is_exact_and_its_record_complete() -> None:
    engine = tiny_engine()
    record = run_ttft("prefix", tokens=700, limit=1, repeats=2, progress=False, engine=engine)
    assert set(ISSUE_FIELDS) <= set(record)
    assert undocumented(record) == []
    assert json.loads(json.dumps(record)) == record
    assert record["exact"]
    assert record["plans_stable"]
    # A repeat that found its own first run would reuse everything but the last page.
    assert record["sources"]["prefix"] == pytest.approx(record["hit_rate"])
    assert record["hit_rate"] < 1 - 16 / record["tokens"]
    assert record["pgr"] is None
    assert record["max_logit_diff"] < 1e-4
    assert record["efficiency"] == pytest.approx(
        record["speedup"] * record["compute_fraction"], abs=1e-4
    )
    assert engine.stats()["donors"] == 0


def test_a_run_whose_fidelity_misses_reports_no_speed() -> None:
    with pytest.raises(FidelityMissed, match=r"shifted: kl is .* No speed is reported") as caught:
        run_ttft(
            "shifted",
            tokens=700,
            limit=1,
            repeats=1,
            progress=False,
            policy=CARELESS,
            engine=tiny_engine(),
        )
    assert isinstance(caught.value, BenchmarkRefused)
    record = caught.value.record
    seconds = re.compile(r"_s$|speed|efficiency|percentile|break_even")
    assert not [name for name in all_names(record) if seconds.search(name)]
    assert record["kl"] > 0.01
    assert record["pgr"] is not None
    assert record["sources"]["span"] > 0.5
    assert str(record["kl"]) in str(caught.value)


def all_names(value: object) -> list[str]:
    """The names of a record's fields, those of the records in it too."""
    if isinstance(value, dict):
        return [*value, *(name for inner in value.values() for name in all_names(inner))]
    return [name for inner in value for name in all_names(inner)] if isinstance(value, list) else []


def test_transformers_first_call_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter((100.0, 2.0, 4.0))
    monkeypatch.setattr(Bench, "plain_transformers_s", lambda *_: next(seconds))
    record = run_ttft(
        "prefix", tokens=700, limit=2, repeats=1, progress=False, engine=tiny_engine()
    )
    assert record["transformers_full_s"] == 3.0


def test_each_stage_has_a_median_of_its_own() -> None:
    names = [field.name for field in fields(Timings)]
    runs = [
        Timings(**{name: float((shift + index) % 3) for index, name in enumerate(names)})
        for shift in range(3)
    ]
    assert median_timings(runs) == Timings(*(1.0 for _ in names))


def test_a_bundled_model_is_converted_before_the_line_about_loading(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    done: list[str] = []
    monkeypatch.setattr(loading, "bundled_model_path", lambda name: done.append(f"convert {name}"))
    monkeypatch.setattr(SemShare, "from_pretrained", lambda name, **_: done.append(f"load {name}"))
    progress.load_engine("smollm2")
    progress.load_engine("a/folder")
    assert done == ["convert smollm2", "load smollm2", "load a/folder"]


def test_a_run_says_what_it_waits_for_before_its_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []

    def say(text: str, *, enabled: bool) -> AbstractContextManager[None]:
        assert enabled
        said.append(text)
        return nullcontext()

    for module in (bench, facts, progress):
        monkeypatch.setattr(module, "status_line", say)
    monkeypatch.setattr(SemShare, "from_pretrained", lambda *_, **__: tiny_engine())
    bench.run_ttft("prefix", tokens=700, limit=1, repeats=1, model="a/folder")
    assert said == ["loading a/folder…", "loading a/folder…", "choosing the texts…"]
    facts.run_facts(limit=1, model="a/folder")
    assert said[-3:] == ["loading a/folder…", "loading a/folder…", "writing the texts…"]


@pytest.mark.parametrize("argument", ["tokens", "limit", "repeats"])
def test_a_run_of_nothing_is_refused(argument: str) -> None:
    with pytest.raises(InvalidRequest, match=f"{argument} is 0"):
        run_ttft("prefix", **{argument: 0})  # type: ignore[arg-type]


def test_facts_record_has_accuracies_and_leaks_of_the_three_methods() -> None:
    record = run_facts(limit=2, progress=False, engine=tiny_engine())
    assert record["n"] == 2
    assert undocumented(record) == []
    for method in ("full", "semantic", "semantic_unguarded"):
        assert 0.0 <= record[method] <= 1.0
        assert 0.0 <= record["leak_rate"][method] <= 1.0
    assert record["leak_rate"]["full"] == 0.0
    assert record["hit_rate"]["full"] == 0.0
    assert record["hit_rate"]["semantic_unguarded"] > record["hit_rate"]["semantic"] > 0.0
    assert record["compute_fraction_unguarded"] < record["compute_fraction"] < 1.0
    assert sum(kind["n"] for kind in record["by_kind"].values()) == 2
    assert json.loads(json.dumps(record)) == record
    with pytest.raises(InvalidRequest, match="limit is 0"):
        fact_pairs(limit=0)


def test_a_fact_is_right_only_if_every_differing_token_is() -> None:
    # Target 0 1 2, donor 0 2 1: the first token is shared, the other two are choices.
    shared = [0.0, 9.0, 0.0]
    right = judge([0, 1, 2], torch.tensor([shared, [0.0, 2, 1], [0, 1, 3]]), [0, 2, 1])
    assert right.right
    assert not right.says_donor
    assert right.margin == pytest.approx(1.0)
    late = judge([0, 1, 2], torch.tensor([shared, [0, 2, 1], [0, 3, 1]]), [0, 2, 1])
    assert not late.right
    assert not late.says_donor
    leaked = judge([0, 1, 2], torch.tensor([shared, [0, 1, 2], [0, 1, 3]]), [0, 2, 1])
    assert not leaked.right
    assert leaked.says_donor
    neither = judge([0, 1, 2], torch.tensor([shared, [9, 1, 2], [0, 1, 3]]), [0, 2])
    assert not neither.right
    assert not neither.says_donor


def test_facts_without_a_difference_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="nothing to choose"):
        judge([0, 1], torch.tensor([[1.0, 0.0], [1.0, 0.0]]), [0, 1, 2])


def test_the_demo_has_five_kinds_of_prompt() -> None:
    cases = demo.demo_cases(tiny_engine())
    again, shifted, rewritten, reports, unrelated = cases
    assert [case.donor is None for case in cases] == [False] * 4 + [True]
    assert common_start(again) > 0.8 * len(text_of(again.target))
    for case in (shifted, rewritten, reports):
        assert common_start(case) < 100
    fact, other = (words.split()[-1] for words in reports.note.split(", "))
    assert fact.isdigit()
    assert fact in text_of(reports.target)
    assert other not in text_of(reports.target)
    assert text_of(unrelated.target) not in {text_of(case.target) for case in cases[:4]}


def test_the_demo_shows_a_passage_that_nothing_was_tuned_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = tiny_engine()
    tuned_on = paraphrase_pairs("val")[1]
    length = len(engine.encode(question_last(tuned_on.rewrite, "outcome")))
    monkeypatch.setattr(demo, "PROMPT_TOKENS", length)  # the nearest of all twelve would be this
    shown = text_of(demo.demo_cases(engine)[2].target)
    assert [pair.rewrite in shown for pair in paraphrase_pairs("test")].count(True) == 1


@pytest.mark.real_model
def test_the_bundled_model_tells_the_demos_fact_from_the_donors() -> None:
    engine = SemShare.from_pretrained("smollm2", dtype="float32")
    case = demo.demo_cases(engine)[3]
    assert case.donor is not None
    fact, other = (words.split()[-1] for words in case.note.split(", "))
    engine.remember(case.donor)
    for policy in (ReusePolicy(mode="off"), ReusePolicy()):
        answer = engine.generate(case.target, max_tokens=demo.ANSWER_TOKENS, policy=policy)
        assert fact in answer.text
        assert other not in answer.text
    assert answer.provenance.reused > 0.5 * answer.prompt_tokens


def text_of(messages: demo.Messages) -> str:
    return messages[0]["content"]


def common_start(case: demo.Case) -> int:
    assert case.donor is not None
    pairs = zip(text_of(case.donor), text_of(case.target), strict=False)
    return next(i for i, (a, b) in enumerate(pairs) if a != b)


@pytest.mark.parametrize("width", [40, 60, 80, 200])
def test_the_demo_prints_its_tables_and_answers(
    width: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = tiny_engine()
    first_two = demo.demo_cases(engine)[:2]
    monkeypatch.setattr(demo, "demo_cases", lambda engine: first_two)
    monkeypatch.setenv("COLUMNS", str(width))
    record = demo.run_demo(engine=engine)
    exact_prefix, shifted = record["prompts"]
    assert exact_prefix["exact"]
    assert exact_prefix["kl"] < 1e-6
    assert shifted["sources"]["span"] > 0.5 * shifted["tokens"]
    assert json.loads(json.dumps(record)) == record
    printed = capsys.readouterr().out
    assert "…" not in printed
    assert max(map(cell_len, printed.split("\n"))) <= max(width, demo.NARROWEST)
    for row in record["prompts"]:
        for number in (
            f"{row['full_s']:.2f} s",
            f"{row['reuse_s']:.2f} s",
            f"{row['speedup']:.1f}×",
            f"{row['compute_fraction']:.1%}",
            f"{row['kl']:.4f}",
            *map(str, row["sources"].values()),
        ):
            assert number in printed
    if width >= 80:
        assert printed.count("(a) another question, same paper") == 3
    assert printed.count("\n  reuse  ") == 2


def test_the_demo_keeps_standard_output_free_for_json(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    question: demo.Messages = [{"role": "user", "content": "What is new?"}]
    monkeypatch.setattr(demo, "demo_cases", lambda engine: [demo.Case("new", None, question)])
    record = demo.run_demo(json_output=True, engine=tiny_engine())
    assert record["donors"] == 0
    assert record["prompts"][0]["prompt"] == "new"
    assert capsys.readouterr().out == ""
