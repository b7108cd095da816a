"""The decode loop: one token after another until something ends the answer."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch

from semshare.engine.executor import AttentionRecord, Executor
from semshare.engine.sampling import Sampler
from semshare.engine.served import Served, Stopwatch
from semshare.engine.text import TextAssembler
from semshare.errors import PoolExhausted
from semshare.types import FinishReason, TextDelta, TokenLogprob


@dataclass(slots=True)
class Decoding:
    """One answer in the making.

    `run` yields its text; afterwards `tokens`, `logprobs` and `finish_reason` say what came of it.

    Args:
        executor: the model and its pool.
        sampler, text: pick tokens, and turn them into text.
        eos: ids that end an answer.
        max_tokens: most tokens of the answer.
        record: adds the attention that the answer's tokens pay, if given.

    """

    executor: Executor
    sampler: Sampler
    text: TextAssembler
    eos: frozenset[int]
    max_tokens: int
    record: AttentionRecord | None = None
    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)  # where the request asks for them
    finish_reason: FinishReason = "length"

    def run(self, served: Served, lock: threading.RLock, watch: Stopwatch) -> Iterator[TextDelta]:
        """Answer a prefilled prompt; `lock` is held for each step, not between them."""
        logits = served.logits
        given = 0  # tokens whose text has been given out
        while True:
            picked = self.sampler.pick(logits[-1])
            token = picked.token
            watch.first_token()
            if token in self.eos:
                self.finish_reason = "stop"
                break
            self.tokens.append(token)
            if picked.logprob is not None:
                self.logprobs.append(picked.logprob)
            piece = self.text.push(token)
            if piece:
                yield TextDelta(piece, self.tokens[given:], logprobs=tuple(self.logprobs[given:]))
                given = len(self.tokens)
            if self.text.stopped:
                self.finish_reason = "stop"
                break
            if len(self.tokens) == self.max_tokens:
                break
            try:
                with lock, torch.inference_mode():
                    logits = self._step(served, token)
            except PoolExhausted:
                break  # "length": what has been answered is worth more than an error
        piece = self.text.finish()
        if piece or given < len(self.tokens):
            yield TextDelta(piece, self.tokens[given:], logprobs=tuple(self.logprobs[given:]))

    def _step(self, served: Served, token: int) -> torch.Tensor:
        sequence, ids = served.sequence, np.array([token])
        position = sequence.append(1)
        if self.record is None:
            return self.executor.decode([sequence], ids, position)
        return self.executor.forward(sequence, ids, position, record=self.record).logits
