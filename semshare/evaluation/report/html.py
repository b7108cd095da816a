"""The report as one HTML page that loads nothing: tables, plots and token maps."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from semshare.evaluation.report.plots import (
    COMPUTED,
    FIRST_TOKEN,
    Plot,
    divergence_plot,
    frontier_plot,
    length_plots,
)
from semshare.evaluation.report.summary import OURS, Group, Summary
from semshare.evaluation.report.tables import Table, glance, headline, table_of, title
from semshare.evaluation.report.tokens import SOURCES, TokenMap, token_map
from semshare.evaluation.rows import Row


@dataclass(frozen=True, slots=True)
class Section:
    """One group. `anchor` is the page's id for it, `glance` its line in the overview."""

    anchor: str
    title: str
    headline: tuple[str, ...]
    glance: tuple[str, ...]
    frontiers: tuple[Plot, ...]
    table: Table
    divergence: Plot
    tokens: TokenMap | None


def write_html(
    groups: dict[Group, list[Summary]],
    rows: Sequence[Row],
    setting: Mapping[str, Any],
    path: Path,
) -> None:
    """Write the page. The same arguments give the same bytes.

    Args:
        groups: what `summarize` makes of the rows.
        rows: of the run; the token maps are made from `semshare`'s.
        setting: as `run_evaluation` returns it: what was run, model, dtype, machine, versions.
        path: of the file; its folder exists.

    Raises:
        ModelNotAvailable: matplotlib is not installed.

    """
    # Not PackageLoader, which would import the package by name to find the same folder.
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("report.html.j2").render(
        facts=_facts(groups, setting),
        command=_commands(setting),
        methods=setting["methods"],
        sections=[_section(at, *one, rows) for at, one in enumerate(groups.items())],
        lengths=list(length_plots(groups)),
        sources=SOURCES,
        ours=OURS,
    )
    path.write_text(page, encoding="utf-8")


def _facts(
    groups: Mapping[Group, list[Summary]], setting: Mapping[str, Any]
) -> list[tuple[str, str]]:
    """What was run, as names and values."""
    machine = setting["machine"]
    sizes = sorted({one.n for summaries in groups.values() for one in summaries})
    span = f"{sizes[0]} to {sizes[-1]}" if len(sizes) > 1 else "".join(map(str, sizes))
    processor = machine["gpu"] or machine["cpu"]
    datasets = dict.fromkeys(name for run in setting["runs"] for name in run["datasets"])
    return [
        ("Datasets", ", ".join(datasets)),
        ("Examples", f"{span} in each group, split {setting['split']}, seed {setting['seed']}"),
        ("Model", f"{setting['model']}, {setting['dtype']}"),
        ("Machine", f"{processor}, {machine['threads']} threads, {machine['system']}"),
        ("Versions", ", ".join(f"{name} {one}" for name, one in setting["versions"].items())),
    ]


def _commands(setting: Mapping[str, Any]) -> str:
    """The commands that give these rows; folders are left to who runs them."""
    common = {name: [str(setting[name])] for name in ("split", "seed", "model", "dtype")}
    if setting["answer_tokens"] is not None:
        common["answer-tokens"] = [str(setting["answer_tokens"])]
    commands = []
    for run in setting["runs"]:
        options = {
            "dataset": run["datasets"],
            "scenario": run["scenarios"],
            "tokens": map(str, run["lengths"]),
            "limit": [str(run["limit"])],
            **common,
        }
        values = {name: ",".join(each) for name, each in options.items()}
        said = (f"--{name} {shlex.quote(value)}" for name, value in values.items() if value)
        commands.append(" ".join(["semshare eval run", *said]))
    return "\n".join(commands)


def _section(at: int, group: Group, summaries: list[Summary], rows: Sequence[Row]) -> Section:
    mapped = (
        token_map(row.example, row.sources)
        for row in rows
        if row.method == OURS
        and row.sources
        and (row.dataset, row.scenario, row.length) == (group.dataset, group.scenario, group.length)
    )
    return Section(
        anchor=f"group-{at}",
        title=title(group),
        headline=tuple(headline(summaries)),
        glance=glance(summaries),
        frontiers=(
            frontier_plot(group, summaries, COMPUTED, name=f"frontier-{at}"),
            frontier_plot(group, summaries, FIRST_TOKEN, name=f"speed-{at}"),
        ),
        table=table_of(summaries),
        divergence=divergence_plot(group, summaries, name=f"divergence-{at}"),
        tokens=next(mapped, None),
    )
