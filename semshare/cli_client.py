"""Commands that ask a running service, `match` and `complete --url`, and what all such share.

These and the commands of `cli_donors` and `cli_top` end with 0 once it is done, with 2 where the
service or the command explains an error, and with 3 where there was no answer for now: no
connection, still loading, busy or full, too slow. The same command may succeed after 3, and not
after 2.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer
from rich.console import Console
from rich.text import Text

from semshare.cli_options import (
    Chat,
    Json,
    Mode,
    PolicyFields,
    PromptArgument,
    as_prompt,
    parse_policy,
    read_prompt,
)
from semshare.cli_output import emit, say
from semshare.config import DEFAULT_NAMESPACE
from semshare.errors import PoolExhausted, StepFailed
from semshare.token_map import print_counts, token_map
from semshare.types import GenerateOptions, Prompt

if TYPE_CHECKING:
    from semshare_service.client import Client, Completion

NO_ANSWER = 3
LOCAL_SERVICE = "http://127.0.0.1:8765"
_CONTROLS = {
    code: "\N{REPLACEMENT CHARACTER}"
    for code in (*range(32), *range(127, 160))
    if chr(code) not in "\n\t"
}

Url: TypeAlias = Annotated[str, typer.Option(help="Address of the service.")]
ApiKey: TypeAlias = Annotated[
    str | None,
    typer.Option(
        help="Key of a tenant; better in SEMSHARE_API_KEY, which no list of processes shows."
    ),
]
Namespace: TypeAlias = Annotated[str, typer.Option(help="Part of the tenant's donors.")]


@contextmanager
def connected(url: str, api_key: str | None) -> Iterator[Client]:
    """A client of the service, whose absence ends the command with `NO_ANSWER`."""
    from semshare_service.client import NO_RETRIES, Client  # noqa: PLC0415 - aiohttp takes a while
    from semshare_service.errors import (  # noqa: PLC0415
        QueueFull,
        RequestTimedOut,
        ServiceUnavailable,
    )

    try:
        # Without further tries: whoever sits at the terminal hears at once.
        with Client(url, api_key=api_key, retries=NO_RETRIES) as client:
            yield client
    except (QueueFull, RequestTimedOut, ServiceUnavailable, PoolExhausted, StepFailed) as error:
        typer.echo(f"semshare: {error}", err=True)
        raise typer.Exit(NO_ANSWER) from None


def match(
    prompt: PromptArgument = None,
    mode: Mode = None,
    policy: PolicyFields = None,
    chat: Chat = False,
    url: Url = LOCAL_SERVICE,
    api_key: ApiKey = None,
    namespace: Namespace = DEFAULT_NAMESPACE,
    json_output: Json = False,
) -> None:
    """Show which tokens of a prompt a running service would reuse. Nothing is computed."""
    reuse = parse_policy(mode, policy)
    wanted = as_prompt(read_prompt(prompt), chat)
    with connected(url, api_key) as client:
        found = client.inspect(wanted, policy=reuse, namespace=namespace)
    record = asdict(found.match)
    pieces = [asdict(piece) for piece in found.pieces]
    if json_output:
        emit(record | {"pieces": pieces})
        return
    console = Console()
    runs = [{**piece, "start": at, "end": at + 1} for at, piece in enumerate(pieces)]
    texts = [harmless(piece["text"]) for piece in pieces]
    console.print(token_map(runs, texts, coloured=console.is_terminal))
    console.print()
    print_counts(console, record, {})
    reasons: Counter[str] = Counter()
    for run in found.match.spans:
        if run.reason is not None:
            reasons[run.reason] += run.end - run.start
    for reason, tokens in reasons.most_common():
        console.print(Text(f"{tokens} tokens fresh: {reason}"))


def complete_remotely(
    prompt: Prompt, options: GenerateOptions, *, url: str, api_key: str | None, json_output: bool
) -> None:
    """Answer a prompt by a running service, piece by piece; its provenance to standard error."""
    with connected(url, api_key) as client:
        if isinstance(prompt, str):
            stream = client.stream(prompt, **options)
        else:
            stream = client.stream_chat(prompt, **options)  # type: ignore[arg-type]  # of `as_prompt`
        with stream:
            for piece in stream:
                if not json_output:
                    # Through a pipe the answer goes as it is.
                    text = harmless(piece.text) if sys.stdout.isatty() else piece.text
                    typer.echo(text, nl=False)
    answer = stream.result
    if json_output:
        emit(_answer_record(answer))
        return
    typer.echo()
    say(summary(answer.timings.ttft_s, answer.reuse.tokens))


def harmless(text: str) -> str:
    """Somebody's text without the control characters that a terminal would obey."""
    return text.translate(_CONTROLS)


def summary(ttft_s: float, tokens: dict[str, int]) -> str:
    """An answer's provenance in a line."""
    counts = ", ".join(f"{count} {name}" for name, count in tokens.items() if count)
    return f"{ttft_s * 1000:.0f} ms to the first token; prompt: {counts}"


def _answer_record(answer: Completion) -> dict[str, Any]:
    """As `semshare complete` without a service has it, with what only a service knows."""
    return {
        "id": answer.id,
        "text": answer.text,
        "finish_reason": answer.finish_reason,
        "prompt_tokens": answer.prompt_tokens,
        "completion_tokens": answer.completion_tokens,
        **asdict(answer.reuse),
        "timings": {"queue_s": answer.queue_s, **asdict(answer.timings)},
        "model": answer.model,
    }
