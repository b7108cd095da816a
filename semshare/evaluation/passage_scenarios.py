"""Scenarios that need long or foreign text: translations of one old book."""

from __future__ import annotations

from functools import partial

from semshare.errors import InvalidRequest
from semshare.evaluation import prompts
from semshare.evaluation.lengths import most_that_fit
from semshare.evaluation.material import Example, Material, Messages
from semshare.evaluation.paper_scenarios import (
    DONOR_ASPECT,
    TARGET_ASPECTS,
    instruction_first,
    question_last,
)
from semshare.evaluation.texts import Passage, passages

# Of the six pairs the one that shares the fewest ids, about two thirds: the modern translation is
# in the cache, the old one is asked about.
DONOR_TRANSLATION, TARGET_TRANSLATION = "web", "kjv"
TOKENS_PER_VERSE = 16  # fewer than any long passage has, so that there are verses enough
UNRELATED_DONORS = 2  # each half as long as the target


def about_passage(text: str) -> Messages:
    """An opening line, the passage, the question."""
    return prompts.user(prompts.PASSAGE_OPENING, text, prompts.PASSAGE_QUESTION)


def long(material: Material, limit: int) -> list[Example]:
    """The same verses in two translations, modern in the donor and old in the target."""
    return [
        _translated(passage, donor, target)
        for passage, target, donor in _cut_passages(material, limit)
    ]


def modern(material: Material, limit: int) -> list[Example]:
    """`long` the other way round: old in the donor and modern in the target.

    The target has the length that the translation makes, a few hundredths off the asked one.
    """
    return [_translated(passage, old, new) for passage, old, new in _cut_passages(material, limit)]


def unrelated(material: Material, limit: int) -> list[Example]:
    """Donors that are no use. Every other target is a paper too, the harder half to tell apart."""
    article_count = (limit + 1) // 2
    room = material.room_in(question_last("", "challenge"))
    articles = material.papers(room, article_count)
    taken = {paper.id for paper, _ in articles}
    donor_count = limit * UNRELATED_DONORS
    # As many more as there are targets, so that leaving those out leaves enough.
    candidates = material.papers(material.tokens // 2, donor_count + article_count)
    donors = [text for paper, text in candidates if paper.id not in taken][:donor_count]
    old = _cut_passages(material, limit // 2)
    examples = []
    for index in range(limit):
        foreign = donors[index * UNRELATED_DONORS : (index + 1) * UNRELATED_DONORS]
        if index % 2:
            passage, text, _ = old[index // 2]
            name, ask = passage.id, about_passage
        else:
            paper, text = articles[index // 2]
            name, ask = paper.id, partial(question_last, aspect=TARGET_ASPECTS[index // 2 % 2])
        examples.append(
            Example(
                name,
                tuple(instruction_first(donor, DONOR_ASPECT) for donor in foreign),
                ask(text),
                no_context=ask(""),
                donor_text=ask("\n\n".join(foreign)),
            )
        )
    return examples


def _translated(passage: Passage, donor: str, target: str) -> Example:
    return Example(
        passage.id,
        (prompts.user(prompts.SUMMARIZE_PASSAGE, donor),),
        about_passage(target),
        no_context=about_passage(""),
        donor_text=about_passage(donor),
    )


def _cut_passages(material: Material, wanted: int) -> list[tuple[Passage, str, str]]:
    """Passages whose target text fills the prompt, with that text and the donor's same verses."""
    verses_wanted = material.tokens // TOKENS_PER_VERSE + 1
    found = passages(verses_wanted, material.split, seed=material.seed)
    if len(found) < wanted:
        raise InvalidRequest(
            f"{wanted} passages of {material.tokens} tokens wanted, there are {len(found)}: "
            "lower the limit or the tokens"
        )
    room = material.room_in(about_passage(" "))
    chosen = []
    for passage in found[:wanted]:
        verses = passage.verses[TARGET_TRANSLATION]

        def build(kept: int, verses: tuple[str, ...] = verses) -> str:
            return " ".join(verses[:kept])

        kept = most_that_fit(build, len(verses), material.text_tokens, room)
        if not kept:
            raise InvalidRequest(f"no verse fits into {room} tokens: ask for a longer prompt")
        donor = " ".join(passage.verses[DONOR_TRANSLATION][:kept])
        chosen.append((passage, build(kept), donor))
    return chosen
