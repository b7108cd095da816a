"""Texts cut to a number of tokens, at the ends of sentences, paragraphs or verses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from semshare.errors import InvalidRequest
from semshare.evaluation.texts import Paper, full_text

Count = Callable[[str], int]  # tokens of a text

# A paper is used as it is from this share of the asked length on; a shorter one is given in full
# text instead.
LONG_ENOUGH = 0.95


def most_that_fit(build: Callable[[int], str], pieces: int, count: Count, tokens: int) -> int:
    """The largest k ≤ `pieces` for which `build(k)` has at most `tokens` tokens; 0 if none has.

    Args:
        build: the text made of k pieces; more pieces, more tokens.
        pieces: how many pieces there are.
        count: counts the tokens of a text.
        tokens: the limit.

    """
    low, high = 0, pieces  # build(low) fits, or low is 0; build(high + 1) does not
    while low < high:
        middle = (low + high + 1) // 2
        if count(build(middle)) <= tokens:
            low = middle
        else:
            high = middle - 1
    return low


def paper_text(paper: Paper, count: Count, tokens: int) -> str:
    """The paper in at most `tokens` tokens: title, abstract, introduction, conclusion.

    Too long: the end of the introduction goes first, as in LongBench's middle truncation, then
    the conclusion. Far too short: its full text, cut at the end of a paragraph. Empty where not
    even a sentence fits.
    """
    if count(_short(paper)) < LONG_ENOUGH * tokens:
        paragraphs = full_text(paper)

        def build(kept: int) -> str:
            return _blocks(paper.title, *paragraphs[:kept])

        kept = most_that_fit(build, len(paragraphs), count, tokens)
        return build(kept) if kept else ""
    sentences = len(paper.abstract) + len(paper.introduction)
    for with_conclusion in (True, False):
        build = partial(_short, paper, with_conclusion=with_conclusion)
        kept = most_that_fit(build, sentences, count, tokens)
        if kept:
            return build(kept)
    return ""


def by_natural_length(
    papers: Sequence[Paper], count: Count, tokens: int, wanted: int
) -> list[tuple[Paper, str]]:
    """`wanted` papers with a text of about `tokens` tokens, uncut ones first.

    Within the two groups the order of `papers` holds. A text has at most `tokens` tokens and at
    least `LONG_ENOUGH` of them.

    Raises:
        InvalidRequest: fewer than `wanted` papers are long enough.

    """
    uncut: list[tuple[Paper, str]] = []
    cut: list[tuple[Paper, str]] = []
    for paper in papers:
        if len(uncut) >= wanted:
            break
        whole = _short(paper)
        if LONG_ENOUGH * tokens <= count(whole) <= tokens:
            uncut.append((paper, whole))
        elif len(cut) < wanted:
            text = paper_text(paper, count, tokens)
            if count(text) >= LONG_ENOUGH * tokens:
                cut.append((paper, text))
    chosen = (uncut + cut)[:wanted]
    if len(chosen) < wanted:
        raise InvalidRequest(
            f"{wanted} papers of about {tokens} tokens wanted, {len(chosen)} of {len(papers)} "
            "have that length: lower the limit or change the tokens"
        )
    return chosen


def _short(paper: Paper, kept: int | None = None, *, with_conclusion: bool = True) -> str:
    """Title, the first `kept` sentences of abstract and introduction (None: all), conclusion."""
    sentences = [*paper.abstract, *paper.introduction][:kept]
    abstract = sentences[: len(paper.abstract)]
    introduction = sentences[len(paper.abstract) :]
    conclusion = paper.conclusion if with_conclusion else ()
    return _blocks(paper.title, *map(" ".join, (abstract, introduction, conclusion)))


def _blocks(*blocks: str) -> str:
    return "\n\n".join(block for block in blocks if block)
