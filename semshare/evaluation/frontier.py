"""Which budgets and selection policies are worth their compute: a sweep on a dev split.

semshare eval frontier --json
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from semshare import InvalidRequest, ReusePolicy, SemShare
from semshare.config import SELECTION_NAMES
from semshare.evaluation.bounds import Record
from semshare.evaluation.datasets import dataset_named
from semshare.evaluation.methods.base import PolicyMethod
from semshare.evaluation.methods.registry import METHODS
from semshare.evaluation.report.summary import Group, Summary, pareto, summarize
from semshare.evaluation.run import RunSpec, own_length, run_evaluation
from semshare.evaluation.texts import Split

# Their logits and likelihoods are what fidelity and PGR are measured by.
REFERENCES = ("full", "no_context")
ANSWER_TOKENS = 32  # most that are scored: a gold sentence


@dataclass(frozen=True, slots=True)
class Candidate:
    """One policy of the sweep."""

    selection: str
    recompute: float
    method: PolicyMethod


def candidates(selections: Sequence[str], budgets: Sequence[float]) -> list[Candidate]:
    """Every selection at every budget; `none` once, since it spends nothing.

    Raises:
        InvalidRequest: a policy field is unknown or out of its range.

    """
    found = []
    for selection in selections:
        for recompute in (0.0,) if selection == "none" else budgets:
            # mypy can't know that the name is one of the literals; the policy checks it.
            policy = ReusePolicy(selection=selection, recompute=recompute)  # type: ignore[arg-type]
            name = f"{selection}@{recompute:g}"
            about = f"{selection}, {recompute:.0%} of what may be chosen"
            found.append(Candidate(selection, recompute, PolicyMethod(name, about, policy)))
    return found


def _means(summary: Summary) -> dict[str, float]:
    names = ("compute_fraction", "kl", "top1", "pgr")
    return {name: round(summary.means[name].mean, 5) for name in names if name in summary.means}


def run_frontier(
    dataset: str = "pairs",
    *,
    scenario: str | None = None,
    tokens: int | None = None,
    budgets: Sequence[float] = (0.04, 0.08, 0.16, 0.32),
    selections: Sequence[str] = (),
    limit: int = 6,
    out: Path = Path("eval-frontier"),
    split: Split = "val",
    seed: int = 0,
    model: str = "smollm2",
    dtype: str = "auto",
    engine: SemShare | None = None,
    progress: bool = True,
) -> Record:
    """Sweep policies over one scenario. Stopped, it goes on where it was when called again.

    Args:
        dataset, scenario, tokens: what is served; the dataset's first scenario, at its own length.
        budgets: values of `ReusePolicy.recompute`.
        selections: values of `ReusePolicy.selection`; all if empty.
        limit: examples.
        out: folder of the rows.
        split: of the texts; not the one that is reported.
        seed: orders them.
        model, dtype: where `engine` is None.
        engine: a ready one.
        progress: a bar on standard error.

    Returns:
        The record described in `docs/evaluation.md`, JSON-ready; `on_frontier` marks the points of
        which no other computes less and is nearer to full prefill.

    Raises:
        InvalidRequest: an unknown name, or no data of that length.
        ModelNotAvailable: the model or a data package is missing.

    """
    if not budgets:
        raise InvalidRequest("no budgets: name at least one value of recompute")
    swept = candidates(selections or SELECTION_NAMES, budgets)
    scenario = scenario or dataset_named(dataset).scenarios[0]
    spec = RunSpec(
        (dataset,),
        (scenario,),
        lengths=() if tokens is None else (tokens,),
        limit=limit,
        answer_tokens=ANSWER_TOKENS,
        split=split,
        seed=seed,
    )
    methods = [*(METHODS[name] for name in REFERENCES), *(one.method for one in swept)]
    rows, setting = run_evaluation(
        spec, methods, out, model=model, dtype=dtype, engine=engine, progress=progress
    )
    # The folder may hold sweeps over other prompts, too.
    tokens = spec.lengths[0] if spec.lengths else own_length(dataset_named(dataset), scenario)
    summaries = summarize(rows)[Group(dataset, scenario, tokens)]
    by_name = {summary.method: summary for summary in summaries}
    swept = [one for one in swept if one.method.name in by_name]
    best = {
        one.method.name
        for one in pareto(
            swept,
            cost=lambda one: by_name[one.method.name].means["compute_fraction"].mean,
            loss=lambda one: by_name[one.method.name].means["kl"].mean,
        )
    }
    points: list[Record] = [
        {
            "selection": one.selection,
            "recompute": one.recompute,
            "n": by_name[one.method.name].n,
            **_means(by_name[one.method.name]),
            "on_frontier": one.method.name in best,
        }
        for one in swept
    ]
    points.sort(key=lambda point: point["compute_fraction"])
    return {
        "benchmark": "frontier",
        "dataset": dataset,
        "scenario": scenario,
        "points": points,
        **setting,
    }
