"""Prompts about documents that resemble an earlier prompt in one way: the builder of pairs.

The target is the set's own text, so that its gold text stays true; the earlier prompt holds the
changed copy. One thing differs in each scenario: for `instruction` that is what was asked, for all
others the document, under the same words.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from semshare.errors import InvalidRequest
from semshare.evaluation.datasets.rewrites import rewrite
from semshare.evaluation.datasets.variants import VARIATIONS, Variation
from semshare.evaluation.lengths import Count, most_that_fit
from semshare.evaluation.material import Example, Messages

# The rewrite of a text is the model's; neither the other text nor the generator has a say.
REWRITE = "rewrite"
COPIES: dict[str, Variation] = {**VARIATIONS, REWRITE: lambda text, _other, _rng: rewrite(text)}
INSTRUCTION = "instruction"
DOCUMENT_SCENARIOS = (INSTRUCTION, *COPIES)

_SPACED_WORD = re.compile(r"\s*\S+(?:\s+\Z)?")


@dataclass(frozen=True, slots=True)
class Document:
    """A text of the asked length, and the prompts about it.

    id:            as in `Example`.
    text:          the document.
    references:    good answers, the gold one first.
    ask:           text → the set's own prompt about it; without a document where it is empty.
    ask_otherwise: text → a prompt with another instruction.
    """

    id: str
    text: str
    references: tuple[str, ...]
    ask: Callable[[str], Messages]
    ask_otherwise: Callable[[str], Messages]


def similar_prompts(
    scenario: str, documents: Sequence[Document], limit: int, seed: int
) -> list[Example]:
    """One example for each of the first `limit` documents.

    Args:
        scenario: one of `DOCUMENT_SCENARIOS`.
        documents: two or more for an `overlap`, which takes each one's next.
        limit: examples, at least 1; fewer where there are fewer documents.
        seed: of the copies; a document's copy does not depend on the others' number.

    Raises:
        InvalidRequest: one document, where two are needed.
        ModelNotAvailable: `rewrite`, and no endpoint to ask.

    """
    if len(documents) == 1 and scenario.startswith("overlap"):
        raise InvalidRequest(f"{scenario} needs a second text to take from: there is only one")
    examples = []
    for index, document in enumerate(documents[:limit]):
        if scenario == INSTRUCTION:
            donor, read = document.ask_otherwise(document.text), None
        else:
            other = documents[(index + 1) % len(documents)].text
            rng = random.Random(f"{scenario}-{document.id}-{seed}")  # noqa: S311 - no secret
            donor = read = document.ask(COPIES[scenario](document.text, other, rng))
        gold, *others = document.references
        examples.append(
            Example(
                document.id,
                (donor,),
                document.ask(document.text),
                gold,
                no_context=document.ask(""),
                donor_text=read,
                references=tuple(others),
            )
        )
    return examples


def without_middle(text: str, count: Count, tokens: int) -> str:
    """The text in at most `tokens` tokens, its middle left out: LongBench's truncation.

    Bai et al., ACL 2024: what matters stands at both ends. There half of the tokens are kept on
    either side of the whole prompt; here half of the words of the document alone, so that the
    instruction stays whole and no word is cut.
    """
    if count(text) <= tokens:
        return text
    words = _SPACED_WORD.findall(text)  # joined they are the text again

    def build(kept: int) -> str:
        head = kept - kept // 2
        return "".join(words[:head] + words[len(words) - kept // 2 :])

    kept = most_that_fit(build, len(words), count, tokens)
    return build(kept)
