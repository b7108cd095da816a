"""What every scenario is made of: a prompt to remember, a prompt to serve, a text to score."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from semshare.evaluation import prompts
from semshare.evaluation.fact_texts import FactQuestion
from semshare.evaluation.lengths import by_natural_length
from semshare.evaluation.texts import Paper, Split, papers
from semshare.types import ChatMessage

Messages = list[ChatMessage]


@dataclass(frozen=True, slots=True)
class Example:
    """One target prompt with the donors remembered before it."""

    id: str
    donors: tuple[Messages, ...]
    target: Messages
    gold: str | None = None  # the continuation to score; None: the model's own full greedy answer
    no_context: Messages | None = None  # the target without its document, for PGR
    # The donors' document in the place of the target's, for the control that reads it.
    donor_text: Messages | None = None
    references: tuple[str, ...] = ()  # other answers that are as good as `gold`
    fact: FactQuestion | None = None  # asked about a fact that the donor's text has another of


@dataclass(frozen=True, slots=True)
class Material:
    """The length, order and source of a scenario's texts."""

    count: Callable[[Messages], int]  # tokens of a chat, its template included
    tokens: int  # of a target prompt
    seed: int = 0
    split: Split = "test"

    def text_tokens(self, text: str) -> int:
        """Tokens of a text inside a chat."""
        return self.count(prompts.user(text)) - self.count(prompts.user(""))

    def room_in(self, frame: Messages) -> int:
        """Tokens left for documents when `frame` is the target without them."""
        return self.tokens - self.count(frame)

    def papers(self, tokens: int, wanted: int) -> list[tuple[Paper, str]]:
        """`wanted` papers, each with a text of about `tokens` tokens."""
        found = papers(self.split, seed=self.seed)
        return by_natural_length(found, self.text_tokens, tokens, wanted)
