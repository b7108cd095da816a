"""Where a prompt's tokens came from, as lines of coloured blocks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

Run: TypeAlias = tuple[str, int]  # the source of neighbouring tokens, and how many they are

SOURCES = {
    "fresh": "computed for this prompt",
    "prefix": "the same tokens from the start",
    "span": "the same token elsewhere",
    "fuzzy": "another token of similar meaning",
}
_LONG = 1500  # tokens, from which on single ones would be too narrow to see
_SHORT_LINE, _LONG_LINE = 100, 500  # tokens


@dataclass(frozen=True, slots=True)
class TokenMap:
    """One prompt.

    example:  which.
    tokens:   of it.
    counts:   tokens of each source, in the order of `SOURCES`.
    lines:    its runs, cut into lines of `per_line` tokens; the last may be shorter.
    is_dense: whether single tokens are too narrow to be told apart.
    """

    example: str
    tokens: int
    counts: tuple[Run, ...]
    lines: tuple[tuple[Run, ...], ...]
    per_line: int
    is_dense: bool


def token_map(example: str, sources: Sequence[Run]) -> TokenMap:
    """The map of a row's `sources`: runs of [name, count] in the prompt's order."""
    counts: Counter[str] = Counter()
    for name, count in sources:
        counts[name] += count
    tokens = counts.total()
    is_dense = tokens > _LONG
    per_line = _LONG_LINE if is_dense else _SHORT_LINE
    return TokenMap(
        example=example,
        tokens=tokens,
        counts=tuple((name, counts[name]) for name in SOURCES),
        lines=wrap(sources, per_line),
        per_line=per_line,
        is_dense=is_dense,
    )


def wrap(runs: Sequence[Run], width: int) -> tuple[tuple[Run, ...], ...]:
    """Runs cut where a line of `width` tokens is full; all but the last line are."""
    lines: list[list[Run]] = []
    room = 0
    for name, count in runs:
        left = count
        while left:
            if not room:
                lines.append([])
                room = width
            taken = min(left, room)
            lines[-1].append((name, taken))
            left -= taken
            room -= taken
    return tuple(map(tuple, lines))
