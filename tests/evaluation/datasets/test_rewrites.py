import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from semshare.errors import InvalidRequest, ModelNotAvailable
from semshare.evaluation.datasets.rewrites import Endpoint, endpoint_of_environment, rewrite


class FakeEndpoint:
    """Answers chat completions with `reply`, and keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str | None, dict[str, Any]]] = []
        self.status = 200
        self.reply: Callable[[str], object] = lambda text: completion(f" {text.upper()}\n")
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                fake.asked.append((self.path, self.headers["Authorization"], body))
                text = body["messages"][0]["content"].split("\n\n", 1)[1]
                answer = json.dumps(fake.reply(text)).encode()
                self.send_response(fake.status)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                """Nothing on standard error."""

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = Endpoint(f"http://127.0.0.1:{self.server.server_port}/v1", "m", "key")


def completion(text: object, reason: str = "stop") -> dict[str, object]:
    return {"choices": [{"message": {"content": text}, "finish_reason": reason}]}


@pytest.fixture
def fake() -> Iterator[FakeEndpoint]:
    fake = FakeEndpoint()
    thread = threading.Thread(target=fake.server.serve_forever, args=(0.01,))
    thread.start()
    yield fake
    fake.server.shutdown()
    fake.server.server_close()
    thread.join()


def test_a_rewrite_is_asked_for_once(fake: FakeEndpoint, tmp_path: Path) -> None:
    assert rewrite("one text", fake.endpoint, tmp_path) == "ONE TEXT"
    assert rewrite("one text", fake.endpoint, tmp_path) == "ONE TEXT"
    ((path, key, body),) = fake.asked
    assert (path, key) == ("/v1/chat/completions", "Bearer key")
    assert body["model"] == "m"
    assert body["temperature"] == 0
    assert body["messages"][0]["content"].startswith("Rewrite the following text")
    # Another text, and another model, are other questions.
    rewrite("two", fake.endpoint, tmp_path)
    rewrite("one text", Endpoint(fake.endpoint.base_url, "other"), tmp_path)
    assert len(fake.asked) == 3
    assert fake.asked[-1][1] is None
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize(
    ("reply", "error", "message"),
    [
        (completion("cut", "length"), InvalidRequest, "limit of tokens: raise that"),
        (completion(None), ModelNotAvailable, "sent no chat completion"),
        ({"choices": []}, ModelNotAvailable, "sent no chat completion"),
        ([1], ModelNotAvailable, "sent no chat completion"),
        (completion(" "), ModelNotAvailable, "an empty rewrite"),
    ],
)
def test_a_useless_answer_is_not_kept(
    fake: FakeEndpoint, tmp_path: Path, reply: object, error: type[Exception], message: str
) -> None:
    fake.reply = lambda text: reply
    with pytest.raises(error, match=message):
        rewrite("text", fake.endpoint, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_refusal_and_silence_are_told_apart(fake: FakeEndpoint, tmp_path: Path) -> None:
    fake.status = 401
    fake.reply = lambda text: {"error": "no such key"}
    with pytest.raises(ModelNotAvailable, match=r"refused a rewrite with 401: .*no such key"):
        rewrite("text", fake.endpoint, tmp_path)
    with pytest.raises(ModelNotAvailable, match=r"does not answer .* change OPENAI_BASE_URL"):
        rewrite("text", Endpoint("http://127.0.0.1:1", "m"), tmp_path)


def test_the_environment_names_the_endpoint(
    fake: FakeEndpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OPENAI_BASE_URL", "OPENAI_MODEL", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ModelNotAvailable, match="OPENAI_BASE_URL is not set"):
        rewrite("text", folder=tmp_path)
    monkeypatch.setenv("OPENAI_BASE_URL", "ftp://x")
    with pytest.raises(ModelNotAvailable, match="OPENAI_MODEL is not set"):
        endpoint_of_environment()
    monkeypatch.setenv("OPENAI_MODEL", "m")
    with pytest.raises(InvalidRequest, match="'ftp://x': it must begin with http"):
        endpoint_of_environment()
    monkeypatch.setenv("OPENAI_BASE_URL", f"{fake.endpoint.base_url}/")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert endpoint_of_environment() == Endpoint(fake.endpoint.base_url, "m")
    assert rewrite("text") == "TEXT"
    assert len(list((tmp_path / "semshare" / "rewrites").iterdir())) == 1
