"""How the questions are worded: one place, so that every scenario asks as a user would."""

from __future__ import annotations

from collections.abc import Sequence

from semshare.evaluation.texts import Aspect
from semshare.types import ChatMessage

SUMMARIZE: dict[Aspect, str] = {
    "challenge": "Summarize the challenge that the following paper addresses in one sentence.",
    "approach": "Summarize the approach of the following paper in one sentence.",
    "outcome": "Summarize the main outcome of the following paper in one sentence.",
}
QUESTION: dict[Aspect, str] = {
    "challenge": "In one sentence, what challenge does the paper address?",
    "approach": "In one sentence, what is the approach of the paper?",
    "outcome": "In one sentence, what is the main outcome of the paper?",
}
OPENING = "Here is a scientific article. Read it and answer the question below it."
SUMMARIZE_PASSAGE = "Summarize the following chapters in a few sentences."
PASSAGE_OPENING = "Here is a passage from an old book. Read it and answer the question below it."
PASSAGE_QUESTION = "What happens in this passage? Answer in a few sentences."
_NUMBER_WORDS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def user(*blocks: str) -> list[ChatMessage]:
    """A chat of one user message; empty blocks are left out, the others a blank line apart."""
    return [{"role": "user", "content": "\n\n".join(block for block in blocks if block)}]


def several_articles(articles: Sequence[str], question: str) -> list[ChatMessage]:
    """One question over several numbered articles."""
    count = len(articles)
    number = _NUMBER_WORDS[count] if count < len(_NUMBER_WORDS) else str(count)
    blocks = [f"Article {index + 1}:\n\n{article}" for index, article in enumerate(articles)]
    opening = f"Here are {number} scientific articles. Read them and answer the question below."
    return user(opening, *blocks, question)


def question_about(title: str) -> str:
    """A question about the outcome of one of several articles."""
    return f'In one sentence, what is the main outcome of the article "{title}"?'
