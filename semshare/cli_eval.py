"""The commands `semshare eval …`; see `docs/evaluation.md`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, TypeAlias, TypeVar

import typer

from semshare.cli_options import Dtype, Json, Limit, Model, SplitName
from semshare.cli_output import emit, print_rows, say, show, starting

_Number = TypeVar("_Number", int, float)

evaluate = typer.Typer(help="Measure quality, with its cost.", no_args_is_help=True)

Seed: TypeAlias = Annotated[int, typer.Option(min=0, help="Orders the texts.")]
DataDir: TypeAlias = Annotated[
    str | None,
    typer.Option(help="Folder of your own files, NAME.jsonl or .parquet; or SEMSHARE_DATA."),
]
Examples: TypeAlias = Annotated[
    int, typer.Option(min=1, help="Examples of each scenario and length.")
]


@evaluate.command("run")
def eval_run(
    dataset: Annotated[str, typer.Option(help="Names with commas; see semshare eval datasets.")],
    methods: Annotated[
        str | None, typer.Option(help="Names with commas; all by default. full is always run.")
    ] = None,
    scenario: Annotated[
        str | None, typer.Option(help="Names with commas; all of the dataset by default.")
    ] = None,
    tokens: Annotated[
        str | None, typer.Option(help="Lengths of a target, with commas; the scenario's own.")
    ] = None,
    limit: Examples = 4,
    answer_tokens: Annotated[
        int | None, typer.Option(min=1, help="Most tokens of an answer; the dataset's own.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of the rows and reports.")] = Path("eval"),
    split: SplitName = "test",
    seed: Seed = 0,
    data_dir: DataDir = None,
    model: Model = "smollm2",
    dtype: Dtype = "auto",
    json_output: Json = False,
) -> None:
    """Serve a dataset by several methods and report what each costs and loses.

    Stopped, it goes on where it was when it is called again; with more methods or examples, it adds
    them to the same folder.
    """
    with starting():
        from semshare.evaluation.methods.registry import METHODS, method_named  # noqa: PLC0415
        from semshare.evaluation.report import write_report  # noqa: PLC0415
        from semshare.evaluation.report.summary import summarize  # noqa: PLC0415
        from semshare.evaluation.report.tables import brief  # noqa: PLC0415
        from semshare.evaluation.run import RunSpec, run_evaluation  # noqa: PLC0415
        from semshare.evaluation.texts import split_named  # noqa: PLC0415
    spec = RunSpec(
        datasets=_names(dataset),
        scenarios=_names(scenario),
        lengths=_lengths(tokens),
        limit=limit,
        answer_tokens=answer_tokens,
        split=split_named(split),
        seed=seed,
        data_dir=data_dir,
    )
    chosen = [method_named(name) for name in _names(methods) or tuple(METHODS)]
    rows, setting = run_evaluation(spec, chosen, out, model=model, dtype=dtype)
    page = write_report(rows, setting, out)
    table = brief(summarize(rows))
    if json_output:
        emit(
            {"benchmark": "eval", "rows": len(rows), "report": str(page), "summary": table}
            | setting
        )
        return
    print_rows(table)
    say(f"the report is {page}")


@evaluate.command("datasets")
def eval_datasets(data_dir: DataDir = None, json_output: Json = False) -> None:
    """Every dataset, its scenarios, and whether it is here; if not, how to get it."""
    with starting():
        from semshare.evaluation.datasets import DATASETS  # noqa: PLC0415 - loads torch
    folder = None if data_dir is None else Path(data_dir)
    rows = []
    for dataset in DATASETS.values():
        presence = dataset.presence(folder)
        rows.append(
            {
                "name": dataset.name,
                "present": presence.found is not None,
                "from": presence.found or presence.missing,
                "metric": dataset.metric,
                "scenarios": ", ".join(dataset.scenarios),
                "about": dataset.about,
            }
        )
    if json_output:
        emit({"datasets": rows})
        return
    print_rows(rows)


@evaluate.command("frontier")
def eval_frontier(
    dataset: Annotated[str, typer.Option(help="One; see semshare eval datasets.")] = "pairs",
    scenario: Annotated[str | None, typer.Option(help="One; the dataset's first.")] = None,
    tokens: Annotated[int | None, typer.Option(min=1, help="Length of a target.")] = None,
    budgets: Annotated[str, typer.Option(help="Values of recompute, with commas.")] = (
        "0.04,0.08,0.16,0.32"
    ),
    selections: Annotated[
        str | None, typer.Option(help="Selection policies, with commas; all by default.")
    ] = None,
    limit: Examples = 6,
    out: Annotated[Path, typer.Option(help="Folder of the rows.")] = Path("eval-frontier"),
    split: SplitName = "val",
    seed: Seed = 0,
    model: Model = "smollm2",
    dtype: Dtype = "auto",
    json_output: Json = False,
) -> None:
    """Sweep budgets and selection policies on a dev split; the Pareto set is marked.

    The defaults of `ReusePolicy` are chosen from it.
    """
    with starting():
        from semshare.evaluation.frontier import run_frontier  # noqa: PLC0415 - loads torch
        from semshare.evaluation.texts import split_named  # noqa: PLC0415
    record = run_frontier(
        dataset,
        scenario=scenario,
        tokens=tokens,
        budgets=_numbers("budgets", budgets, float),
        selections=_names(selections),
        limit=limit,
        out=out,
        split=split_named(split),
        seed=seed,
        model=model,
        dtype=dtype,
    )
    if not json_output:
        print_rows(record["points"])
    show(record, json_output)


@evaluate.command("facts")
def eval_facts(
    limit: Limit = None,
    model: Model = "smollm2",
    dtype: Dtype = "auto",
    json_output: Json = False,
) -> None:
    """How often reuse states the donor's facts instead of the prompt's."""
    with starting():
        from semshare.evaluation.facts import run_facts  # noqa: PLC0415 - loads torch
    show(run_facts(limit=limit, model=model, dtype=dtype), json_output)


def _names(text: str | None) -> tuple[str, ...]:
    return tuple(name for part in (text or "").split(",") if (name := part.strip()))


def _lengths(text: str | None) -> tuple[int, ...]:
    return _numbers("tokens", text or "", int)


def _numbers(option: str, text: str, kind: Callable[[str], _Number]) -> tuple[_Number, ...]:
    try:
        return tuple(map(kind, _names(text)))
    except ValueError:
        whole = "whole numbers" if kind is int else "numbers"
        message = f"{text!r}: write {whole} with commas"
        raise typer.BadParameter(message, param_hint=option) from None
