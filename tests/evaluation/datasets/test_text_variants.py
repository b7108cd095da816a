import random
import re
from collections import Counter
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st
from properties import examples

from semshare.errors import InvalidRequest
from semshare.evaluation.datasets.variants import OVERLAPS, VARIATIONS, _synonyms
from semshare.evaluation.entities import names, numbers
from semshare.evaluation.texts import full_text, papers

OTHER = "Foreign words stand here. They are of quite another text! Are they? Yes."

words = st.text("abcde", min_size=1, max_size=6)
sentences = st.lists(words, min_size=1, max_size=9).map(lambda body: " ".join(body) + ".")
sections = st.lists(sentences, min_size=1, max_size=4).map(" ".join)
texts = st.lists(sections, min_size=1, max_size=5).map("\n\n".join)
seeds = st.integers(0, 10**6)


def vary(name: str, text: str, seed: int = 0, other: str = OTHER) -> str:
    return VARIATIONS[name](text, other, random.Random(seed))  # noqa: S311 - no secret


@cache
def paper() -> str:
    return "\n\n".join(full_text(papers("test")[0]))


@pytest.mark.parametrize("name", VARIATIONS)
def test_a_copy_of_a_real_paper_is_the_seeds_and_differs(name: str) -> None:
    copy = vary(name, paper())
    assert copy == vary(name, paper())
    assert copy != paper()
    assert copy != vary(name, paper(), seed=1)
    assert len(copy.split()) == pytest.approx(len(paper().split()), rel=0.02)


@examples(100)
@given(texts, seeds)
def test_reordering_is_a_permutation_of_sections_or_sentences(text: str, seed: int) -> None:
    copy = vary("reordered", text, seed)
    sections = text.split("\n\n")
    if len(sections) >= 3:
        before, after = sections, copy.split("\n\n")
    else:
        before, after = (re.split(r"(?<=\.)\s+", whole) for whole in (text, copy))
    assert Counter(after) == Counter(before)
    assert (after == before) == (len(set(before)) == 1)


@pytest.mark.parametrize("share", OVERLAPS)
@examples(60)
@given(text=texts, seed=seeds)
def test_overlap_keeps_its_share_but_for_half_a_sentence(share: int, text: str, seed: int) -> None:
    copy = vary(f"overlap-{share}", text, seed)
    own, foreign = text.split(), set(OTHER.split())
    kept = [word for word in copy.split() if word not in foreign]
    longest = max(len(sentence.split()) for sentence in re.split(r"(?<=\.)\s+", text))
    assert abs(len(kept) - len(own) * share / 100) <= longest / 2
    # In their order, and the copy is as long as the text or longer by less than a sentence.
    rest = iter(own)
    assert all(word in rest for word in kept)
    assert 0 <= len(copy.split()) - len(own) < 6


def test_overlap_takes_the_other_text_in_order_and_again() -> None:
    assert vary("overlap-20", "a. b. c.", other="x. y.").replace(".", "").split() in (
        ["a", "x", "y"],
        ["x", "b", "y"],
        ["x", "y", "c"],
        ["x", "y", "x"],
    )
    with pytest.raises(InvalidRequest, match="one of no words"):
        vary("overlap-20", "a. b.", other=" \n")


items = st.sampled_from(
    "Reed Oslo Kant March Dutch BLEU the or 7 42 0.05 1,024 1987 2005 300".split()
)


@examples(100)
@given(st.lists(items, min_size=1, max_size=30), seeds)
def test_swaps_change_every_name_and_number_always_to_the_same(found: list[str], seed: int) -> None:
    text = "so " + " ".join(found)
    pairs = list(zip(text.split(), vary("entities", text, seed).split(), strict=True))
    swaps = dict(pairs)
    assert all(swaps[before] == after for before, after in pairs)
    for before, after in swaps.items():
        assert (before == after) == (before in ("so", "BLEU", "the", "or", "7"))
        assert re.sub(r"\d", "0", after) == re.sub(r"\d", "0", before) or before[0].isalpha()
    assert 1900 <= int(swaps.get("1987", 1900)) < 2030
    renamed = {after for before, after in swaps.items() if before[0].isupper()}
    assert len(renamed) == sum(before[0].isupper() for before in swaps)  # two stay two


def test_swaps_reach_the_beginnings_of_sentences_and_keep_kinds() -> None:
    text = "Reed left Oslo in March. Oslo missed Reed, who may march. Then Mr Reed met Kant."
    copy = vary("entities", text)
    assert copy.split()[2] == copy.split()[5]
    assert copy.split()[2].isalpha()
    assert "Reed" not in copy
    assert "March" in copy  # "march" is a word of this text, so "March" may be one
    assert names(copy)[0] != "Oslo"


def test_more_names_than_the_tables_have_stay_apart() -> None:
    letters = [a + b for a in "BCDFG" for b in "aeiou"]
    many = sorted({f"{a.capitalize()}{b}r" for a in letters for b in letters})
    copy = vary("entities", "so " + " ".join(many)).split()
    assert len(many) == 625
    assert len(set(copy)) == 626
    assert not set(copy) & set(many)


def test_numbers_of_a_real_paper_are_all_swapped() -> None:
    before, after = numbers(paper()), numbers(vary("entities", paper()))
    assert len(before) == len(after) > 20
    for old, new in zip(before, after, strict=True):
        assert (old == new) == (len(old) == 1 or not old.strip("0.,"))


def test_synonyms_are_of_the_same_group_and_nothing_else_changes() -> None:
    before, after = paper().split(), vary("synonyms", paper()).split()
    strip = re.compile(r"[^a-z]")
    changed = 0
    for old, new in zip(before, after, strict=True):
        if old != new:
            changed += 1
            parts = zip(re.split(r"\W|_|\d", old), re.split(r"\W|_|\d", new), strict=True)
            for one, other in parts:
                assert one == other or other.lower() in _synonyms()[strip.sub("", one.lower())]
                assert one[:1].isupper() == other[:1].isupper()
    assert changed > 0.02 * len(before)


def test_a_word_of_the_synonyms_has_one_group_and_one_form() -> None:
    table = _synonyms()
    assert len(table) > 300
    for word, others in table.items():
        assert word == word.lower()
        assert word not in others
        assert all(word in table[other] for other in others)


def test_synonyms_keep_capitals_and_say_the_same_word_the_same_way() -> None:
    copy = vary("synonyms", "Method and method, METHOD; Often methods.")
    first, second = re.findall(r"\w+", copy)[0], re.findall(r"\w+", copy)[2]
    assert first == second.capitalize() != "Method"
    assert "METHOD; Frequently" in copy
    copy = vary("synonyms", "Errors of the Word Error Rate are an error.")
    assert copy == "Mistakes of the Word Error Rate are an mistake."
