"""As many different donors as an index is to hold, of real texts, and prompts that look for them.

The packaged texts have 4 million tokens, so most donors are put together: two or three passages of
one text, from anywhere in it. Each token is in eight donors of 100,000, on average.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from semshare.evaluation import texts
from semshare.types import Ids

Kind = Literal["translation", "shifted", "recombined", "continued"]
KINDS: tuple[Kind, ...] = get_args(Kind)

_LENGTHS = (200, 400)  # tokens of donors and targets
_WHOLE = 10  # one donor in so many is one passage


@dataclass(frozen=True, slots=True)
class Sources:
    """Token ids of long texts: those that donors are made of, and one that is in none of them."""

    donors: tuple[Ids, ...]
    other: Ids


@dataclass(frozen=True, slots=True)
class Target:
    """A prompt, and what of it is in a donor for certain."""

    kind: Kind
    ids: Ids
    planted: tuple[tuple[int, int], ...]  # [start, end) of runs


def packaged_sources(tokenizer: Any) -> Sources:
    """Two translations and the full papers; a third translation is in no donor.

    Raises:
        ModelNotAvailable: one of the packages is not installed.

    """
    papers = [
        "\n\n".join(texts.full_text(paper))
        for split in texts.SPLITS
        for paper in texts.papers(split)
    ]
    translations = [
        [f"{verse} " for verse in texts.translation(name).values()]
        for name in ("kjv", "asv", "web")
    ]
    *donors, other = (_ids(tokenizer, parts) for parts in (papers, *translations))
    return Sources(tuple(donors), other)


def make_donors(sources: Sources, count: int, *, seed: int = 0) -> list[Ids]:
    """`count` different donors; the first ones are the same however many there are."""
    rng = np.random.default_rng(seed)
    made: dict[bytes, Ids] = {}
    while len(made) < count:
        source = sources.donors[int(rng.integers(len(sources.donors)))]
        passages = 1 if len(made) % _WHOLE == 0 else int(rng.integers(2, 4))
        length = int(rng.integers(*_LENGTHS)) // passages
        donor = np.concatenate([_passage(source, length, rng) for _ in range(passages)])
        made[donor.tobytes()] = donor
    return list(made.values())


def make_targets(sources: Sources, donors: list[Ids], count: int, *, seed: int = 1) -> list[Target]:
    """Prompts of all kinds in turn; `donors` are those that the planted ones are taken from.

    | kind | what |
    | --- | --- |
    | `translation` | a passage of the text that is in no donor; another wording of many |
    | `shifted` | a passage of a donors' text, from anywhere, after a few words of another |
    | `recombined` | two thirds of a donor in another order, between words of another text |
    | `continued` | the first half of a donor, continued by another text |

    """
    rng = np.random.default_rng(seed)
    return [_target(KINDS[i % len(KINDS)], sources, donors, rng) for i in range(count)]


def _target(kind: Kind, sources: Sources, donors: list[Ids], rng: np.random.Generator) -> Target:
    length = int(rng.integers(*_LENGTHS))
    around = _passage(sources.other, length, rng)
    if kind == "translation":
        return Target(kind, around, ())
    few = length // 8
    if kind == "shifted":
        source = sources.donors[int(rng.integers(len(sources.donors)))]
        ids = np.concatenate((around[:few], _passage(source, length - few, rng)))
        return Target(kind, ids, ())
    donor = donors[int(rng.integers(len(donors)))]
    if kind == "continued":
        half = len(donor) // 2
        return Target(kind, np.concatenate((donor[:half], around[half:])), ((0, half),))
    third = len(donor) // 3
    parts = (around[:few], donor[third : 2 * third], donor[:third], around[-few:])
    planted = ((few, few + third), (few + third, few + 2 * third))
    return Target(kind, np.concatenate(parts), planted)


def _passage(source: Ids, length: int, rng: np.random.Generator) -> Ids:
    start = int(rng.integers(len(source) - length))
    return source[start : start + length]


def _ids(tokenizer: Any, parts: list[str]) -> Ids:
    encoded = tokenizer(parts, add_special_tokens=False)["input_ids"]
    return np.concatenate([np.array(part, np.int32) for part in encoded])
