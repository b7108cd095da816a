"""Texts for tiny engines: words of random letters, so that only what is planted is shared."""

from __future__ import annotations

import numpy as np


def words(n: int, seed: int) -> str:
    """Exactly `n` characters of lower-case words; two seeds share no run of any length."""
    rng = np.random.default_rng(seed)
    letters = rng.integers(ord("a"), ord("z") + 1, n)
    letters[rng.random(n) < 0.15] = ord(" ")
    return bytes(letters.tolist()).decode()


def reworded(text: str, seed: int, share: float = 0.1) -> str:
    """`text` with a share of its letters replaced, here and there."""
    rng = np.random.default_rng(seed)
    letters = np.frombuffer(text.encode(), np.uint8).copy()
    at = rng.random(len(letters)) < share
    letters[at] = rng.integers(ord("a"), ord("z") + 1, int(at.sum()))
    return letters.tobytes().decode()


def answerable(text: str, seed: int = 0) -> str:
    """`text` with a question of 24 characters behind it."""
    return text + words(24, 1_000 + seed)
