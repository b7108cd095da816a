"""The report as one page: tables, plots and token maps, without scripts and without a network."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2

from semshare.evaluation.report.plots import by_length_plot, by_position_plot, frontier_plot
from semshare.evaluation.report.summary import OURS, QUALITIES, Group, Summary
from semshare.evaluation.report.tables import cost_table, frontier_lines, quality_table, title
from semshare.evaluation.rows import Row

_MEGABYTE = 1e6


@dataclass(frozen=True, slots=True)
class Plot:
    """A plot with its caption; or, without `svg`, the sentence that stands in its place."""

    caption: str
    svg: str = ""


@dataclass(frozen=True, slots=True)
class TokenMap:
    """Where the tokens of one prompt came from, in order: (source, count, share in percent)."""

    caption: str
    runs: list[tuple[str, int, float]]
    counts: dict[str, int]


@dataclass(frozen=True, slots=True)
class Section:
    """What is compared with each other, and how it came out. The last rows are no contenders."""

    title: str
    lines: list[str]
    plots: list[Plot]
    tokens: TokenMap | None
    quality: list[list[str]]
    costs: list[list[str]]
    contenders: int


def write_html(
    groups: dict[Group, list[Summary]],
    rows: Sequence[Row],
    setting: Mapping[str, Any],
    path: Path,
) -> None:
    """Write the page.

    Args:
        groups: of the rows.
        rows: of the run.
        setting: as `semshare.evaluation.run.run_evaluation` returns it.
        path: of the page.

    Raises:
        ModelNotAvailable: `matplotlib` is not installed.

    """
    template = resources.files(__package__).joinpath("report.html.j2").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    page = environment.from_string(template).render(
        setting=setting,
        rows=len(rows),
        sections=[
            _section(index, group, summaries, rows)
            for index, (group, summaries) in enumerate(groups.items())
        ],
        lengths=_length_plots(groups),
    )
    path.write_text(page, encoding="utf-8")


def _section(index: int, group: Group, summaries: list[Summary], rows: Sequence[Row]) -> Section:
    contenders = [one for one in summaries if one.kind == "contender"]
    others = [one for one in summaries if one.kind != "contender"]
    return Section(
        title=title(group),
        lines=frontier_lines(summaries),
        plots=_plots(index, summaries),
        tokens=_token_map(group, rows),
        quality=quality_table([*contenders, *others]),
        costs=cost_table([*contenders, *others]),
        contenders=len(contenders),
    )


def _plots(index: int, summaries: list[Summary]) -> list[Plot]:
    n = max(one.n for one in summaries)
    contenders = [one for one in summaries if one.kind == "contender"]
    plots = []
    for quality in QUALITIES:
        if any(quality.name in one.means for one in contenders):
            caption = f"{quality.label} against compute; n = {n}. The line is the frontier, hollow "
            plots.append(
                Plot(
                    caption + "marks are references and controls.",
                    frontier_plot(summaries, quality, f"g{index}-{quality.name}"),
                )
            )
    if any(max(one.kl_by_position) > 0 for one in contenders):
        plots.append(
            Plot(
                f"Divergence from full prefill by position; mean over n = {n}.",
                by_position_plot(summaries, f"g{index}-position"),
            )
        )
    return plots


def _token_map(group: Group, rows: Sequence[Row]) -> TokenMap | None:
    """Of the first example that `semshare` was measured on."""
    for row in rows:
        of_group = Group(row.dataset, row.scenario, row.length) == group
        if of_group and row.method == OURS and row.sources:
            counts: dict[str, int] = {}
            for source, count in row.sources:
                counts[source] = counts.get(source, 0) + count
            runs = [(name, count, 100 * count / row.tokens) for name, count in row.sources]
            return TokenMap(f"{row.tokens:,} tokens of {row.example}", runs, counts)
    return None


def _length_plots(groups: dict[Group, list[Summary]]) -> list[Plot]:
    """For scenarios that were run at several lengths."""
    by_scenario: dict[tuple[str, str], list[list[Summary]]] = {}
    for group, summaries in groups.items():
        by_scenario.setdefault((group.dataset, group.scenario), []).append(summaries)
    plots: list[Plot] = []
    for (dataset, scenario), lengths in by_scenario.items():
        if len(lengths) > 1:
            name = f"l{len(plots)}"
            what = f"{dataset} · {scenario}; n = {sum(several[0].n for several in lengths)}"
            times = _lines(lengths, lambda one: one.ttft_p50)
            own = _lines(lengths, lambda one: one.own_kv_bytes / _MEGABYTE)
            read = _lines(lengths, lambda one: one.kv_bytes / _MEGABYTE)
            plots += [
                Plot(
                    f"Time to first token by length, {what}.",
                    by_length_plot(times, "seconds to the first token", f"{name}-ttft"),
                ),
                Plot(
                    f"KV that a request holds by itself, {what}.",
                    by_length_plot(own, "own KV, MB", f"{name}-own"),
                ),
                Plot(
                    f"KV of the prompt that a decode step reads, {what}.",
                    by_length_plot(read, "KV read, MB", f"{name}-read"),
                ),
            ]
    if plots:
        return plots
    return [Plot("Each scenario was run at one length: there is nothing to draw by length.")]


def _lines(
    lengths: list[list[Summary]], value: Callable[[Summary], float]
) -> dict[str, list[tuple[float, float]]]:
    lines: dict[str, list[tuple[float, float]]] = {}
    for summaries in sorted(lengths, key=lambda several: several[0].group.length):
        for one in summaries:
            if one.kind == "contender" or one.method == "full":
                lines.setdefault(one.method, []).append((one.tokens, value(one)))
    return lines
