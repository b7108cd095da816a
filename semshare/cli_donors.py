"""`semshare donors`: what a running service keeps, and changes to it."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime
from typing import Annotated, Any, TypeAlias

import typer
from rich.filesize import decimal

from semshare.cli_client import LOCAL_SERVICE, ApiKey, Namespace, Url, connected, harmless
from semshare.cli_options import Chat, Json, PromptArgument, as_prompt, read_prompt
from semshare.cli_output import emit, print_rows, say
from semshare.config import DEFAULT_NAMESPACE
from semshare.errors import InvalidRequest
from semshare.types import DonorInfo

DonorId: TypeAlias = Annotated[str, typer.Argument(help="The donor's id, as `list` shows it.")]

donor_commands = typer.Typer(help="The donors of a running service.", no_args_is_help=True)


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
    typer.echo(f"\n{harmless(found.text)}")


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
