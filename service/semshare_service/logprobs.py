"""OpenAI's `logprobs` objects: log-probabilities of an answer's tokens, by the tokens' texts."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from semshare.types import TokenLogprob

TokenBytes: TypeAlias = Mapping[int, bytes]  # token id → its text in UTF-8

_UNLIKELY = -9999.0  # what OpenAI says of tokens it does not rank; JSON has no −∞


def named_tokens(logprobs: Iterable[TokenLogprob]) -> set[int]:
    """Ids of all tokens that `logprobs` tell of."""
    return {
        token
        for found in logprobs
        for token in (found.token_id, *(other for other, _ in found.top))
    }


class TextOffsets:
    """Counts the characters of an answer, piece by piece where it is streamed."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._characters = 0

    def of_next(self, text: bytes) -> int:
        """Characters of the answer before the one that its next token begins or goes on with."""
        before = self._characters
        self._characters += len(self._decoder.decode(text))
        return before


def completion_logprobs(
    logprobs: Sequence[TokenLogprob], token_bytes: TokenBytes, offsets: TextOffsets
) -> dict[str, Any]:
    """Of a text completion, or a piece of one: four lists with one element for each token.

    An element of `top_logprobs` also holds the token itself where it is not among the most likely.
    `offsets` has counted the pieces before this one, and gives `text_offset`.
    """
    return {
        "tokens": [_name(token_bytes[found.token_id]) for found in logprobs],
        "token_logprobs": [_finite(found.logprob) for found in logprobs],
        "top_logprobs": [
            {
                _name(token_bytes[token]): _finite(logprob)
                for token, logprob in (*found.top, (found.token_id, found.logprob))
            }
            for found in logprobs
        ],
        "text_offset": [offsets.of_next(token_bytes[found.token_id]) for found in logprobs],
    }


def chat_logprobs(
    logprobs: Sequence[TokenLogprob], token_bytes: TokenBytes, _: TextOffsets
) -> dict[str, Any]:
    """Of a chat completion, or a piece of one: one map for each token."""

    def entry(token: int, logprob: float) -> dict[str, Any]:
        text = token_bytes[token]
        return {"token": _name(text), "logprob": _finite(logprob), "bytes": list(text)}

    content = [
        {
            **entry(found.token_id, found.logprob),
            "top_logprobs": [entry(token, logprob) for token, logprob in found.top],
        }
        for found in logprobs
    ]
    return {"content": content, "refusal": None}


def _name(text: bytes) -> str:
    """A token's text; its bytes in OpenAI's way of writing where they are no whole characters."""
    try:
        return text.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in text)


def _finite(logprob: float) -> float:
    return logprob if logprob > _UNLIKELY else _UNLIKELY  # NaN is above nothing
