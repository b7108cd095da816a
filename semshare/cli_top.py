"""`semshare top`: what a running service does, as a table that keeps itself up to date."""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from statistics import fmean, median
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console, Group
from rich.filesize import decimal
from rich.live import Live
from rich.table import Table
from rich.text import Text

from semshare.cli_client import LOCAL_SERVICE, ApiKey, Url, connected
from semshare.cli_options import Json
from semshare.cli_output import emit
from semshare.token_map import STYLES

if TYPE_CHECKING:
    from semshare_service.client import Client, Readiness, RequestRecord

_RECENT = 100  # requests that the rates are taken over
_SHOWN = 15  # of them that are listed
_QUIT_KEYS = ("q", "Q")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A service at one moment. `requests` are the latest ones, newest first."""

    url: str
    ready: Readiness
    requests: tuple[RequestRecord, ...]
    stats: Mapping[str, Any]

    @classmethod
    def take(cls, client: Client, url: str) -> Snapshot:
        """Ask the service. Only what is the key's own is told."""
        return cls(url, client.ready(), client.requests(limit=_RECENT), client.stats())

    def shares(self) -> dict[str, float]:
        """Of the requests' prompt tokens, by source; empty where there were no requests."""
        total = sum(request.prompt_tokens for request in self.requests)
        if not total:
            return {}
        return {
            source: sum(request.tokens[source] for request in self.requests) / total
            for source in STYLES
        }

    def ttft_s(self, *, reused: bool) -> float | None:
        """Median seconds to the first token, of requests with or without any reuse."""
        found = [
            request.ttft_s
            for request in self.requests
            if (request.tokens["fresh"] < request.prompt_tokens) == reused
        ]
        return median(found) if found else None

    def record(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "url": self.url,
            "ready": asdict(self.ready),
            "shares": self.shares(),
            "ttft_reused_s": self.ttft_s(reused=True),
            "ttft_fresh_s": self.ttft_s(reused=False),
            "stats": dict(self.stats),
            "requests": [asdict(request) for request in self.requests],
        }


def top(
    url: Url = LOCAL_SERVICE,
    api_key: ApiKey = None,
    namespace: Annotated[
        str | None, typer.Option(help="Only its requests; all of the tenant's by default.")
    ] = None,
    interval: Annotated[float, typer.Option(min=0.1, help="Seconds between updates.")] = 2.0,
    once: Annotated[bool, typer.Option("--once", help="Print it once and end.")] = False,
    json_output: Json = False,
) -> None:
    """Watch a running service: hit rates, first tokens, queue, memory, requests. q quits.

    Printed once where standard input or output is no terminal.
    """
    console = Console()
    with connected(url, api_key) as client:

        def take() -> Snapshot:
            return _of_namespace(Snapshot.take(client, url), namespace)

        if json_output:
            emit(take().record())
        elif once or not (console.is_terminal and sys.stdin.isatty()):
            console.print(render(take()))
        else:
            with _keys() as pressed:
                watch(console, take, lambda: pressed(interval))


def watch(console: Console, take: Callable[[], Snapshot], pressed: Callable[[], str]) -> None:
    """Show a snapshot after the other until a key is pressed that quits.

    pressed: waits a while for a key; returns an empty string where there was none.
    """
    with Live(render(take()), console=console, screen=True, auto_refresh=False) as live:
        while pressed() not in _QUIT_KEYS:
            live.update(render(take()), refresh=True)


def render(snapshot: Snapshot) -> Group:
    """The tables of a snapshot."""
    ready = snapshot.ready
    head = Text.assemble(
        (ready.model or "no model", "bold"),
        f"  {snapshot.url}  ",
        (ready.status, "green" if ready.ready else "bold red"),
        f"  queue {ready.waiting} of {ready.queue_limit}",
        "" if ready.reason is None else f"  {ready.reason}",
    )
    return Group(head, Text(), _rates(snapshot), Text(), _stats(snapshot), Text(), _list(snapshot))


def _rates(snapshot: Snapshot) -> Table:
    requests = snapshot.requests
    table = Table(box=None, pad_edge=False, show_header=False)
    shares = Text(", ").join(
        Text(f"{source} {share:.1%}", style=STYLES[source])
        for source, share in snapshot.shares().items()
    )
    table.add_row(f"prompt tokens of {len(requests)} requests", shares if requests else "–")
    fraction = fmean(request.compute_fraction for request in requests) if requests else None
    table.add_row("compute fraction", "–" if fraction is None else f"{fraction:.3f}")
    table.add_row("first token with reuse", _milliseconds(snapshot.ttft_s(reused=True)))
    table.add_row("first token without", _milliseconds(snapshot.ttft_s(reused=False)))
    return table


def _stats(snapshot: Snapshot) -> Table:
    """Every number the service tells, under the names it tells them by, and memory by tier."""
    table = Table(box=None, pad_edge=False, show_header=False)
    for name, value in _leaves(snapshot.stats):
        table.add_row(Text(name), Text(_number(name, value)))
    for tier in (snapshot.stats.get("storage") or {}).get("tiers", ()):
        used = "–" if tier["used_bytes"] is None else decimal(tier["used_bytes"])
        table.add_row(Text(f"storage.{tier['name']}"), f"{used} of {decimal(tier['budget_bytes'])}")
    return table


def _number(name: str, value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1e6 else f"{value:.0f}"
    return decimal(value) if name.startswith("pool.") else str(value)


def _leaves(stats: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Plain values with their paths; lists, which are for charts, left out."""
    for name, value in stats.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{name}.")
        elif not isinstance(value, list):
            yield f"{prefix}{name}", value


def _list(snapshot: Snapshot) -> Table:
    table = Table(
        *("request", "route", "namespace", "prompt", "answer"),
        *("computed", "mode", "exact", "first token", "queued"),
        box=None,
        pad_edge=False,
    )
    for request in snapshot.requests[:_SHOWN]:
        table.add_row(
            Text(request.id),
            Text(request.route),
            Text(request.namespace),
            str(request.prompt_tokens),
            str(request.completion_tokens),
            f"{request.compute_fraction:.1%}",
            Text(request.mode),
            "yes" if request.exact else "no",
            _milliseconds(request.ttft_s),
            _milliseconds(request.queue_s),
        )
    return table


def _milliseconds(seconds: float | None) -> str:
    return "–" if seconds is None else f"{seconds * 1000:.0f} ms"


def _of_namespace(snapshot: Snapshot, namespace: str | None) -> Snapshot:
    if namespace is None:
        return snapshot
    own = tuple(request for request in snapshot.requests if request.namespace == namespace)
    return Snapshot(snapshot.url, snapshot.ready, own, snapshot.stats)


@contextmanager
def _keys() -> Iterator[Callable[[float], str]]:
    """A function that waits so many seconds for a key of the terminal."""
    import termios  # noqa: PLC0415 - only where there is a terminal
    import tty  # noqa: PLC0415

    terminal = sys.stdin.fileno()
    before = termios.tcgetattr(terminal)
    tty.setcbreak(terminal)

    def pressed(seconds: float) -> str:
        readable, _, _ = select.select([terminal], [], [], seconds)
        return os.read(terminal, 1).decode("latin-1") if readable else ""

    try:
        yield pressed
    finally:
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)
