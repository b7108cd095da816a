"""Which tokens carry facts: reused only where the donor says exactly the same.

A donor's number, name or negation served in the place of another's is a wrong answer that reads
well, and embedding similarity can't see the difference (`benchmarks/results/facts.json`: 15 % right
without a guard, 99 % with it). The rules look at the surface of the text and err towards computing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from semshare.types import Alignment, Ids, Mask, TokenSource

# With these, any word that ends in "n't", "n't" itself included: tokenized text has it apart.
_NEGATIONS = frozenset(
    "no not never none neither nor nothing nobody nowhere without cannot unless except fail fails "
    "failed false deny denied denies lack lacks lacked reject rejects rejected unable hardly "
    "barely scarcely seldom rarely".split()
)
# Facts that belong to what stands around them; each with a plural "s" too.
_QUANTITIES = frozenset(
    "zero two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety "
    "hundred thousand million billion trillion half halves third fourth fifth sixth seventh eighth "
    "ninth tenth quarter dozen twice thrice double triple single "
    "january february march april june july august september october november december "
    "monday tuesday wednesday thursday friday saturday sunday "
    "kg mg km cm mm nm ml hz khz mhz ghz kb mb gb tb ms usd eur gbp gram kilogram milligram ton "
    "tonne ounce pound litre liter gallon metre meter kilometre kilometer centimetre centimeter "
    "millimetre millimeter mile inch inches foot feet yard acre hectare degree percent dollar euro "
    "yen cent minute hour day week month year decade century centuries".split()
)
# Words that turn a statement around but mean the same everywhere.
_QUALIFIERS = frozenset(
    "one first second seconds all some most few many any more less fewer greater higher lower "
    "above below before after increase increased increases decrease decreased decreases rise rose "
    "risen fall fell fallen".split()
)
# Words that are no names though they have a capital, where a sentence, a quote or a title begins.
_OPENING_WORDS = frozenset(
    "i a an the this that these those such other another one each every both it its he his she her "
    "they their we our us you your my there here what which who whose where when why how in on "
    "at to of for from by with as into under over through during between among about against "
    "within upon despite while since because although though if whether until unless once and but "
    "or so yet also however moreover furthermore thus therefore hence then next finally lastly "
    "nevertheless nonetheless instead indeed still given according is are was were do does did "
    "has have had can could might must shall should would let note see".split()
)
# Tokens after a changed negation that are computed with it.
NEGATION_SCOPE = 4

_SENTENCE_ENDS = (".", "!", "?", "\n", ":")
_OPENERS = " \"'“‘(["  # may stand between a sentence's end and its first word
_LOOK_BACK = 16  # characters in which a sentence's end is looked for
# A token's text shows U+FFFD for a part of a character, which may be a letter.
_WORD = re.compile(
    r"(?:(?<!\w)[-−+](?=\d))?[\w\ufffd]+(?:(?:['’]|::)[\w\ufffd]+)*(?:\(\))?|[%$€£¥°±<>=≤≥]"
)
_CODE_IDENTIFIER = re.compile(r"\w*_\w|[a-z][A-Z]|\w\(\)|\w::\w")


@dataclass(frozen=True, slots=True)
class FactMarks:
    """Which tokens of a text are part of a word of each kind, `[n]` each."""

    facts: Mask  # numbers, names, units, identifiers, negations
    qualifiers: Mask  # and words that may be names because they begin a sentence
    negations: Mask


def is_fact_word(word: str, *, starts_sentence: bool) -> bool:
    """Whether a word carries a fact: a digit, a name, a negation, a quantity, an identifier."""
    lower = _plain(word)
    if any(c.isnumeric() for c in word) or _is_negation(lower):
        return True
    if lower in _QUANTITIES or lower.removesuffix("s") in _QUANTITIES:
        return True
    if not word[0].isalnum() or "\ufffd" in word:
        return True  # a lone % or currency sign, or a word that can't be read token by token
    if any(c.isalpha() and c.lower() == c.upper() for c in word):
        return True  # a script without capitals doesn't show its names
    if _CODE_IDENTIFIER.search(word) or (len(word) > 1 and word.isupper()):
        return True
    return word[0].isupper() and not starts_sentence and lower not in _OPENING_WORDS


@lru_cache(maxsize=1 << 14)
def _kinds(word: str, starts_sentence: bool) -> tuple[bool, bool, bool]:
    """Fact, qualifier, negation: texts have few words, and the rules take a while."""
    return (
        is_fact_word(word, starts_sentence=starts_sentence),
        _is_qualifier(word),
        _is_negation(_plain(word)),
    )


def _is_qualifier(word: str) -> bool:
    """Whether a word that is no fact must be the donor's too; one may begin a sentence."""
    lower = _plain(word)
    return lower in _QUALIFIERS or (word[0].isupper() and lower not in _OPENING_WORDS)


def _is_negation(lower: str) -> bool:
    return lower in _NEGATIONS or lower.endswith("n't")


def _plain(word: str) -> str:
    return word.lower().replace("’", "'")


def mark_facts(ids: Ids, pieces: Callable[[Ids], Sequence[str]]) -> FactMarks:
    """Find the fact words of a text.

    Args:
        ids: `[n]`.
        pieces: the text of each token, leading spaces included.

    """
    texts = pieces(ids)
    starts = np.cumsum([0, *(len(text) for text in texts)])
    text = "".join(texts)
    facts, qualifiers, negations = np.zeros((3, len(ids)), dtype=np.bool_)
    for match in _WORD.finditer(text):
        word = match.group()
        before = text[max(match.start() - _LOOK_BACK, 0) : match.start()].rstrip(_OPENERS)[-1:]
        starts_sentence = before in _SENTENCE_ENDS if before else match.start() <= _LOOK_BACK
        is_fact, is_qualifier, is_negation = _kinds(word, starts_sentence)
        if is_fact or is_qualifier:
            low = int(np.searchsorted(starts, match.start(), side="right")) - 1
            high = int(np.searchsorted(starts, match.end(), side="left"))
            (facts if is_fact else qualifiers)[low:high] = True
            negations[low:high] |= is_negation
    return FactMarks(facts, qualifiers, negations)


def unsafe_reuse(alignment: Alignment, marks: FactMarks, donors: Sequence[FactMarks]) -> Mask:
    """`[n]` bool: tokens whose reuse is not certain to say the same.

    A fact may be reused where it and the token before it stand in the donor one after the other:
    its KV has read what comes before, never what comes after. A qualifier may be reused where the
    donor has it in the same order of words. Nothing else may stand on a fact or a qualifier of the
    donor: not "she" on a name that begins a sentence, not "dropped" on "rose". Where a negation
    came, went or changed, the tokens it governs are not reused either: their KV has read the
    donor's side of it, whether or not the target reads the donor there. A prefix hit is
    exact and always safe.

    Args:
        alignment: what stands for each token of the target.
        marks: of the target.
        donors: marks of each of `alignment.donors`.

    """
    n = len(alignment.source)
    in_order = alignment.in_order
    marked, negated, misread = np.zeros((3, n), dtype=np.bool_)  # of the donor's tokens
    for index, donor in enumerate(donors):
        mine = np.flatnonzero(alignment.donor == index)
        position = alignment.position[mine]
        marked[mine] = (donor.facts | donor.qualifiers)[position]
        negated[mine] = donor.negations[position]
        # Negations of the donor that the target does not have in their place.
        lost = donor.negations.copy()
        lost[position[in_order[mine]]] = False
        misread[mine] = _governed(lost)[position]
    follows = np.diff(alignment.position, prepend=-1) == 1
    follows[1:] &= (np.diff(alignment.donor) == 0) & in_order[:-1]
    follows[:1] = True  # nothing comes before the first token
    unsafe: Mask = marks.facts & ~(in_order & follows)
    unsafe |= (marks.qualifiers | marked) & ~in_order
    unsafe |= misread | _governed((marks.negations | negated) & ~in_order)
    unsafe &= alignment.source != TokenSource.PREFIX
    return unsafe


def _governed(changed: Mask) -> Mask:
    """Changed negations with the tokens they govern: a few after each, and one before."""
    governed = changed.copy()
    for distance in range(1, NEGATION_SCOPE + 1):
        governed[distance:] |= changed[:-distance]
    governed[:-1] |= changed[1:]
    return governed
