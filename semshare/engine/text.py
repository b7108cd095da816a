"""Turns token ids into text piece by piece, and stops at stop strings."""

from __future__ import annotations

from collections.abc import Callable, Sequence

REPLACEMENT = "\ufffd"  # what a tokenizer prints for a character that is not complete yet


class TextAssembler:
    """The text of one answer as its tokens come.

    Text is given out only once it can't change: a character whose bytes are incomplete is held
    back, and so is what may turn out to be the beginning of a stop string.

    Args:
        decode: ids → text.
        stop: the answer ends before the first of these that appears.

    """

    def __init__(self, decode: Callable[[Sequence[int]], str], stop: Sequence[str]) -> None:
        self._decode = decode
        self._stop = tuple(text for text in stop if text)
        self._ids: list[int] = []
        # Decoding starts again a few tokens back instead of at the first, so that a long answer
        # costs linear time. Two offsets, because some tokenizers drop a leading space.
        self._context_start = 0
        self._decoded_to = 0
        self._text = ""
        self._given = 0
        self.stopped = False

    def push(self, token: int) -> str:
        """Add a token; returns the text that has become certain."""
        self._ids.append(token)
        context = self._decode(self._ids[self._context_start : self._decoded_to])
        window = self._decode(self._ids[self._context_start :])
        if window.endswith(REPLACEMENT):
            return ""
        self._context_start, self._decoded_to = self._decoded_to, len(self._ids)
        self._text += window[len(context) :]
        return self._release(final=False)

    def finish(self) -> str:
        """No more tokens come: the rest of the text."""
        if not self.stopped and self._decoded_to < len(self._ids):
            context = self._decode(self._ids[self._context_start : self._decoded_to])
            self._text += self._decode(self._ids[self._context_start :])[len(context) :]
            self._decoded_to = len(self._ids)
        return self._release(final=True)

    @property
    def text(self) -> str:
        """All text given out so far."""
        return self._text[: self._given]

    def _release(self, *, final: bool) -> str:
        found = [at for text in self._stop if (at := self._text.find(text)) >= 0]
        if found:
            self.stopped = True
            self._text = self._text[: min(found)]
        end = len(self._text) if final or self.stopped else self._certain_length()
        piece = self._text[self._given : end]
        self._given = max(self._given, end)
        return piece

    def _certain_length(self) -> int:
        """Length of the text less the longest end that may begin a stop string."""
        longest = max((len(text) for text in self._stop), default=0) - 1
        for start in range(max(len(self._text) - longest, 0), len(self._text)):
            if any(text.startswith(self._text[start:]) for text in self._stop):
                return start
        return len(self._text)
