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


def completion_logprobs(
    logprobs: Sequence[TokenLogprob], token_bytes: TokenBytes
) -> dict[str, Any]:
    """Of a text completion: four lists with one element for each token.

    An element of `top_logprobs` also holds the token itself where it is not among the most likely.
    `text_offset` counts characters of the answer before the one that the token begins or goes on
    with.
    """
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    characters = 0
    offsets = []
    for found in logprobs:
        offsets.append(characters)
        characters += len(decoder.decode(token_bytes[found.token_id]))
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
        "text_offset": offsets,
    }


def chat_logprobs(logprobs: Sequence[TokenLogprob], token_bytes: TokenBytes) -> dict[str, Any]:
    """Of a chat completion: one map for each token."""

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
    return max(logprob, _UNLIKELY)
