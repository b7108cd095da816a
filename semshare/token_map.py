"""A prompt in the terminal, its tokens coloured by where their KV comes from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.text import Text

STYLES = {"prefix": "green", "span": "cyan", "fuzzy": "yellow", "fresh": "bold red"}


def print_plan(
    console: Console,
    record: Mapping[str, Any],
    texts: Sequence[str],
    donor_names: Mapping[str, str],
) -> None:
    """Print the map of tokens, then what it comes to.

    record:      the body of `POST /v1/match`.
    texts:       the text of each token, in order.
    donor_names: what to call donors, by id.
    """
    console.print(token_map(record["spans"], texts, coloured=console.is_terminal))
    console.print()
    print_counts(console, record, donor_names)


def print_counts(
    console: Console, record: Mapping[str, Any], donor_names: Mapping[str, str]
) -> None:
    """Print what a plan comes to: tokens by source and by donor; arguments as of `print_plan`."""
    tokens = record["prompt_tokens"]
    for source, count in record["tokens"].items():
        if count:
            share = Text(f"{source:7}{count:6} of {tokens} tokens", style=STYLES[source])
            console.print(share)
    for donor, count in _by_donor(record["spans"]).items():
        console.print(Text(f"{count} tokens from {donor_names.get(donor, donor)}"))
    console.print(Text(f"compute fraction {record['compute_fraction']:.3f}, as planned"))


def token_map(spans: Sequence[Mapping[str, Any]], texts: Sequence[str], *, coloured: bool) -> Text:
    """The prompt's text; without colours, each change of source is written in brackets."""
    result = Text()
    previous = None
    for span in spans:
        source = span["source"]
        if not coloured and source != previous:
            result.append(f"[{source}]")
        result.append("".join(texts[span["start"] : span["end"]]), style=STYLES[source])
        previous = source
    return result


def _by_donor(spans: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for span in spans:
        if span["donor"] is not None:
            counts[span["donor"]] = counts.get(span["donor"], 0) + span["end"] - span["start"]
    return counts
