"""Commands that ask a running service: `donors`, `match`, and `complete --url`.

They end with 0 once it is done, with 2 where the service or this command explains an error, and
with 3 where there was no answer for now: no connection, still loading, busy, too slow. A script may
try again after 3, and never needs to after 2.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer
from rich.console import Console
from rich.filesize import decimal
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
from semshare.cli_output import emit, print_rows, say
from semshare.config import DEFAULT_NAMESPACE
from semshare.errors import InvalidRequest
from semshare.token_map import print_counts, token_map
from semshare.types import DonorInfo, GenerateOptions, Prompt

if TYPE_CHECKING:
    from semshare_service.client import Client, Completion

NO_ANSWER = 3
LOCAL_SERVICE = "http://127.0.0.1:8765"

Url: TypeAlias = Annotated[str, typer.Option(help="Address of the service.")]
ApiKey: TypeAlias = Annotated[
    str | None,
    typer.Option(
        help="Key of a tenant; better in SEMSHARE_API_KEY, which no list of processes shows."
    ),
]
Namespace: TypeAlias = Annotated[str, typer.Option(help="Part of the tenant's donors.")]
DonorId: TypeAlias = Annotated[str, typer.Argument(help="The donor's id, as `list` shows it.")]

donor_commands = typer.Typer(help="The donors of a running service.", no_args_is_help=True)


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
    except (QueueFull, RequestTimedOut, ServiceUnavailable) as error:
        typer.echo(f"semshare: {error}", err=True)
        raise typer.Exit(NO_ANSWER) from None


@donor_commands.command("list")
def list_donors(
    url: Url = LOCAL_SERVICE,
    api_key: ApiKey = None,
    namespace: Namespace = DEFAULT_NAMESPACE,
    json_output: Json = False,
) -> None:
    """All donors of a namespace, oldest first."""
    with connected(url, api_key) as client:
        found = list(client.all_donors(namespace=namespace))
    if json_output:
        emit({"donors": [asdict(donor) for donor in found]})
    elif found:
        print_rows([_readable(donor) for donor in found])
    else:
        say(f"no donors in namespace {namespace}")


@donor_commands.command("put")
def put_donor(
    prompt: PromptArgument = None,
    pinned: Annotated[bool, typer.Option("--pinned", help="Never evicted.")] = False,
    ttl: Annotated[float | None, typer.Option(help="Seconds until it expires.")] = None,
    chat: Chat = False,
    url: Url = LOCAL_SERVICE,
    api_key: ApiKey = None,
    namespace: Namespace = DEFAULT_NAMESPACE,
    json_output: Json = False,
) -> None:
    """Let the service compute a text in full and keep it."""
    text = as_prompt(read_prompt(prompt), chat)
    with connected(url, api_key) as client:
        _show(client.remember(text, namespace=namespace, pinned=pinned, ttl_s=ttl), json_output)


@donor_commands.command("show")
def show_donor(
    donor: DonorId,
    url: Url = LOCAL_SERVICE,
    api_key: ApiKey = None,
    namespace: Namespace = DEFAULT_NAMESPACE,
    json_output: Json = False,
) -> None:
    """A donor and its text."""
    with connected(url, api_key) as client:
        found = client.donor(donor, namespace=namespace)
    if json_output:
        emit({**asdict(found.donor), "text": found.text})
        return
    print_rows([_readable(found.donor)])
    typer.echo(f"\n{found.text}")


@donor_commands.command()
def pin(
    donor: DonorId,
    url: Url = LOCAL_SERVICE,
    api_key: ApiKey = None,
    namespace: Namespace = DEFAULT_NAMESPACE,
    json_output: Json = False,
) -> None:
    """Keep a donor however full the memory is."""
    with connected(url, api_key) as client:
        _show(client.update_donor(donor, namespace=namespace, pinned=True), json_output)


@donor_commands.command()
def unpin(
    donor: DonorId,
    url: Url = LOCAL_SERVICE,
    api_key: ApiKey = None,
    namespace: Namespace = DEFAULT_NAMESPACE,
    json_output: Json = False,
) -> None:
    """Let a donor be evicted again."""
    with connected(url, api_key) as client:
        _show(client.update_donor(donor, namespace=namespace, pinned=False), json_output)


@donor_commands.command("ttl")
def expire(
    donor: DonorId,
    seconds: Annotated[str, typer.Argument(help="From now on, or never.")],
    url: Url = LOCAL_SERVICE,
    api_key: ApiKey = None,
    namespace: Namespace = DEFAULT_NAMESPACE,
    json_output: Json = False,
) -> None:
    """Let a donor expire after so many seconds, or never."""
    ttl_s = _ttl_s(seconds)
    with connected(url, api_key) as client:
        _show(client.update_donor(donor, namespace=namespace, ttl_s=ttl_s), json_output)


@donor_commands.command()
def delete(
    donor: DonorId,
    url: Url = LOCAL_SERVICE,
    api_key: ApiKey = None,
    namespace: Namespace = DEFAULT_NAMESPACE,
    json_output: Json = False,
) -> None:
    """Drop a donor."""
    with connected(url, api_key) as client:
        client.forget(donor, namespace=namespace)
    if json_output:
        emit({"id": donor, "deleted": True})


@donor_commands.command()
def publish(
    donor: DonorId,
    tenant: Annotated[str | None, typer.Option(help="Whose donor; your own by default.")] = None,
    url: Url = LOCAL_SERVICE,
    api_key: ApiKey = None,
    namespace: Namespace = DEFAULT_NAMESPACE,
    json_output: Json = False,
) -> None:
    """Let all tenants find a donor; needs an operator's key."""
    with connected(url, api_key) as client:
        _show(client.publish_donor(donor, namespace=namespace, tenant=tenant), json_output)


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
    texts = [piece["text"] for piece in pieces]
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
                    typer.echo(piece.text, nl=False)
    answer = stream.result
    if json_output:
        emit(_answer_record(answer))
        return
    typer.echo()
    say(summary(answer.timings.ttft_s, answer.reuse.tokens))


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


def _show(donor: DonorInfo, json_output: bool) -> None:
    if json_output:
        emit(asdict(donor))
    else:
        print_rows([_readable(donor)])


def _readable(donor: DonorInfo) -> dict[str, Any]:
    """A donor's fields as a person reads them."""
    times = ("created", "last_used", "expires")
    fields = asdict(donor)
    for name, value in fields.items():
        if name == "bytes":
            fields[name] = decimal(value)
        elif name in times:
            fields[name] = "never" if value is None else _local_time(value)
        elif isinstance(value, bool):
            fields[name] = "yes" if value else "no"
    return fields


def _local_time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).astimezone().isoformat(" ", "seconds")


def _ttl_s(seconds: str) -> float | None:
    if seconds == "never":
        return None
    try:
        return float(seconds)
    except ValueError:
        raise InvalidRequest(f"ttl is {seconds!r}: give seconds, or never") from None
