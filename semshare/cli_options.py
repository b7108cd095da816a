"""Options that several commands of `semshare.cli` share, and the reading of their values."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import typer

from semshare.config import ReusePolicy
from semshare.errors import InvalidPolicy, InvalidRequest
from semshare.types import ChatMessage, Prompt

Json: TypeAlias = Annotated[
    bool, typer.Option("--json", help="End standard output with one JSON record.")
]
Model: TypeAlias = Annotated[str, typer.Option(help="Bundled name, local path or hub id.")]
Device: TypeAlias = Annotated[str, typer.Option(help="cpu or cuda.")]
Dtype: TypeAlias = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")]
Limit: TypeAlias = Annotated[int | None, typer.Option(min=1, help="Use only so many examples.")]
Repeats: TypeAlias = Annotated[int, typer.Option(min=1, help="Timed runs of each side.")]
SplitName: TypeAlias = Annotated[
    str, typer.Option(help="Which texts: test to report, val or train to tune.")
]
PromptArgument: TypeAlias = Annotated[
    str | None, typer.Argument(help="The prompt; from standard input where it is - or left out.")
]
Chat: TypeAlias = Annotated[
    bool, typer.Option("--chat", help="Prompt and donors are messages of a user.")
]
DonorFiles: TypeAlias = Annotated[
    list[Path] | None,
    typer.Option("--donor", exists=True, dir_okay=False, help="Text to remember. Repeatable."),
]
Mode: TypeAlias = Annotated[
    str | None, typer.Option(help="off, prefix, span or semantic; the default is semantic.")
]
PolicyFields: TypeAlias = Annotated[
    list[str] | None,
    typer.Option("--policy", metavar="FIELD=VALUE", help="Any ReusePolicy field. Repeatable."),
]


def parse_policy(mode: str | None, fields: list[str] | None) -> ReusePolicy:
    """A policy from `--mode` and `--policy FIELD=VALUE`, whose values are JSON or bare words."""
    values: dict[str, Any] = {} if mode is None else {"mode": mode}
    for field in fields or ():
        name, equals, value = field.partition("=")
        if not equals:
            raise InvalidPolicy(f"--policy {field!r}: write it as FIELD=VALUE")
        try:
            values[name] = json.loads(value)
        except ValueError:  # a bare word, as in selection=first_k
            values[name] = value
    return ReusePolicy.from_mapping(values)


def read_prompt(argument: str | None) -> str:
    """The prompt's text, from standard input where the argument does not hold it."""
    if argument is not None and argument != "-":
        return argument
    if sys.stdin.isatty():
        raise InvalidRequest("no prompt: give it as an argument or on standard input")
    return sys.stdin.read()


def read_donor(path: Path) -> str:
    """The text of a donor's file, which must be UTF-8."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"can't read the donor {path}: {error}") from None


def as_prompt(text: str, chat: bool) -> Prompt:
    """The text itself, or as the one message of a chat."""
    return [ChatMessage(role="user", content=text)] if chat else text
