"""The report as markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from semshare.evaluation.report.summary import Group, Summary
from semshare.evaluation.report.tables import headline, table_of, title

_NOTES = """\
Every method served the same targets over the same donors. Fidelity (KL in nats a token, top-1) is
against the same model's full prefill over the same text, scored teacher-forced; `rerun` is what
rounding alone does. PGR is 1 for full prefill's likelihood of the gold text and 0 for that of no
context. In brackets: 95 % intervals by paired bootstrap over examples. Times are end to end from
text to first token, lookup and load counted."""


def write_markdown(
    groups: dict[Group, list[Summary]], setting: Mapping[str, Any], path: Path
) -> None:
    """A table for each group: contenders by compute, then references, controls and variants."""
    machine, versions = setting["machine"], setting["versions"]
    parts = [
        "# Evaluation",
        f"{setting['model']} in {setting['dtype']} on {machine['cpu']}, {machine['cores']} cores"
        f"{', AMX' if machine['amx'] else ''}; torch {versions['torch']}, transformers "
        f"{versions['transformers']}; split {setting['split']}, seed {setting['seed']}.",
        _NOTES,
    ]
    for group, summaries in groups.items():
        table = table_of(summaries)
        rows = [
            [row.method, *(f"{cell.value} {cell.interval}".strip() for cell in row.cells)]
            for row in (*table.contenders, *table.others)
        ]
        parts += [
            f"## {title(group)}",
            " ".join(headline(summaries)),
            markdown_table([["method", *table.columns], *rows]),
        ]
    path.write_text("\n\n".join(part for part in parts if part) + "\n", encoding="utf-8")


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells, the header first."""
    head, *body = (f"| {' | '.join(row)} |" for row in rows)
    return "\n".join([head, "|" + " --- |" * len(rows[0]), *body])
