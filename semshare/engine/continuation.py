"""One answer in the making: one token after another until something ends it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from semshare.engine.rows import AttentionRecord, PromptRows
from semshare.engine.sampling import Sampler
from semshare.engine.text import TextAssembler
from semshare.kv.sequence import KVSequence
from semshare.types import Choice, FinishReason, TextDelta, TokenLogprob


@dataclass(slots=True, eq=False)
class Continuation:
    """What one of a prompt's answers says so far, and its KV.

    Args:
        sequence: the prompt's KV, to which its tokens are appended.
        sampler, text: pick tokens, and turn them into text.
        eos: ids that end an answer.
        max_tokens: most tokens of the answer.
        emit: takes each piece of text.
        index: among the prompt's answers.
        record: adds the attention that the answer's tokens pay, if given.

    """

    sequence: KVSequence
    sampler: Sampler
    text: TextAssembler
    eos: frozenset[int]
    max_tokens: int
    emit: Callable[[TextDelta], None]
    index: int = 0
    record: AttentionRecord | None = None
    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)  # where they are asked for
    finish_reason: FinishReason | None = None  # None: it goes on
    computed: int = 0  # tokens whose KV is in the sequence
    _given: int = 0  # tokens whose text has been given out
    _prompt_length: int = field(init=False)

    def __post_init__(self) -> None:
        self._prompt_length = self.sequence.length

    @property
    def ended(self) -> bool:
        """Whether no more tokens come."""
        return self.finish_reason is not None

    @property
    def choice(self) -> Choice:
        """What it says, once it has ended."""
        if self.finish_reason is None:
            raise AssertionError("the answer goes on")
        return Choice(self.text.text, self.tokens, self.finish_reason, tuple(self.logprobs))

    def next_rows(self, most: int) -> PromptRows:
        """The tokens whose KV is wanted next, at most `most`: the latest one, as a rule.

        Raises:
            PoolExhausted: no slots, and nothing left to evict.

        """
        tokens = self.tokens[self.computed : self.computed + most]
        upto = self.computed + len(tokens)
        at = np.arange(self.computed, upto) + self._prompt_length
        if self._prompt_length + upto > self.sequence.length:
            self.sequence.append(self._prompt_length + upto - self.sequence.length)
        is_last = upto == len(self.tokens)
        return PromptRows(
            self.sequence, np.array(tokens), at, n_logits=int(is_last), record=self.record
        )

    def took(self, rows: PromptRows, logits: Tensor) -> None:
        """`rows` have been computed; `logits` `[n_logits, vocab]` float32 are theirs."""
        if self.ended or rows.sequence is not self.sequence:
            return
        self.computed += len(rows.ids)
        if rows.n_logits:
            self.take(logits[-1])

    def go_on_from(self, sequence: KVSequence) -> None:
        """Leave the present KV for one that holds the prompt only; the answer is added to it."""
        self.sequence.release()
        self.sequence, self.computed = sequence, 0

    def take(self, logits: Tensor) -> None:
        """Pick the next token from `logits` `[vocab]` float32."""
        picked = self.sampler.pick(logits)
        if picked.token in self.eos:
            self.end("stop")
            return
        self.tokens.append(picked.token)
        if picked.logprob is not None:
            self.logprobs.append(picked.logprob)
        piece = self.text.push(picked.token)
        if piece:
            self._give(piece)
        if self.text.stopped:
            self.end("stop")
        elif len(self.tokens) == self.max_tokens:
            self.end("length")

    def end(self, reason: FinishReason) -> None:
        """No more tokens come."""
        self.finish_reason = reason
        piece = self.text.finish()
        if piece or self._given < len(self.tokens):
            self._give(piece)

    def _give(self, piece: str) -> None:
        new = slice(self._given, None)
        logprobs = tuple(self.logprobs[new])
        self.emit(TextDelta(piece, self.tokens[new], index=self.index, logprobs=logprobs))
        self._given = len(self.tokens)
