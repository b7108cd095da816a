"""Pairs of texts that say the same about other facts, with a question about each fact.

The target is the donor with its names, numbers, places, dates and negations swapped. Whoever
serves the target from the donor's KV and answers with the donor's fact has leaked it.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any, Literal

FactKind = Literal["names", "numbers", "places", "dates", "negations"]
FACT_KINDS: tuple[FactKind, ...] = ("names", "numbers", "places", "dates", "negations")

_SLOT = re.compile(r"\{((?:name|number|place|date|not)\d)\}")
_KIND_OF_SLOT: dict[str, FactKind] = {
    "name": "names",
    "number": "numbers",
    "place": "places",
    "date": "dates",
    "not": "negations",
}


@dataclass(frozen=True, slots=True)
class FactQuestion:
    """One fact that differs between the two texts of a pair.

    An answer is `stem`, a space, and the fact: the stem is the same for both.
    """

    kind: FactKind
    question: str
    stem: str
    target: str
    donor: str


@dataclass(frozen=True, slots=True)
class FactPair:
    """Two texts that differ in their facts alone."""

    id: str
    donor: str
    target: str
    questions: tuple[FactQuestion, ...]


def load_values() -> dict[str, list[str]]:
    """The names, places, months and languages that facts are made of."""
    values: dict[str, list[str]] = _load("fact_values.json")
    return values


def template_pairs(*, variants: int = 2, seed: int = 0) -> tuple[FactPair, ...]:
    """`variants` pairs of each template, about 250 tokens a text and nine questions a pair.

    No value occurs twice in a pair, neither in one text nor across the two.
    """
    values = load_values()
    pairs = []
    for variant in range(variants):
        for template in _load("fact_templates.json"):
            name = f"{template['name']} {variant + 1}"
            draw = _Draw(values, random.Random(f"{name}-{seed}"))  # noqa: S311 - no secret
            pairs.append(_fill(name, template, draw))
    return tuple(pairs)


def _fill(name: str, template: dict[str, Any], draw: _Draw) -> FactPair:
    text = template["text"]
    slots = list(dict.fromkeys(_SLOT.findall(text)))
    filled = {
        slot: draw.negation(template["negations"][slot])
        if slot.startswith("not")
        else draw.two(_kind(slot))
        for slot in slots
    }
    questions = tuple(
        _question(text, filled[entry["slot"]], **entry) for entry in template["questions"]
    )
    target = text.format(**{slot: both[0] for slot, both in filled.items()})
    donor = text.format(**{slot: both[1] for slot, both in filled.items()})
    return FactPair(name, donor, target, questions)


def _question(
    text: str, values: tuple[str, str], *, slot: str, question: str, stem: str
) -> FactQuestion:
    target, donor = values
    if _kind(slot) == "negations":
        # "did" and "did not" differ in what follows, so the next word belongs to the answer.
        following = re.search(rf"\{{{slot}\}} (\w+)", text)
        if following:
            target, donor = (f"{value} {following[1]}" for value in values)
    return FactQuestion(_kind(slot), question, stem, target, donor)


def _kind(slot: str) -> FactKind:
    return _KIND_OF_SLOT[slot.rstrip("0123456789")]


class _Draw:
    """Draws values of each kind, none of them twice."""

    def __init__(self, values: dict[str, list[str]], rng: random.Random) -> None:
        self._rng = rng
        self._left = {kind: rng.sample(pool, len(pool)) for kind, pool in values.items()}
        self._years = rng.sample(range(1931, 2019), 88)
        self._numbers: set[str] = set()

    def two(self, kind: FactKind) -> tuple[str, str]:
        """A value for the target and one for the donor."""
        if kind == "numbers":
            return self._two_numbers()
        one = {"names": self._name, "places": self._place, "dates": self._date}[kind]
        return one(), one()

    def negation(self, values: Sequence[str]) -> tuple[str, str]:
        """The two values in either order."""
        target, donor = self._rng.sample(list(values), 2)
        return target, donor

    def _name(self) -> str:
        return f"{self._left['first_names'].pop()} {self._left['last_names'].pop()}"

    def _place(self) -> str:
        return self._left["places"].pop()

    def _date(self) -> str:
        # Two-digit days and four-digit years, so that the dates' tokens stand side by side.
        day = self._rng.randint(10, 28)
        return f"{day} {self._left['months'].pop()} {self._years.pop()}"

    def _two_numbers(self) -> tuple[str, str]:
        """Two numbers of the same length that share no digit at any place."""
        while True:
            digits = self._rng.choice((3, 4))
            places = [self._rng.sample(range(1, 10), 2) for _ in range(digits)]
            target = "".join(str(place[0]) for place in places)
            donor = "".join(str(place[1]) for place in places)
            if not {target, donor} & self._numbers:
                self._numbers |= {target, donor}
                return target, donor


def _load(name: str) -> Any:
    file = resources.files("semshare.evaluation") / "data" / name
    return json.loads(file.read_text(encoding="utf-8"))
