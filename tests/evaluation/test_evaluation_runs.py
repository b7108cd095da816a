import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import tiny_engine

from semshare import BenchmarkRefused, InvalidRequest, Provenance, ReusePolicy, Score, Timings
from semshare.evaluation import demo
from semshare.evaluation.bench import run_ttft
from semshare.evaluation.bounds import SPEED_FIELDS, FidelityMissed
from semshare.evaluation.facts import fact_pairs, judge, run_facts

# Everything but the question's last token from the donor: no fidelity on a random model.
CARELESS = ReusePolicy(
    mode="span", recompute=0.0, selection="none", sink_tokens=0, tail_tokens=1, fact_guard=False
)
ISSUE_FIELDS = (
    "scenario tokens full_s reuse_s speedup compute_fraction efficiency kl top1 kl_floor "
    "top1_floor pgr hit_rate lookup_s model machine versions"
).split()


def undocumented(record: dict[str, object]) -> list[str]:
    text = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text(encoding="utf-8")
    return [name for name in record if f"`{name}`" not in text]


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
    assert not set(SPEED_FIELDS) & set(record)
    assert record["kl"] > 0.01
    assert record["pgr"] is not None
    assert record["sources"]["span"] > 0.5
    assert str(record["kl"]) in str(caught.value)


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


def scored(token_ids: list[int], logits: list[list[float]]) -> Score:
    source = np.array([0, 0, 2, 3], dtype=np.uint8)
    minus = np.full(4, -1, dtype=np.int32)
    provenance = Provenance(source, ("d",), minus, minus, 0.5, exact=False, mode="semantic")
    rows = torch.tensor(logits)
    return Score(token_ids, torch.zeros(len(token_ids)), rows, provenance, Timings())


def test_a_fact_is_right_only_if_every_differing_token_is() -> None:
    # Target 0 1 2, donor 0 2 1: the first token is shared, the other two are choices.
    shared = [0.0, 9.0, 0.0]
    right = judge(scored([0, 1, 2], [shared, [0, 2, 1], [0, 1, 3]]), [0, 2, 1])
    assert right.right
    assert not right.says_donor
    assert right.margin == pytest.approx(1.0)
    assert right.hit_rate == 0.5
    late = judge(scored([0, 1, 2], [shared, [0, 2, 1], [0, 3, 1]]), [0, 2, 1])
    assert not late.right
    assert not late.says_donor
    leaked = judge(scored([0, 1, 2], [shared, [0, 1, 2], [0, 1, 3]]), [0, 2, 1])
    assert not leaked.right
    assert leaked.says_donor
    neither = judge(scored([0, 1, 2], [shared, [9, 1, 2], [0, 1, 3]]), [0, 2])
    assert not neither.right
    assert not neither.says_donor


def test_facts_without_a_difference_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="nothing to choose"):
        judge(scored([0, 1], [[1.0, 0.0], [1.0, 0.0]]), [0, 1, 2])


def test_the_demo_has_five_kinds_of_prompt() -> None:
    cases = demo.demo_cases(tiny_engine())
    again, shifted, rewritten, facts, unrelated = cases
    assert [case.donor is None for case in cases] == [False] * 4 + [True]
    assert common_start(again) > 0.8 * len(text_of(again.target))
    for case in (shifted, rewritten, facts):
        assert common_start(case) < 100
    fact, other = (words.split()[-1] for words in facts.note.split(", "))
    assert fact in text_of(facts.target)
    assert other not in text_of(facts.target)
    assert text_of(unrelated.target) not in {text_of(case.target) for case in cases[:4]}


def text_of(messages: demo.Messages) -> str:
    return messages[0]["content"]


def common_start(case: demo.Case) -> int:
    assert case.donor is not None
    pairs = zip(text_of(case.donor), text_of(case.target), strict=False)
    return next(i for i, (a, b) in enumerate(pairs) if a != b)


def test_the_demo_prints_its_table_and_answers(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = tiny_engine()
    first_two = demo.demo_cases(engine)[:2]
    monkeypatch.setattr(demo, "demo_cases", lambda engine: first_two)
    record = demo.run_demo(engine=engine)
    exact_prefix, shifted = record["prompts"]
    assert exact_prefix["exact"]
    assert exact_prefix["kl"] < 1e-6
    assert shifted["sources"]["span"] > 0.5 * shifted["tokens"]
    assert json.loads(json.dumps(record)) == record
    printed = capsys.readouterr().out
    assert "(a) another question, same paper" in printed
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
