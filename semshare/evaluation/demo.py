"""The main job in two minutes: donors in, related prompts answered, with and without reuse."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from semshare import Answer, ReusePolicy, SemShare
from semshare.evaluation import prompts
from semshare.evaluation.bounds import Record
from semshare.evaluation.datasets import paraphrase_pairs
from semshare.evaluation.environment import setting
from semshare.evaluation.fact_texts import template_pairs
from semshare.evaluation.lengths import most_that_fit
from semshare.evaluation.material import Material, Messages
from semshare.evaluation.measure import FULL, Fidelity, compare
from semshare.evaluation.paper_scenarios import instruction_first, question_last
from semshare.evaluation.progress import Step, progress_bar

PROMPT_TOKENS = 1000
ANSWER_TOKENS = 48
TABLE_WIDTH = 100  # where standard output is no terminal
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
    with Console(stderr=True).status("loading the model…"):
        engine = engine or SemShare.from_pretrained()
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
        if not console.is_terminal:
            console = Console(width=TABLE_WIDTH)
        console.print(_table(outcomes, engine))
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
        paraphrase_pairs(),
        key=lambda one: abs(material.count(question_last(one.rewrite, "outcome")) - PROMPT_TOKENS),
    )
    reports = template_pairs(variants=1)

    def joined(kept: int) -> str:
        return "\n\n".join(report.target for report in reports[:kept])

    kept = max(1, most_that_fit(joined, len(reports), material.text_tokens, room))
    donor_reports = "\n\n".join(report.donor for report in reports[:kept])
    fact = reports[kept // 2].questions[0]
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


def _table(outcomes: Sequence[Outcome], engine: SemShare) -> Table:
    table = Table(
        title=f"Time to first token, {engine.model_name}, {engine.dtype}", box=box.SIMPLE_HEAD
    )
    table.add_column("prompt", no_wrap=True)
    for name in ("tokens", "full", "reuse", "speedup", "computed"):
        table.add_column(name, justify="right", no_wrap=True)
    for source in _SOURCES:
        table.add_column(source, justify="right", no_wrap=True)
    table.add_column("KL", justify="right", no_wrap=True)
    for outcome in outcomes:
        row = outcome.record
        counts = row["sources"]
        table.add_row(
            row["prompt"],
            str(row["tokens"]),
            f"{row['full_s']:.2f} s",
            f"{row['reuse_s']:.3f} s",
            f"{row['speedup']:.1f}×",
            f"{row['compute_fraction']:.1%}",
            *(str(counts[source]) for source in _SOURCES),
            f"{row['kl']:.4f}",
        )
    return table


def _print_answers(console: Console, outcomes: Sequence[Outcome]) -> None:
    for outcome in outcomes:
        note = f" ({outcome.case.note})" if outcome.case.note else ""
        console.print(Text(f"\n{outcome.case.title}{note}", style="bold"))
        console.print(Text(f"  full   {_one_line(outcome.full.text)}"))
        console.print(Text(f"  reuse  {_one_line(outcome.reuse.text)}"))


def _one_line(text: str) -> str:
    return " ".join(text.split())
