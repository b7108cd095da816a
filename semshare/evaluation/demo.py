"""The main job in two minutes: donors in, related prompts answered, with and without reuse."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from semshare import Answer, ReusePolicy, SemShare
from semshare.evaluation import prompts
from semshare.evaluation.bounds import Record
from semshare.evaluation.environment import setting
from semshare.evaluation.fact_texts import template_pairs
from semshare.evaluation.lengths import most_that_fit
from semshare.evaluation.material import Material, Messages
from semshare.evaluation.measure import FULL, Fidelity, compare
from semshare.evaluation.paper_scenarios import instruction_first, question_last
from semshare.evaluation.progress import Step, load_engine, progress_bar
from semshare.evaluation.texts import paraphrase_pairs

PROMPT_TOKENS = 1000
ANSWER_TOKENS = 48
NARROWEST = 60  # columns; where there are fewer, the terminal breaks the lines
_NAMESPACE = "demo"
_SOURCES = ("prefix", "span", "fuzzy", "fresh")


@dataclass(frozen=True, slots=True)
class Case:
    """One prompt to answer, and the donor that was remembered for it, if any."""

    title: str
    donor: Messages | None
    target: Messages
    note: str = ""


@dataclass(frozen=True, slots=True)
class Outcome:
    """A case answered twice."""

    case: Case
    full: Answer
    reuse: Answer
    fidelity: Fidelity  # over the full answer's tokens

    @property
    def record(self) -> Record:
        """JSON-ready."""
        full_s, reuse_s = self.full.timings.ttft_s, self.reuse.timings.ttft_s
        provenance = self.reuse.provenance
        return {
            "prompt": self.case.title,
            "tokens": self.full.prompt_tokens,
            "full_s": round(full_s, 4),
            "reuse_s": round(reuse_s, 4),
            "speedup": round(full_s / reuse_s, 2),
            "compute_fraction": round(provenance.compute_fraction, 4),
            "sources": provenance.counts,
            "exact": provenance.exact,
            "fallback": provenance.fallback,
            "kl": round(self.fidelity.kl, 5),
            "top1": round(self.fidelity.top1, 4),
            "note": self.case.note,
            "full_answer": self.full.text,
            "reuse_answer": self.reuse.text,
        }


def run_demo(*, json_output: bool = False, engine: SemShare | None = None) -> Record:
    """Answer five prompts over four remembered ones, and print what reuse made of them.

    Args:
        json_output: print nothing on standard output; the caller prints the record.
        engine: a ready engine; the bundled model if None.

    Returns:
        The record, JSON-ready: `prompts` holds a row for each of the five.

    Raises:
        ModelNotAvailable: the model's or the papers' package is missing.

    """
    started = time.perf_counter()
    engine = engine or load_engine("smollm2")
    load_s = time.perf_counter() - started
    cases = demo_cases(engine)
    donors = [case.donor for case in cases if case.donor is not None]
    with progress_bar("demo", len(donors) + len(cases), enabled=True) as (note, advance):
        note("warming up")
        engine.generate(cases[-1].target, max_tokens=2, policy=FULL, namespace=_NAMESPACE)
        for number, donor in enumerate(donors, 1):
            note(f"remembering donor {number} of {len(donors)}")
            engine.remember(donor, namespace=_NAMESPACE)
            advance("")
        outcomes = [_answer(engine, case, note, advance) for case in cases]
    engine.forget_all(_NAMESPACE)
    if not json_output:
        console = Console()
        console.width = max(console.width, NARROWEST)
        console.print(_speeds(outcomes, engine), _sources(outcomes), sep="\n")
        _print_answers(console, outcomes)
    return {
        "demo": "reuse",
        "load_s": round(load_s, 3),
        "donors": len(donors),
        "prompts": [outcome.record for outcome in outcomes],
        **setting(engine, ReusePolicy()),
    }


def demo_cases(engine: SemShare) -> list[Case]:
    """The five kinds of prompt, of about a thousand tokens each."""
    material = Material(lambda messages: len(engine.encode(messages)), PROMPT_TOKENS)
    room = material.room_in(question_last("", "challenge"))
    first, second, third = (text for _, text in material.papers(room, 3))
    pair = min(
        paraphrase_pairs(material.split),
        key=lambda one: abs(material.count(question_last(one.rewrite, "outcome")) - PROMPT_TOKENS),
    )
    reports = template_pairs(variants=1)

    def joined(kept: int) -> str:
        return "\n\n".join(report.target for report in reports[:kept])

    kept = max(1, most_that_fit(joined, len(reports), material.text_tokens, room))
    donor_reports = "\n\n".join(report.donor for report in reports[:kept])
    # One that the bundled model answers in full prefill, which many of them are not.
    fact = next(one for one in reports[0].questions if one.kind == "numbers")
    return [
        Case(
            "(a) another question, same paper",
            question_last(first, "approach"),
            question_last(first, "outcome"),
        ),
        Case(
            "(b) another instruction first",
            instruction_first(second, "approach"),
            question_last(second, "challenge"),
        ),
        Case(
            "(c) the paper rewritten",
            instruction_first(pair.source, "approach"),
            question_last(pair.rewrite, "outcome"),
        ),
        Case(
            "(d) the text with other facts",
            prompts.user("Summarize the following reports.", donor_reports),
            prompts.user("Here are some reports.", joined(kept), fact.question),
            f"this text says {fact.target}, the donor's said {fact.donor}",
        ),
        Case("(e) an unrelated paper", None, question_last(third, "outcome")),
    ]


def _answer(engine: SemShare, case: Case, note: Step, advance: Step) -> Outcome:
    note(case.title)
    full, reuse = (
        engine.generate(case.target, max_tokens=ANSWER_TOKENS, policy=policy, namespace=_NAMESPACE)
        for policy in (FULL, ReusePolicy())
    )
    # Exact KV has entered the prefix tree by now and is scored as the prefix it has become.
    exact, reused = (
        engine.score(case.target, full.token_ids, policy=policy, namespace=_NAMESPACE)
        for policy in (FULL, ReusePolicy())
    )
    advance(case.title)
    return Outcome(case, full, reuse, compare(exact, reused))


def _speeds(outcomes: Sequence[Outcome], engine: SemShare) -> Table:
    title = f"Time to first token, {engine.model_name}, {engine.dtype}"
    table = _empty_table(title, "tokens", "full", "reuse", "speedup", "computed")
    for outcome in outcomes:
        row = outcome.record
        table.add_row(
            row["prompt"],
            str(row["tokens"]),
            f"{row['full_s']:.2f} s",
            f"{row['reuse_s']:.2f} s",
            f"{row['speedup']:.1f}×",
            f"{row['compute_fraction']:.1%}",
        )
    return table


def _sources(outcomes: Sequence[Outcome]) -> Table:
    table = _empty_table("Tokens by source, KL against full prefill", *_SOURCES, "KL")
    for outcome in outcomes:
        row = outcome.record
        counts = (str(row["sources"][source]) for source in _SOURCES)
        table.add_row(row["prompt"], *counts, f"{row['kl']:.4f}")
    return table


def _empty_table(title: str, *numbers: str) -> Table:
    """A column for the prompt, which breaks where the terminal is narrow, and one a number."""
    table = Table(
        "prompt", title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0)
    )
    for name in numbers:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _print_answers(console: Console, outcomes: Sequence[Outcome]) -> None:
    for outcome in outcomes:
        note = f" ({outcome.case.note})" if outcome.case.note else ""
        console.print(Text(f"\n{outcome.case.title}{note}", style="bold"))
        answers = Table.grid(padding=(0, 2))
        answers.add_row("full", Text(_one_line(outcome.full.text)))
        answers.add_row("reuse", Text(_one_line(outcome.reuse.text)))
        console.print(Padding(answers, (0, 0, 0, 2)))


def _one_line(text: str) -> str:
    return " ".join(text.split())
