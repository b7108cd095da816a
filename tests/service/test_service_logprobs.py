"""OpenAI's `logprobs` objects: every token by its text, also where that is part of a character."""

from __future__ import annotations

import json
import math

from semshare.types import TokenLogprob
from semshare_service.logprobs import (
    TextOffsets,
    chat_logprobs,
    completion_logprobs,
    named_tokens,
)

# "a", the three bytes of "€" as two tokens, and "b".
TOKEN_BYTES = {0: b"a", 1: b"\xe2\x82", 2: b"\xac", 3: b"b", 4: " é".encode()}
ANSWER = tuple(TokenLogprob(token, -1.0 - token, ((4, -0.5),)) for token in range(4))


def test_tokens_that_are_named() -> None:
    assert named_tokens(ANSWER) == {0, 1, 2, 3, 4}
    assert named_tokens(()) == set()


def test_a_completion_counts_offsets_in_characters() -> None:
    body = completion_logprobs(ANSWER, TOKEN_BYTES, TextOffsets())
    assert body["tokens"] == ["a", r"bytes:\xe2\x82", r"bytes:\xac", "b"]
    assert body["text_offset"] == [0, 1, 1, 2]
    assert body["token_logprobs"] == [-1.0, -2.0, -3.0, -4.0]
    assert body["top_logprobs"][1] == {" é": -0.5, r"bytes:\xe2\x82": -2.0}


def test_offsets_of_a_streamed_completion_go_on_from_piece_to_piece() -> None:
    """Also where a piece ends in the middle of a character."""
    offsets = TextOffsets()
    pieces = [completion_logprobs((found,), TOKEN_BYTES, offsets) for found in ANSWER]
    assert [piece["text_offset"] for piece in pieces] == [[0], [1], [1], [2]]


def test_a_token_among_the_likeliest_is_told_once() -> None:
    found = TokenLogprob(0, -0.5, ((0, -0.5), (3, -1.5)))
    body = completion_logprobs((found,), TOKEN_BYTES, TextOffsets())
    assert list(body["top_logprobs"][0].items()) == [("a", -0.5), ("b", -1.5)]


def test_bytes_of_a_chats_tokens_add_up_to_its_text() -> None:
    body = chat_logprobs(ANSWER, TOKEN_BYTES, TextOffsets())
    joined = b"".join(bytes(entry["bytes"]) for entry in body["content"])
    assert joined.decode() == "a€b"
    names = [entry["token"] for entry in body["content"]]
    assert names == ["a", r"bytes:\xe2\x82", r"bytes:\xac", "b"]
    assert body["content"][1]["top_logprobs"] == [
        {"token": " é", "logprob": -0.5, "bytes": [32, 195, 169]}
    ]


def test_an_impossible_token_has_a_number_that_json_can_write() -> None:
    found = TokenLogprob(0, -0.1, ((0, -0.1), (3, -math.inf)))
    for body in (
        completion_logprobs((found,), TOKEN_BYTES, TextOffsets()),
        chat_logprobs((found,), TOKEN_BYTES, TextOffsets()),
    ):
        assert "-9999.0" in json.dumps(body, allow_nan=False)
