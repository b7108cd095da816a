"""What commands print: one JSON record, or tables for a person."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import typer
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from semshare.evaluation.progress import status_line


def starting() -> AbstractContextManager[object]:
    """Shown while torch and its like are imported, which takes seconds."""
    return status_line("starting…")


def show(record: Mapping[str, Any], json_output: bool) -> None:
    """A record as JSON, or its plain fields as a table."""
    if json_output:
        emit(record)
        return
    table = Table("field", "value", box=None, pad_edge=False)
    for name, value in record.items():
        if not isinstance(value, (list, dict)):
            table.add_row(name, str(value))
    Console().print(table)


def show_parts(record: Mapping[str, Any], json_output: bool) -> None:
    """A record of records."""
    if json_output:
        emit(record)
        return
    for name, part in record.items():
        if name not in ("machine", "versions"):
            say(name)
            show(part, json_output)


def print_rows(rows: Sequence[Mapping[str, Any]]) -> None:
    """Records with the same fields, one a line."""
    # Folded, since a name that is cut off can't be typed.
    table = Table(*(Column(name, overflow="fold") for name in rows[0]), box=None, pad_edge=False)
    for row in rows:
        table.add_row(*(Text(str(value)) for value in row.values()))
    Console().print(table)


def emit(record: Mapping[str, Any]) -> None:
    """A record on a line of its own."""
    typer.echo(json.dumps(record))


def say(text: str) -> None:
    """A remark, on standard error."""
    Console(stderr=True).print(text, style="dim", highlight=False)
