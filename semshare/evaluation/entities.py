"""The names and numbers of a text: what an answer must not make up, or take from another text."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

# Not inside a word, as in GPT2, 2nd or v1.2. Thousands and decimals belong to it.
NUMBER = re.compile(r"(?<!\w)(?<!\w[.,])\d+(?:[.,]\d+)*(?!\w|[.,]\d)")
_WORD = re.compile(r"[^\W\d_]\w*")
# What stands between a word and the one that begins the next sentence, line or list item.
_SENTENCE_BREAK = re.compile(r"[.!?:;](?!\d)|\n")


@dataclass(frozen=True, slots=True)
class Faithfulness:
    """Whose names and numbers an answer has. None: it has none.

    numbers, entities: share of its distinct numbers, of its distinct names, that the prompt has.
    leak:              whether one of either is in a donor and not in the prompt.
    """

    numbers: float | None
    entities: float | None
    leak: bool


def faithfulness(answer: str, prompt: str, donors: Sequence[str]) -> Faithfulness:
    """Compare an answer's names and numbers with the prompt's and the donors' texts.

    Capitals decide what in the answer is a name, but not whether a text has it: an answer in title
    case has made nothing up.
    """
    known = _items(prompt)
    foreign = set().union(*map(_items, donors)) - known
    said_numbers, said_names = set(numbers(answer)), {name.lower() for name in names(answer)}
    return Faithfulness(
        numbers=_share(said_numbers, known),
        entities=_share(said_names, known),
        leak=bool((said_numbers | said_names) & foreign),
    )


def numbers(text: str) -> list[str]:
    """Its numbers in digits, in order, without the commas of thousands: 1,024 is 1024."""
    return [re.sub(r",(?=\d{3}(?!\d))", "", match[0]) for match in NUMBER.finditer(text)]


def names(text: str) -> list[str]:
    """Its capitalised words, in order, but for those that begin a sentence, and but for "I"."""
    found, end = [], 0
    for match in _WORD.finditer(text):
        between, end = text[end : match.start()], match.end()
        begins = match.start() == len(between) or _SENTENCE_BREAK.search(between)
        if match[0][0].isupper() and not begins and match[0] != "I":
            found.append(match[0])
    return found


def _items(text: str) -> set[str]:
    """All that a name or number of another text may be: its numbers, its words in lower case."""
    return {*numbers(text), *(match[0].lower() for match in _WORD.finditer(text))}


def _share(said: set[str], known: set[str]) -> float | None:
    return len(said & known) / len(said) if said else None
