"""Fact pairs from real papers: the donor is the text as published, the target a falsified copy."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass

from semshare.evaluation.fact_texts import FactKind, FactPair, FactQuestion, load_values
from semshare.evaluation.texts import SPLITS, Paper, papers

WORDS = 200  # of a passage: 250 to 350 tokens
QUESTIONS = 3  # of one passage
STEM_WORDS = 5  # before the fact in its sentence, so that the question can name the sentence

# ACLSum spaces punctuation off, so a fact is a run of characters between spaces. Single digits are
# left alone: they number sections and lists.
_YEAR = re.compile(r"(?<!\S)(?:19|20)\d\d(?!\S)")
_NUMBER = re.compile(r"(?<!\S)(?:\d+[.,]\d+|\d{2,})(?!\S)")
_CITED = re.compile(r"(?<!\S)([A-Z][a-z]+)(?= et al| and [A-Z][a-z]+ ,| , (?:19|20)\d\d)")
_NEGATED = re.compile(r"(?<!\S)(is|are|was|were|do|does|can|could) not (?=[a-z])")
_ASSERTED = re.compile(r"(?<!\S)(is|are|was|were|can|could) (?=(?!not)[a-z])")


@dataclass(frozen=True, slots=True)
class _Swap:
    """One fact of a sentence. Both texts read the same up to `start`, other swaps aside."""

    kind: FactKind
    start: int
    end: int
    target: str  # what stands at start:end in the target
    answers: tuple[str, str]  # target's and donor's words at `start`


def paper_pairs(wanted: int, *, seed: int = 0) -> tuple[FactPair, ...]:
    """`wanted` pairs of about 300 tokens a text, with `QUESTIONS` questions each.

    Raises:
        ModelNotAvailable: `aclsum` is not installed.

    """
    pairs: list[FactPair] = []
    languages = load_values()["languages"]
    surnames = load_values()["last_names"]
    for split in SPLITS:
        for paper in papers(split, seed=seed):
            if len(pairs) == wanted:
                return tuple(pairs)
            rng = random.Random(f"{paper.id}-{seed}")  # noqa: S311 - no secret
            pair = _falsify(paper, rng, languages, surnames)
            if pair is not None:
                pairs.append(pair)
    return tuple(pairs)


def _falsify(
    paper: Paper, rng: random.Random, languages: list[str], surnames: list[str]
) -> FactPair | None:
    """A pair, or None where the passage has fewer than `QUESTIONS` facts to ask about."""
    sentences = _passage(paper)
    text = " ".join(sentences)
    replaced = _replacements(text, rng, languages, surnames)
    target: list[str] = []
    askable: list[FactQuestion] = []
    negated = False
    for sentence in sentences:
        swaps = list(_swaps(sentence, replaced))
        if not negated:
            negation = _negation(sentence, rng)
            if negation is not None and not any(_overlap(negation, swap) for swap in swaps):
                swaps.append(negation)
                negated = True
        swaps.sort(key=lambda swap: swap.start)
        changed = _apply(sentence, swaps)
        target.append(changed)
        if swaps and sentence.count(" ", 0, swaps[0].start) >= STEM_WORDS:
            askable.append(_question(sentence, swaps[0]))
    openings = [" ".join(sentence.split()[:STEM_WORDS]) for sentence in target]
    changed_text = " ".join(target)
    questions = _varied(
        [
            one
            for one in askable
            if sum(opening in one.question for opening in openings) == 1
            and not _survives(one, changed_text)
        ]
    )
    if len(questions) < QUESTIONS:
        return None
    return FactPair(paper.id, text, changed_text, tuple(questions))


def _survives(question: FactQuestion, target: str) -> bool:
    """Whether the donor's fact is in the target all the same, as in "Japanese-to-English"."""
    if question.kind == "negations":  # there the fact is a word that stands everywhere
        return False
    return re.search(rf"(?<!\w){re.escape(question.donor)}(?!\w)", target) is not None


def _passage(paper: Paper) -> list[str]:
    chosen: list[str] = []
    words = 0
    for sentence in (*paper.abstract, *paper.introduction):
        words += len(sentence.split())
        if words > WORDS:
            break
        chosen.append(sentence.strip())
    return chosen


def _replacements(
    text: str, rng: random.Random, languages: list[str], surnames: list[str]
) -> dict[str, tuple[FactKind, str]]:
    """Fact → its kind and what the target says instead; the same everywhere in the text."""
    taken = set(text.split())
    found: dict[str, tuple[FactKind, str]] = {}

    def put(kind: FactKind, fact: str, candidates: Iterator[str]) -> None:
        if fact not in found:
            new = next(one for one in candidates if one not in taken)
            taken.add(new)
            found[fact] = (kind, new)

    for match in _YEAR.finditer(text):
        put("dates", match[0], (str(rng.randint(1961, 2023)) for _ in iter(int, 1)))
    for match in _NUMBER.finditer(text):
        put("numbers", match[0], (_other_digits(match[0], rng) for _ in iter(int, 1)))
    for match in _CITED.finditer(text):
        if match[1] not in languages:
            put("names", match[1], iter(rng.sample(surnames, len(surnames))))
    for word in text.split():
        if word in languages:
            put("names", word, iter(rng.sample(languages, len(languages))))
    return found


def _other_digits(number: str, rng: random.Random) -> str:
    """The same format with another digit, never a zero, at every place."""
    return re.sub(r"\d", lambda old: rng.choice([d for d in "123456789" if d != old[0]]), number)


def _swaps(sentence: str, replaced: dict[str, tuple[FactKind, str]]) -> Iterator[_Swap]:
    for word in re.finditer(r"\S+", sentence):
        if word[0] in replaced:
            kind, new = replaced[word[0]]
            yield _Swap(kind, word.start(), word.end(), new, (new, word[0]))


def _negation(sentence: str, rng: random.Random) -> _Swap | None:
    """A "not" to take out or, as often, one to put in."""
    patterns = [_NEGATED, _ASSERTED]
    rng.shuffle(patterns)
    for pattern in patterns:
        match = pattern.search(sentence)
        if match is None or sentence.count(" ", 0, match.start()) < STEM_WORDS:
            continue
        following = re.match(r"\S+", sentence[match.end() :])
        word = following[0] if following else ""
        start = match.end(1) + 1
        if pattern is _NEGATED:
            return _Swap("negations", start, match.end(), "", (word, "not"))
        return _Swap("negations", start, start, "not ", ("not", word))
    return None


def _overlap(one: _Swap, other: _Swap) -> bool:
    return one.start <= other.end and other.start <= one.end


def _apply(sentence: str, swaps: list[_Swap]) -> str:
    parts, at = [], 0
    for swap in swaps:
        parts += [sentence[at : swap.start], swap.target]
        at = swap.end
    return "".join([*parts, sentence[at:]])


def _question(sentence: str, swap: _Swap) -> FactQuestion:
    """The model is to quote the sentence; up to its first swap both texts agree on it."""
    opening = " ".join(sentence.split()[:STEM_WORDS])
    question = f'Quote the sentence of the text that begins with "{opening}".'
    return FactQuestion(swap.kind, question, sentence[: swap.start].rstrip(), *swap.answers)


def _varied(questions: list[FactQuestion]) -> list[FactQuestion]:
    """`QUESTIONS` of them, one of each kind before a second of any; fewer if there are fewer."""
    seen: dict[str, int] = {}
    ranked = []
    for order, question in enumerate(questions):
        rank = seen.get(question.kind, 0)
        seen[question.kind] = rank + 1
        ranked.append((rank, order, question))
    return [question for _, _, question in sorted(ranked, key=lambda item: item[:2])[:QUESTIONS]]
