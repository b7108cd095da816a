"""Texts measured in bytes, so that no tokenizer is needed."""

from __future__ import annotations

from semshare.evaluation.material import Material, Messages
from semshare.evaluation.texts import Split

TEMPLATE = 20  # of a chat, whatever it says


def count(messages: Messages) -> int:
    return sum(TEMPLATE + len(message["content"].encode()) for message in messages)


def material(tokens: int = 6000, *, seed: int = 0, split: Split = "test") -> Material:
    return Material(count, tokens, seed, split)


def body(messages: Messages | None) -> str:
    assert messages is not None
    return messages[0]["content"]
