"""Similar texts made from a text: the copies that an earlier prompt may have held.

A variation takes (text, another text of the same kind, generator) and gives the copy. The same
three give the same copy: nothing else is read but tables that ship with the package.

| name | what the copy is |
| --- | --- |
| `reordered` | the same sections in another order; sentences where there are fewer than three |
| `overlap-80` … `overlap-20` | that share of its words kept, other sentences from another text |
| `entities` | its names and numbers swapped for others, the same everywhere |
| `synonyms` | common words replaced by others of the same meaning |
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterator
from functools import cache, partial
from importlib import resources
from itertools import cycle, permutations

from semshare.errors import InvalidRequest
from semshare.evaluation.entities import NUMBER, names
from semshare.evaluation.fact_texts import load_values

Variation = Callable[[str, str, random.Random], str]

OVERLAPS = (80, 60, 40, 20)  # per cent, as the scenarios are named

_SECTION_BREAK = re.compile(r"(\n\s*\n)")
# A sentence, or a line: lines of code and of dialogues have no full stops.
_SENTENCE_BREAK = re.compile(r"((?<=[.!?])\s+|\s*\n\s*)")
_FEW_SECTIONS = 3  # below, a text is not cut into sections worth moving
_WORD = re.compile(r"[^\W\d_]+")
_FIRST_YEAR, _YEARS = 1900, 130
_YEAR = re.compile(r"19\d\d|20[0-2]\d")


def reordered(text: str, other: str, rng: random.Random) -> str:  # noqa: ARG001 - a Variation's
    """The same sections in another order, or the same sentences; breaks stay where they are."""
    pieces = _SECTION_BREAK.split(text)
    if len(pieces) < 2 * _FEW_SECTIONS - 1:
        pieces = _SENTENCE_BREAK.split(text)
    moved = pieces[::2]
    order = rng.sample(moved, len(moved))
    pieces[::2] = order if order != moved else [*moved[1:], *moved[:1]]
    return "".join(pieces)


def overlap(text: str, other: str, rng: random.Random, *, share: float) -> str:
    """`share` of the text's words kept in their places, the other sentences replaced.

    Sentences are taken in random order as long as that brings the replaced words nearer to
    1 − `share` of all, so it ends at most half of the longest sentence from it. Their places are
    taken by the other text's sentences in order, as many words in all or a few more; from its
    beginning again where it ends.

    Raises:
        InvalidRequest: the other text has no words.

    """
    pieces = _SENTENCE_BREAK.split(text)
    sentences, breaks = pieces[::2], [*pieces[1::2], ""]
    foreign = [sentence for sentence in _SENTENCE_BREAK.split(other)[::2] if sentence.strip()]
    if not foreign:
        raise InvalidRequest("a text can't overlap with one of no words: leave that one out")
    next_foreign = cycle(foreign)
    words = [len(sentence.split()) for sentence in sentences]
    wanted = (1 - share) * sum(words)
    replaced = set()
    for index in rng.sample(range(len(sentences)), len(sentences)):
        if 0 < words[index] < 2 * wanted:
            wanted -= words[index]
            replaced.add(index)
    copy: list[str] = []
    owed = 0
    for index, sentence in enumerate(sentences):
        here = sentence
        if index in replaced:
            owed += words[index]
            taken = []
            while owed > 0:
                taken.append(next(next_foreign))
                owed -= len(taken[-1].split())
            here = " ".join(taken)
        if here or not words[index]:  # an earlier sentence was so long that it stands for this
            copy += [here, breaks[index]]
    return "".join(copy)


def entities(text: str, other: str, rng: random.Random) -> str:  # noqa: ARG001 - a Variation's
    """Names and numbers swapped for others, each for the same one wherever it stands.

    A name is a capitalised word inside of a sentence that the text nowhere has in lower case, no
    acronym; it is swapped for one of the same kind that the text doesn't have, as far as the tables
    tell kinds apart. A number keeps its format and its zeros, a year stays a year; single digits
    are left, since they count sections and verses.
    """
    present = set(_WORD.findall(text))
    swapped = {}
    for name in dict.fromkeys(names(text)):
        if name.isalpha() and not name.isupper() and name.lower() not in present:
            new = next(one for one in _other_names(name, rng) if one not in present)
            present.add(new)
            swapped[name] = new
    digits = rng.randint(1, 8)
    shifted = str.maketrans({str(d): str((d - 1 + digits) % 9 + 1) for d in range(1, 10)})
    years = rng.randint(1, _YEARS - 1)

    def number(match: re.Match[str]) -> str:
        if _YEAR.fullmatch(match[0]):
            return str(_FIRST_YEAR + (int(match[0]) - _FIRST_YEAR + years) % _YEARS)
        return match[0] if len(match[0]) == 1 else match[0].translate(shifted)

    named = _WORD.sub(lambda match: swapped.get(match[0], match[0]), text)
    return NUMBER.sub(number, named)


def synonyms(text: str, other: str, rng: random.Random) -> str:  # noqa: ARG001 - a Variation's
    """Every word of the table replaced by one of the same meaning and form, always by the same.

    Names and articles are left, and a sentence keeps its capital. Which synonym it is, the
    generator says.
    """
    chosen: dict[str, str] = {}
    named = set(names(text))

    def replacement(match: re.Match[str]) -> str:
        word = match[0].lower()
        if word not in _synonyms() or match[0] in named or match[0].isupper():
            return match[0]
        if word not in chosen:
            chosen[word] = rng.choice(_synonyms()[word])
        return chosen[word].capitalize() if match[0] != word else chosen[word]

    return _WORD.sub(replacement, text)


VARIATIONS: dict[str, Variation] = {
    "reordered": reordered,
    **{f"overlap-{share}": partial(overlap, share=share / 100) for share in OVERLAPS},
    "entities": entities,
    "synonyms": synonyms,
}


def _other_names(name: str, rng: random.Random) -> Iterator[str]:
    """Names of the same kind in random order, then surnames, then double-barrelled ones."""
    values = load_values()
    surnames = rng.sample(values["last_names"], len(values["last_names"]))
    for kind in values.values():
        if name in kind:
            yield from rng.sample(kind, len(kind))
    yield from surnames
    yield from ("-".join(pair) for pair in permutations(surnames, 2))


@cache
def _synonyms() -> dict[str, tuple[str, ...]]:
    """Word → the others of its group, all in lower case."""
    file = resources.files("semshare.evaluation") / "data" / "synonyms.json"
    groups: list[list[str]] = json.loads(file.read_text(encoding="utf-8"))
    return {
        word: tuple(other for other in group if other != word) for group in groups for word in group
    }
