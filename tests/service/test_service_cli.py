"""The commands that ask a running service: what they print, what they send, how they end."""

from __future__ import annotations

import asyncio
import io
import json
import os
import pty
import socket
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from contract_app import PIECES, REQUEST, STATS, Contract, listening_in_a_thread
from rich.console import Console

from semshare import cli_top
from semshare.cli import main
from semshare.cli_client import harmless
from semshare.cli_top import Snapshot, render, watch
from semshare_service.client import Client, Readiness, RequestRecord

Run = Callable[..., tuple[int, str, str]]
READY = Readiness(True, "ready", "fake", 1024, 2, 32, True, None)


@pytest.fixture
def contract() -> Contract:
    return Contract(left=asyncio.Event())


@pytest.fixture
def url(contract: Contract) -> Iterator[str]:
    with listening_in_a_thread(contract) as address:
        yield address


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs the command in this process; returns exit code, standard output and error."""
    monkeypatch.setenv("COLUMNS", "200")

    def command(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        output, error = capsys.readouterr()
        code = caught.value.code
        return (0 if code is None else int(code)), output, error

    return command


def record(output: str) -> dict[str, Any]:
    found = json.loads(output.splitlines()[-1])
    assert isinstance(found, dict)
    return found


def test_donors_list(run: Run, url: str, contract: Contract) -> None:
    arguments = ("donors", "list", "--url", url, "--namespace", "n", "--api-key", "k")
    code, output, _ = run(*arguments, "--json")
    assert code == 0
    assert [donor["id"] for donor in record(output)["donors"]] == ["d0", "d1", "d2", "d3", "d4"]
    assert contract.seen[0].headers["Authorization"] == "Bearer k"
    assert "namespace=n" in contract.seen[0].path
    code, output, _ = run(*arguments)
    assert (code, output.count("\n")) == (0, 6)
    assert "600 bytes" in output


@pytest.mark.parametrize(
    ("arguments", "method", "path", "body"),
    [
        (
            ["put", "A text", "--pinned", "--ttl", "60"],
            "PUT",
            "/v1/donors",
            {"text": "A text", "namespace": "n", "pinned": True, "ttl_s": 60.0},
        ),
        (["pin", "d0"], "PATCH", "/v1/donors/d0?namespace=n", {"pinned": True}),
        (["unpin", "d0"], "PATCH", "/v1/donors/d0?namespace=n", {"pinned": False}),
        (["ttl", "d0", "90"], "PATCH", "/v1/donors/d0?namespace=n", {"ttl_s": 90.0}),
        (["ttl", "d0", "never"], "PATCH", "/v1/donors/d0?namespace=n", {"ttl_s": None}),
        (["delete", "d0"], "DELETE", "/v1/donors/d0?namespace=n", b""),
        (
            ["publish", "d0", "--tenant", "t"],
            "POST",
            "/v1/donors/d0/publish?namespace=n&tenant=t",
            b"",
        ),
    ],
)
def test_donors_are_changed(
    run: Run, url: str, contract: Contract, arguments: list[str], method: str, path: str, body: Any
) -> None:
    where = ("--url", url, "--namespace", "n")
    code, output, _ = run("donors", *arguments, *where, "--json")
    assert (code, record(output)["id"]) == (0, "d0")
    seen = contract.seen[-1]
    assert (seen.method, seen.path, seen.body) == (method, path, body)
    assert run("donors", *arguments, *where)[0] == 0


def test_donors_show(run: Run, url: str) -> None:
    code, output, _ = run("donors", "show", "d0", "--url", url)
    assert (code, output.splitlines()[-1]) == (0, "The ferry")
    assert record(run("donors", "show", "d0", "--url", url, "--json")[1])["text"] == "The ferry"


def test_texts_of_others_don_t_reach_the_terminal_as_commands() -> None:
    assert harmless("a\tb\n\x1b]0;title\x07 é 🛥 \x9b31m\r") == "a\tb\n�]0;title� é 🛥 �31m�"


def test_match(run: Run, url: str, contract: Contract, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("The ferry leaves"))
    code, output, _ = run("match", "-", "--mode", "span", "--url", url)
    assert code == 0
    assert output.startswith("[prefix]The [ferry][fresh] leaves\n")
    assert "prefix      4 of 6 tokens" in output
    assert "4 tokens from d0" in output
    assert "2 tokens fresh: fact" in output
    sent = contract.seen[0].body
    assert (sent["text"], sent["semshare"]["mode"]) == ("The ferry leaves", "span")
    code, output, _ = run("match", "x", "--url", url, "--json", "--chat")
    assert record(output)["pieces"] == PIECES
    assert contract.seen[1].body["messages"] == [{"role": "user", "content": "x"}]


def test_complete_streams(run: Run, url: str, contract: Contract) -> None:
    arguments = ("complete", "Ahoy", "--url", url, "--namespace", "n", "--max-tokens", "4")
    code, output, error = run(*arguments, "--chat")
    assert (code, output) == (0, "Ahoy you\n")
    assert "500 ms to the first token; prompt: 2 fresh, 4 prefix" in error
    sent = contract.seen[0].body
    assert (sent["max_tokens"], sent["semshare"]["namespace"], sent["stream"]) == (4, "n", True)
    assert sent["messages"] == [{"role": "user", "content": "Ahoy"}]
    code, output, _ = run(*arguments, "--json")
    found = record(output)
    assert (code, output.count("\n"), found["text"]) == (0, 1, "one, two")
    assert (found["tokens"]["prefix"], found["timings"]["queue_s"]) == (4, 0.5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["complete", "x", "--url", "http://u", "--device", "cuda"], "leave out --url"),
        (["complete", "x", "--namespace", "n"], "add --url"),
        (["complete", "x", "--api-key", "k"], "add --url"),
        (["donors", "ttl", "d0", "soon"], "ttl is 'soon'"),
        (["match", "x", "--mode", "fast"], "policy.mode is 'fast'"),
        (["donors", "list", "--api-key", "two words"], "SEMSHARE_API_KEY"),
    ],
)
def test_what_can_t_be_asked(run: Run, arguments: list[str], message: str) -> None:
    code, output, error = run(*arguments)
    assert (code, output, error.count("\n")) == (2, "", 1)
    assert error.startswith("semshare: ")
    assert message in error


@pytest.mark.parametrize(
    "arguments",
    [["donors", "list"], ["match", "x"], ["complete", "x"], ["top"], ["top", "--json"]],
)
def test_no_answer_for_now(run: Run, url: str, contract: Contract, arguments: list[str]) -> None:
    contract.refusals.append((429, {"Retry-After": "5"}))
    code, output, error = run(*arguments, "--url", url)
    assert (code, output, error) == (3, "", "semshare: come back later\n")
    with socket.socket() as taken:  # bound and not listening: connections are refused
        taken.bind(("127.0.0.1", 0))
        code, _, error = run(*arguments, "--url", f"http://127.0.0.1:{taken.getsockname()[1]}")
    assert code == 3
    assert "is `semshare serve` running there?" in error


def test_top_once(run: Run, url: str, contract: Contract) -> None:
    code, output, _ = run("top", "--url", url)
    assert code == 0
    assert output.startswith(f"fake  {url}  ready  queue 2 of 32\n")
    assert "fuzzy 0.0%, fresh 33.3%" in output
    assert "pool.donors      3.0 MB" in output
    assert "pool.free        –" in output
    assert "storage.waiting  2" in output
    assert "storage.disk     2.0 MB of 64.0 GB" in output
    assert "storage.redis    – of 8.0 GB" in output
    found = record(run("top", "--url", url, "--json")[1])
    assert found["shares"] == {"prefix": 4 / 6, "span": 0.0, "fuzzy": 0.0, "fresh": 2 / 6}
    assert found["stats"] == STATS
    assert found["requests"] == [REQUEST]
    other = record(run("top", "--url", url, "--json", "--namespace", "other")[1])
    assert (other["requests"], other["shares"], other["ttft_fresh_s"]) == ([], {}, None)


def request_like(fresh: int, ttft_s: float) -> RequestRecord:
    tokens = {"fresh": fresh, "prefix": 0, "span": 6 - fresh, "fuzzy": 0}
    return RequestRecord(**REQUEST | {"tokens": tokens, "ttft_s": ttft_s})


def test_top_tells_first_tokens_with_and_without_reuse_apart() -> None:
    requests = [(6, 4.0), (6, 2.0), (3, 0.5), (0, 1.0), (3, 0.25)]
    snapshot = Snapshot("u", READY, tuple(request_like(*one) for one in requests), {})
    assert (snapshot.ttft_s(reused=False), snapshot.ttft_s(reused=True)) == (3.0, 0.5)
    assert snapshot.shares() == {"prefix": 0.0, "span": 0.4, "fuzzy": 0.0, "fresh": 0.6}


def test_top_of_a_service_that_has_answered_nothing() -> None:
    console = Console(file=io.StringIO(), width=100)
    loading = Readiness(False, "loading", None, None, 0, 32, False, "half way")
    console.print(render(Snapshot("u", loading, (), {})))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert shown.startswith("no model  u  loading  queue 0 of 32  half way\n")
    assert "prompt tokens of 0 requests" in shown


def test_top_goes_on_until_a_key_quits() -> None:
    taken = []

    def take() -> Snapshot:
        taken.append(None)
        return Snapshot("u", READY, (), {"round": len(taken)})

    keys = iter(["", "x", "q"])
    console = Console(file=io.StringIO(), force_terminal=True, width=80, height=20)
    watch(console, take, lambda: next(keys))
    assert len(taken) == 3  # one to begin with, one for each key that does not quit
    assert next(keys, None) is None


def test_top_reads_keys_of_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = pty.openpty()
    with os.fdopen(ours, "r+b", buffering=0) as keyboard, os.fdopen(theirs) as terminal:
        monkeypatch.setattr(sys, "stdin", terminal)
        with cli_top._keys() as pressed:
            assert pressed(0.0) == ""
            keyboard.write(b"q")
            assert pressed(60.0) == "q"  # without a new line


def test_a_snapshot_is_what_the_service_tells(url: str) -> None:
    with Client(url) as client:
        snapshot = Snapshot.take(client, url)
    assert (snapshot.ready, snapshot.requests) == (READY, (RequestRecord(**REQUEST),))
