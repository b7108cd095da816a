"""Which fields of a record docs/evaluation.md does not explain."""

from collections.abc import Iterable
from pathlib import Path


def undocumented(record: Iterable[str]) -> list[str]:
    text = (Path(__file__).parents[1] / "docs" / "evaluation.md").read_text(encoding="utf-8")
    return [name for name in record if f"`{name}`" not in text]
