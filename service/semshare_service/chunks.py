"""The chunks of a streamed answer, in OpenAI's form: plain maps, one for each event."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

from semshare.types import Answer, FinishReason, TextDelta
from semshare_service.logprobs import TextOffsets, TokenBytes
from semshare_service.replies import (
    AnswerForm,
    Body,
    extension_body,
    openai_finish_reason,
    usage_body,
)


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece of an answer.

    delta:       as the engine gave it; the last one carries the whole answer.
    token_bytes: of all tokens that its log-probabilities tell of.
    """

    delta: TextDelta
    token_bytes: TokenBytes


class ChunkWriter:
    """Makes the chunks of one answer; all have the same id and time.

    Args:
        form: of the route.
        model: the name to answer with.
        include_usage: whether `usage` comes in a chunk of its own at the end. The others then have
                       the field too, and null in it, as OpenAI's do.

    """

    def __init__(self, form: AnswerForm, *, model: str, include_usage: bool) -> None:
        self._form = form
        self._include_usage = include_usage
        self._head: Body = {
            "id": form.new_id(),
            "object": form.chunk_object,
            "created": int(time.time()),
            "model": model,
        }
        self._offsets: dict[int, TextOffsets] = {}  # of the choices that have begun

    def piece(self, piece: Piece) -> Iterator[Body]:
        """One chunk; none for a piece that a client could not tell from nothing."""
        delta = piece.delta
        if delta.text or delta.logprobs:
            yield self._chunk([self._choice(delta.index, delta.text, piece, None)])

    def end(self, answer: Answer, *, queue_s: float) -> Iterator[Body]:
        """A last chunk for each choice, the last of them with the `semshare` field; then usage."""
        last = len(answer.choices) - 1
        for index, choice in enumerate(answer.choices):
            chunk = self._chunk([self._choice(index, "", None, choice.finish_reason)])
            yield chunk | {"semshare": extension_body(answer, queue_s)} if index == last else chunk
        if self._include_usage:
            yield self._chunk([]) | {"usage": usage_body(answer)}

    def _chunk(self, choices: list[Body]) -> Body:
        chunk = {**self._head, "choices": choices}
        return chunk | {"usage": None} if self._include_usage else chunk

    def _choice(
        self, index: int, text: str, piece: Piece | None, reason: FinishReason | None
    ) -> Body:
        is_first = index not in self._offsets
        offsets = self._offsets.setdefault(index, TextOffsets())
        logprobs = None
        if piece is not None and piece.delta.logprobs:
            logprobs = self._form.logprobs(piece.delta.logprobs, piece.token_bytes, offsets)
        return {
            "index": index,
            **self._form.delta(text, is_first),
            "logprobs": logprobs,
            "finish_reason": None if reason is None else openai_finish_reason(reason),
        }
