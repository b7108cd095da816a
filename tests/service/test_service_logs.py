"""One line a request, with its id everywhere, and never a prompt."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
from aiohttp.test_utils import TestClient
from fake_engine import FakeEngine

from semshare_service.logs import JsonFormatter, TextFormatter

MARKER = "xylophone"


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    """Everything that is logged, from debug on, as JSON lines."""
    stream = io.StringIO()
    handler, root = logging.StreamHandler(stream), logging.getLogger()
    handler.setFormatter(JsonFormatter())
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    yield stream
    root.setLevel(level)
    root.removeHandler(handler)


def records(lines: io.StringIO, logger: str) -> list[dict[str, Any]]:
    parsed = [json.loads(line) for line in lines.getvalue().splitlines()]
    return [record for record in parsed if record["logger"] == logger]


async def test_one_access_line_a_request(client: TestClient, lines: io.StringIO) -> None:
    headers = {"X-Request-Id": "my-id"}
    body = {"prompt": "twelve chars", "max_tokens": 2}
    async with client.post("/v1/completions", json=body, headers=headers) as response:
        assert response.status == 200
    (line,) = records(lines, "semshare_service.access")
    assert line.pop("seconds") >= 0
    assert line.pop("time").endswith("+00:00")
    assert line == {
        "level": "info",
        "logger": "semshare_service.access",
        "message": "request",
        "request_id": "my-id",
        "method": "POST",
        "route": "/v1/completions",
        "status": 200,
        "tenant": "",
        "tokens_fresh": 6,
        "tokens_prefix": 4,
        "tokens_span": 2,
        "tokens_fuzzy": 0,
        "completion_tokens": 2,
    }


async def test_the_workers_threads_log_under_the_requests_id(
    client: TestClient, engine: FakeEngine, lines: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    def logging_donors(**_: object) -> list[Any]:
        logging.getLogger("inside").warning("here")
        return []

    monkeypatch.setattr(engine, "donors", logging_donors)
    async with client.get("/v1/donors", headers={"X-Request-Id": "of-worker"}) as response:
        assert response.status == 200
    async with client.get("/health") as response:  # over the same connection, without an id
        assert response.status == 200
    assert [line["request_id"] for line in records(lines, "inside")] == ["of-worker"]
    ids = [line["request_id"] for line in records(lines, "semshare_service.access")]
    assert ids[0] == "of-worker"
    assert ids[1] != "of-worker"


@pytest.mark.parametrize("error", [None, ValueError(f"can't read {MARKER}")])
async def test_no_prompt_is_ever_logged(
    client: TestClient, engine: FakeEngine, lines: io.StringIO, error: Exception | None
) -> None:
    engine.error = error
    chat = [{"role": "user", "content": MARKER}]
    asked = 0
    for method, path, body in [
        ("POST", "/v1/completions", {"prompt": MARKER}),
        ("POST", "/v1/completions", {"prompt": MARKER, MARKER: 1}),
        ("POST", "/v1/completions", {"prompt": MARKER * 1000}),
        ("POST", "/v1/chat/completions", {"messages": chat}),
        ("POST", "/v1/match", {"text": MARKER, "semshare": {"mode": MARKER}}),
        ("POST", "/v1/match", {"text": MARKER}),
        ("PUT", "/v1/donors", {"text": MARKER}),
        ("PUT", "/v1/donors", {"text": MARKER, "namespace": f"{MARKER}/"}),
        ("GET", f"/v1/donors?namespace={MARKER}", None),
        ("DELETE", f"/v1/donors/{MARKER}", None),
        ("POST", f"/{MARKER}", {"text": MARKER}),
        ("POST", "/health", MARKER),
    ]:
        async with client.request(method, path, json=body) as response:
            await response.read()
        asked += 1
    assert len(records(lines, "semshare_service.access")) == asked
    assert error is None or records(lines, "semshare")  # failures are told, without their words
    assert MARKER not in lines.getvalue()


@pytest.mark.parametrize("formatter", [TextFormatter(), JsonFormatter()])
def test_an_exception_is_told_by_class_and_place(formatter: logging.Formatter) -> None:
    try:
        raise ValueError(MARKER)
    except ValueError as error:
        info = (ValueError, error, error.__traceback__)
    record = logging.LogRecord("name", logging.ERROR, __file__, 1, "it %s", ("broke",), info)
    line = formatter.format(record)
    assert "it broke" in line
    assert "ValueError at test_an_exception_is_told_by_class_and_place" in line
    assert MARKER not in line
