"""Which tokens carry facts: reused only where the donor says exactly the same.

A donor's number, name or negation served in the place of another's is a wrong answer that reads
well, and embedding similarity can't see the difference (findings: 20 % right without a guard,
100 % with one). The rules look at the surface of the text and err towards computing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from semshare.types import Alignment, Ids, Mask, TokenSource

_NEGATIONS = frozenset(
    "no not never none neither nor nothing nobody nowhere without cannot can't won't don't "
    "doesn't didn't isn't aren't wasn't weren't hasn't haven't hadn't shouldn't wouldn't "
    "couldn't unless except fail fails failed false deny denied denies lack lacks lacked "
    "reject rejects rejected unable hardly barely".split()
)
_QUANTITIES = frozenset(
    "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety "
    "hundred thousand million billion half third quarter dozen first second third fourth fifth "
    "once twice double triple all some most few many any every each only both "
    "more less fewer greater higher lower above below before after increase increased decrease "
    "decreased increases decreases rise rose risen fall fell fallen "
    "january february march april may june july august september october november december "
    "monday tuesday wednesday thursday friday saturday sunday "
    "kg mg km cm mm nm ml hz khz mhz ghz kb mb gb tb ms usd eur gbp dollars euros pounds percent "
    "degrees miles metres meters inches feet hours minutes seconds days weeks months years".split()
)
# A token's text shows U+FFFD for a part of a character, which may be a letter.
# Tokens after a changed negation that are computed with it.
NEGATION_SCOPE = 4
# A jump over more donor tokens than this is a cut to another place, not an omission.
MAX_SKIP = 8

_SENTENCE_ENDS = ("", ".", "!", "?", "\n", ":")
_WORD = re.compile(r"[\w\ufffd]+(?:(?:['’]|::)[\w\ufffd]+)*(?:\(\))?|[%$€£¥°±<>=≤≥]")
_CODE_IDENTIFIER = re.compile(r"\w*_\w|[a-z][A-Z]|\w\(\)|\w::\w")


@dataclass(frozen=True, slots=True)
class GuardedDonor:
    """What the guard needs to know of a donor."""

    ids: Ids  # [donor tokens]
    negations: Mask  # [donor tokens]


def is_fact_word(word: str, *, starts_sentence: bool) -> bool:
    """Whether a word carries a fact: a digit, a name, a negation, a quantity, an identifier."""
    lower = _plain(word)
    if any(c.isnumeric() for c in word) or lower in _NEGATIONS or lower in _QUANTITIES:
        return True
    if not word[0].isalnum() or "\ufffd" in word:
        return True  # a lone % or currency sign, or a word that can't be read token by token
    if _CODE_IDENTIFIER.search(word) or (len(word) > 1 and word.isupper()):
        return True
    return word[0].isupper() and not starts_sentence


def _plain(word: str) -> str:
    return word.lower().replace("’", "'")


@dataclass(frozen=True, slots=True)
class FactMarks:
    """Which tokens of a text are part of a word that carries a fact, or that negates."""

    facts: Mask  # [n], negations included
    negations: Mask  # [n]


def mark_facts(ids: Ids, pieces: Callable[[Ids], Sequence[str]]) -> FactMarks:
    """Find the fact words of a text.

    Args:
        ids: `[n]`.
        pieces: the text of each token, leading spaces included.

    """
    texts = pieces(ids)
    starts = np.cumsum([0, *(len(text) for text in texts)])
    text = "".join(texts)
    facts = np.zeros(len(ids), dtype=np.bool_)
    negations = np.zeros(len(ids), dtype=np.bool_)
    for match in _WORD.finditer(text):
        word = match.group()
        before = text[: match.start()].rstrip(" \"'“‘([")[-1:]
        if is_fact_word(word, starts_sentence=before in _SENTENCE_ENDS):
            low = int(np.searchsorted(starts, match.start(), side="right")) - 1
            high = int(np.searchsorted(starts, match.end(), side="left"))
            facts[low:high] = True
            negations[low:high] = _plain(word) in _NEGATIONS
    return FactMarks(facts, negations)


def unsafe_reuse(
    ids: Ids,
    alignment: Alignment,
    marks: FactMarks,
    donors: Sequence[GuardedDonor],
) -> Mask:
    """`[n]` bool: tokens whose reuse is not certain to say the same.

    A fact token may be reused where its id and those of its neighbours are the donor's, in one
    run. Where a negation came, went or changed, the tokens it governs are not reused either: their
    KV has read the donor's side of it. A prefix hit is exact and always safe.

    Args:
        ids: `[n]` of the target.
        alignment: what stands for each token.
        marks: of the target.
        donors: for each of `alignment.donors`.

    """
    same = np.zeros(len(ids), dtype=np.bool_)
    negated = np.zeros(len(ids), dtype=np.bool_)  # the donor's token is part of a negation
    skipped = np.zeros(len(ids), dtype=np.bool_)  # the donor has a negation just before it, unread
    for index, donor in enumerate(donors):
        mine = np.flatnonzero(alignment.donor == index)
        position = alignment.position[mine]
        same[mine] = ids[mine] == donor.ids[position]
        negated[mine] = donor.negations[position]
        count = np.concatenate(([0], np.cumsum(donor.negations)))  # negation tokens before each
        jump = np.flatnonzero((np.diff(position) > 1) & (np.diff(position) <= MAX_SKIP)) + 1
        skipped[mine[jump]] = count[position[jump]] > count[position[jump - 1] + 1]
    # step[i]: tokens i and i + 1 continue one run of the same donor. Beyond the ends of the prompt
    # nothing differs.
    step = same[1:] & same[:-1] & _consecutive(alignment)
    certain = same & np.append(True, step) & np.append(step, True)
    changed = (marks.negations & ~certain) | (negated & ~same) | skipped
    exact = alignment.source == TokenSource.PREFIX
    unsafe: Mask = ((marks.facts & ~certain) | _spread(changed)) & ~exact
    return unsafe


def _spread(changed: Mask) -> Mask:
    """The tokens governed by those that changed: a few after each, and one before."""
    spread = changed.copy()
    for distance in range(1, NEGATION_SCOPE + 1):
        spread[distance:] |= changed[:-distance]
    spread[:-1] |= changed[1:]
    return spread


def _consecutive(alignment: Alignment) -> Mask:
    """`[n − 1]`: token i + 1 stands on the donor token after token i's."""
    consecutive: Mask = (np.diff(alignment.position) == 1) & (np.diff(alignment.donor) == 0)
    return consecutive
