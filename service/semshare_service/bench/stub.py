"""An engine without a model: it takes a given time a token, and tells where its KV came from."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator
from typing import Unpack

import numpy as np

from semshare.types import (
    Answer,
    Choice,
    DonorInfo,
    GenerateOptions,
    Prompt,
    Provenance,
    TextDelta,
    Timings,
    TokenSource,
)

_CHARACTERS = 4  # a token, about as many as in English
_WORD = " word"
_BLOCK = 64  # tokens of one source in a row


class StubEngine:
    """Answers every prompt with the same word. It keeps no donors, and offers nothing else.

    What a service adds to a request shows best beside an engine that needs no processor.

    Args:
        token_s: seconds a token.

    Attributes:
        open_answers: begun and not ended.

    """

    model_name = "stub"
    max_context = 1 << 20

    def __init__(self, token_s: float) -> None:
        self._token_s = token_s
        self._lock = threading.Lock()
        self.open_answers = 0

    def stream(self, prompt: Prompt, **options: Unpack[GenerateOptions]) -> Generator[TextDelta]:
        """`max_tokens` words, one every `token_s`."""
        started = time.perf_counter()
        tokens = options.get("max_tokens", 64)
        with self._lock:
            self.open_answers += 1
        try:
            for _ in range(tokens):
                time.sleep(self._token_s)
                yield TextDelta(_WORD, [0])
            timings = Timings(ttft_s=self._token_s, decode_s=time.perf_counter() - started)
            yield TextDelta("", [], _answer(prompt, tokens, timings))
        finally:
            with self._lock:
                self.open_answers -= 1

    def token_bytes(self, token_id: int) -> bytes:  # noqa: ARG002 - there is one token
        """The word."""
        return _WORD.encode()

    def complete_pending(self, *, limit: int | None = None) -> list[DonorInfo]:  # noqa: ARG002
        """Nothing waits."""
        return []

    def close(self, timeout_s: float = 0.0) -> None:
        """There is nothing to write."""


def _answer(prompt: Prompt, tokens: int, timings: Timings) -> Answer:
    ids = [0] * tokens
    choice = Choice(_WORD * tokens, ids, "length", ())
    return Answer(
        text=choice.text,
        token_ids=ids,
        prompt_tokens=_length(prompt),
        finish_reason="length",
        provenance=_provenance(_length(prompt)),
        timings=timings,
        choices=(choice,),
    )


def _length(prompt: Prompt) -> int:
    if isinstance(prompt, str):
        return max(1, len(prompt) // _CHARACTERS)
    characters = sum(
        len(part["content"]) if isinstance(part, dict) else _CHARACTERS for part in prompt
    )
    return max(1, characters // _CHARACTERS)


def _provenance(n: int) -> Provenance:
    """As of a rewritten prompt: three blocks from a donor, then one that is computed."""
    position = np.arange(n, dtype=np.int32)
    fresh = position // _BLOCK % 4 == 3
    return Provenance(
        source=np.where(fresh, TokenSource.FRESH, TokenSource.FUZZY).astype(np.uint8),
        donors=("stub",),
        donor=np.where(fresh, -1, 0).astype(np.int32),
        donor_position=np.where(fresh, -1, position).astype(np.int32),
        compute_fraction=float(fresh.mean()),
        exact=False,
        mode="semantic",
    )
