"""The report as markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from semshare.evaluation.report.summary import Group, Summary
from semshare.evaluation.report.tables import cost_table, frontier_lines, quality_table, title

_NOTES = """\
Every method served the same targets over the same donors. Fidelity (KL in nats a token, top-1) is
against the same model's full prefill over the same text, scored teacher-forced; `rerun` is what
rounding alone does. PGR is 1 for full prefill's likelihood of the gold text and 0 for that of no
context. In brackets: 95 % intervals by paired bootstrap over examples. Times are end to end from
text to first token, lookup and load counted."""


def write_markdown(
    groups: dict[Group, list[Summary]], setting: Mapping[str, Any], path: Path
) -> None:
    """Tables for each group: contenders first, then references and controls."""
    machine, versions = setting["machine"], setting["versions"]
    parts = [
        "# Evaluation",
        f"{setting['model']} in {setting['dtype']} on {machine['cpu']}, {machine['cores']} cores"
        f"{', AMX' if machine['amx'] else ''}; torch {versions['torch']}, transformers "
        f"{versions['transformers']}; split {setting['split']}, seed {setting['seed']}.",
        _NOTES,
    ]
    for group, summaries in groups.items():
        contenders = [one for one in summaries if one.kind == "contender"]
        others = [one for one in summaries if one.kind != "contender"]
        parts += [
            f"## {title(group)}",
            "\n".join(f"- {line}" for line in frontier_lines(summaries)),
            markdown_table(quality_table([*contenders, *others])),
            markdown_table(cost_table([*contenders, *others])),
        ]
    path.write_text("\n\n".join(part for part in parts if part) + "\n", encoding="utf-8")


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells, the header first."""
    head, *body = (f"| {' | '.join(row)} |" for row in rows)
    return "\n".join([head, "|" + " --- |" * len(rows[0]), *body])
