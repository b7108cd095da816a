"""Texts rewritten by a language model behind an endpoint of the user's, and kept on disk.

The endpoint speaks OpenAI's chat completions and is named in the environment as that package has
it: `OPENAI_BASE_URL`, such as `http://127.0.0.1:8000/v1`, `OPENAI_API_KEY` where one is needed, and
`OPENAI_MODEL`.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from urllib.error import HTTPError, URLError

from semshare.engine.loading import cache_folder
from semshare.errors import InvalidRequest, ModelNotAvailable

INSTRUCTION = (
    "Rewrite the following text in your own words. Keep every fact, name and number, the order of "
    "what is said and the length. Answer with the rewritten text alone."
)
TIMEOUT_S = 600.0  # a few thousand tokens of a large model on a slow machine


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Who is asked.

    base_url: without `/chat/completions`.
    model:    as the endpoint calls it.
    api_key:  None: none is sent.
    """

    base_url: str
    model: str
    api_key: str | None = None


def endpoint_of_environment() -> Endpoint:
    """The endpoint that the environment names.

    Raises:
        ModelNotAvailable: it names none; the message says which variables do.
        InvalidRequest: an address that is not HTTP.

    """
    base_url, model = os.environ.get("OPENAI_BASE_URL"), os.environ.get("OPENAI_MODEL")
    if not base_url or not model:
        missing = "OPENAI_MODEL" if base_url else "OPENAI_BASE_URL"
        raise ModelNotAvailable(
            f"{missing} is not set: rewrites need an endpoint for chat completions, named by "
            "OPENAI_BASE_URL, OPENAI_MODEL and, where it asks for one, OPENAI_API_KEY"
        )
    if not base_url.startswith(("http://", "https://")):
        raise InvalidRequest(f"OPENAI_BASE_URL is {base_url!r}: it must begin with http(s)://")
    return Endpoint(base_url.rstrip("/"), model, os.environ.get("OPENAI_API_KEY") or None)


def rewrite(text: str, endpoint: Endpoint | None = None, folder: Path | None = None) -> str:
    """The text in other words; a text that a model has rewritten once is read from disk.

    Args:
        text: what is rewritten.
        endpoint: who is asked; the environment's if None.
        folder: of the rewrites, `~/.cache/semshare/rewrites` if None. A file's name is the hash of
            the model, the instruction and the text, so that a change of any asks again.

    Raises:
        ModelNotAvailable: there is no endpoint, or it does not answer as it should.
        InvalidRequest: the answer was cut off at the endpoint's own limit.

    """
    endpoint = endpoint or endpoint_of_environment()
    folder = folder or cache_folder() / "rewrites"
    asked = json.dumps([endpoint.model, INSTRUCTION, text])
    path = folder / f"{hashlib.sha256(asked.encode()).hexdigest()}.txt"
    if path.exists():
        return path.read_text(encoding="utf-8")
    answer = _ask(endpoint, f"{INSTRUCTION}\n\n{text}")
    folder.mkdir(parents=True, exist_ok=True)
    # A run that is killed while it writes leaves no half rewrite behind.
    unfinished = path.with_suffix(f".{os.getpid()}")
    unfinished.write_text(answer, encoding="utf-8")
    unfinished.replace(path)
    return answer


def _ask(endpoint: Endpoint, prompt: str) -> str:
    body = {
        "model": endpoint.model,
        "messages": [{"role": "user", "content": prompt}],
        "temperature": 0,
    }
    headers = {"Content-Type": "application/json"}
    if endpoint.api_key is not None:
        headers["Authorization"] = f"Bearer {endpoint.api_key}"
    url = f"{endpoint.base_url}/chat/completions"
    data = json.dumps(body).encode()
    request = urllib.request.Request(url, data, headers)  # noqa: S310 - HTTP, as checked
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:  # noqa: S310
            choice = json.load(response)["choices"][0]
            text, reason = choice["message"]["content"].strip(), choice.get("finish_reason")
    except HTTPError as error:
        said = error.read(300).decode(errors="replace")
        raise ModelNotAvailable(f"{url} refused a rewrite with {error.code}: {said}") from error
    except (URLError, OSError, http.client.HTTPException) as error:
        raise ModelNotAvailable(
            f"{url} does not answer ({error}): start it, or change OPENAI_BASE_URL"
        ) from error
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ModelNotAvailable(f"{url} sent no chat completion: {error!r}") from error
    if reason == "length":
        raise InvalidRequest(
            f"{url} cut a rewrite off at its limit of tokens: raise that, or ask for "
            "shorter prompts"
        )
    if not text:
        raise ModelNotAvailable(f"{url} sent an empty rewrite: try another OPENAI_MODEL")
    return str(text)
