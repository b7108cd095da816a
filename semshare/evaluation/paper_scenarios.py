"""Scenarios over scientific papers: ACLSum's, and the rewritten passages."""

from __future__ import annotations

import random

from semshare.errors import InvalidRequest
from semshare.evaluation import prompts
from semshare.evaluation.material import Example, Material, Messages
from semshare.evaluation.texts import Aspect, paraphrase_pairs

ARTICLES = 5  # in `multi_donor`
# Rewritten passages can't be cut, since the gold summary speaks of all of them: each is used at the
# length it has, nearest to the asked one first. Wide enough for all six of a split at the default
# length, so that none of so few is left out; what is farther off says that it can't be done.
PAIR_TOLERANCE = 0.55

DONOR_ASPECT: Aspect = "approach"
TARGET_ASPECTS: tuple[Aspect, ...] = ("outcome", "challenge")


def question_last(document: str, aspect: Aspect) -> Messages:
    """An opening line, the document, the question; without the document where it is empty."""
    return prompts.user(prompts.OPENING, document, prompts.QUESTION[aspect])


def instruction_first(document: str, aspect: Aspect) -> Messages:
    """What to do, then the document, and nothing after it."""
    return prompts.user(prompts.SUMMARIZE[aspect], document)


def prefix(material: Material, limit: int) -> list[Example]:
    """A second question about a paper: only the last line differs."""
    room = material.room_in(question_last("", "challenge"))
    return [
        Example(
            f"{paper.id}/{aspect}",
            (question_last(text, DONOR_ASPECT),),
            question_last(text, aspect),
            no_context=question_last("", aspect),
        )
        for index, (paper, text) in enumerate(material.papers(room, limit))
        for aspect in (TARGET_ASPECTS[index % 2],)
    ]


def shifted(material: Material, limit: int) -> list[Example]:
    """The same paper after another instruction, so that nothing is a prefix."""
    room = material.room_in(question_last("", "challenge"))
    return [
        Example(
            f"{paper.id}/{aspect}",
            (instruction_first(text, DONOR_ASPECT),),
            question_last(text, aspect),
            paper.gold[aspect],
            no_context=question_last("", aspect),
        )
        for index, (paper, text) in enumerate(material.papers(room, limit))
        for aspect in (TARGET_ASPECTS[index % 2],)
    ]


def multi_donor(material: Material, limit: int) -> list[Example]:
    """Several papers in one prompt, each from a donor of its own, in an order never seen."""
    longest_title = "x" * 80
    frame = prompts.several_articles([" "] * ARTICLES, prompts.question_about(longest_title))
    found = material.papers(material.room_in(frame) // ARTICLES, limit * ARTICLES)
    order = random.Random(f"order-{material.seed}")  # noqa: S311 - an order, no secret
    examples = []
    for index in range(limit):
        group = found[index * ARTICLES : (index + 1) * ARTICLES]
        donors = tuple(instruction_first(text, DONOR_ASPECT) for _, text in group)
        shuffled = order.sample(group, ARTICLES)
        asked = shuffled[ARTICLES // 2][0]  # neither the first nor the last
        question = prompts.question_about(asked.title)
        target = prompts.several_articles([text for _, text in shuffled], question)
        names = "+".join(paper.id for paper, _ in shuffled)
        examples.append(
            Example(
                names,
                donors,
                target,
                asked.gold["outcome"],
                no_context=prompts.user(question),
                donor_text=prompts.several_articles([text for _, text in group], question),
            )
        )
    return examples


def paraphrase(material: Material, limit: int) -> list[Example]:
    """A passage rewritten by a language model; first one question about each, then another."""
    distances = [
        (abs(material.count(question_last(pair.rewrite, "outcome")) / material.tokens - 1), pair)
        for pair in paraphrase_pairs(material.split)
    ]
    near = sorted((item for item in distances if item[0] <= PAIR_TOLERANCE), key=lambda x: x[0])
    if not near:
        raise InvalidRequest(
            f"no rewritten passage makes a prompt within {PAIR_TOLERANCE:.0%} of "
            f"{material.tokens} tokens: ask for another length"
        )
    examples = [
        Example(
            f"{pair.id}/{aspect}",
            (instruction_first(pair.source, DONOR_ASPECT),),
            question_last(pair.rewrite, aspect),
            pair.gold[aspect],
            no_context=question_last("", aspect),
            donor_text=question_last(pair.source, aspect),
        )
        for aspect in TARGET_ASPECTS
        for _, pair in near
    ]
    return examples[:limit]
