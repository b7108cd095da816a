"""Reports made from the rows of a run: JSON, markdown, and a page with plots."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from semshare.evaluation.report.html import write_html
from semshare.evaluation.report.markdown import write_markdown
from semshare.evaluation.report.summary import Group, Summary, summarize
from semshare.evaluation.rows import Row

__all__ = ["write_report"]


def write_report(rows: Sequence[Row], setting: Mapping[str, Any], folder: Path) -> Path:
    """Write `report.json`, `report.md` and `report.html` into a folder.

    Args:
        rows: of a run, complete or not.
        setting: as `semshare.evaluation.run.run_evaluation` returns it.
        folder: exists.

    Returns:
        The page.

    Raises:
        ModelNotAvailable: `matplotlib` is not installed.

    """
    groups = summarize(rows)
    _write_json(groups, setting, folder / "report.json")
    write_markdown(groups, setting, folder / "report.md")
    page = folder / "report.html"
    write_html(groups, rows, setting, page)
    return page


def _write_json(groups: dict[Group, list[Summary]], setting: Mapping[str, Any], path: Path) -> None:
    summaries = [asdict(one) for several in groups.values() for one in several]
    record = {**setting, "summaries": summaries}
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
