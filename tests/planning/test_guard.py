"""Which words carry facts, and where a fact may be reused, by hand."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import pytest

from semshare.planning.guard import (
    MAX_SKIP,
    NEGATION_SCOPE,
    FactMarks,
    GuardedDonor,
    is_fact_word,
    mark_facts,
    unsafe_reuse,
)
from semshare.types import Alignment, Ids, TokenSource

FRESH, PREFIX, SPAN, FUZZY = TokenSource


@pytest.mark.parametrize(
    "word",
    "7 1999 3rd B2B x1 Paris Müller NASA eV not never Don't isn’t without cannot hardly "
    "kg GHz percent twelve half second both fewer above increased rose Monday may "
    "get_value parseJson f() std::move __init__ % € ≥ ½".split(),
)
def test_words_with_facts(word: str) -> None:
    assert is_fact_word(word, starts_sentence=False)


@pytest.mark.parametrize("word", "table notable running the a über don it's ok".split())
def test_words_without_facts(word: str) -> None:
    assert not is_fact_word(word, starts_sentence=False)


def test_a_capital_at_the_start_of_a_sentence_is_no_name_but_other_facts_stay() -> None:
    assert not is_fact_word("The", starts_sentence=True)
    for word in ("NASA", "Not", "Twelve", "B2B", "parseJson"):
        assert is_fact_word(word, starts_sentence=True)


def facts_in(text: str, split: str = r"\s*\S+") -> list[str]:
    """Tokens of `text`, cut by a pattern, that carry facts."""
    pieces = re.findall(split, text)
    assert "".join(pieces) == text
    marks = mark_facts(np.arange(len(pieces), dtype=np.int32), lambda _: pieces)
    assert not np.any(marks.negations & ~marks.facts)
    return [piece.strip() for piece, is_fact in zip(pieces, marks.facts, strict=True) if is_fact]


def negations_in(text: str, split: str = r"\s*\S+") -> list[str]:
    """Tokens of `text` that are part of a negation."""
    pieces = re.findall(split, text)
    mask = mark_facts(np.arange(len(pieces), dtype=np.int32), lambda _: pieces).negations
    return [piece.strip() for piece, negates in zip(pieces, mask, strict=True) if negates]


def test_facts_in_a_sentence() -> None:
    found = facts_in("The city of Paris had 2,140,000 people, not more. Then it grew by 3 %.")
    assert found == ["Paris", "2,140,000", "not", "more.", "3", "%."]


@pytest.mark.parametrize("end", [".", "!", "?", ":", ".\n\n", '." ', ". ("])
def test_a_sentence_starts_after_its_end(end: str) -> None:
    assert facts_in(f"it was so{end} Then it went on") == []
    assert facts_in(f"it was so{end} then Anna went on") == ["Anna"]


def test_a_comma_or_dash_starts_no_sentence() -> None:
    assert facts_in("so, Anna - Bert went on") == ["Anna", "Bert"]


def test_the_first_word_of_a_prompt_starts_a_sentence() -> None:
    assert facts_in("Then we go") == []
    assert facts_in('"Then" we go') == []


def test_all_tokens_of_a_word_carry_its_fact() -> None:
    assert facts_in("see Johannesburg there", r"\s?\w{1,4}") == ["Joha", "nnes", "burg"]
    assert facts_in("in 20245 x", r"\s?\w{1,2}") == ["20", "24", "5"]
    assert facts_in("do isn't so", r"\s?\w+|'") == ["isn", "'", "t"]


def test_code_identifiers_are_facts_as_a_whole() -> None:
    text = "so call std::move or get_value then f() and parseJson too"
    assert facts_in(text) == ["std::move", "get_value", "f()", "parseJson"]


def test_a_token_that_holds_a_fact_and_more_is_a_fact() -> None:
    assert facts_in("about 5 of", r"about 5|\s\w+") == ["about 5"]


def test_an_empty_token_is_harmless() -> None:
    pieces = ["a", "", " Berlin", "", " b"]
    facts = mark_facts(np.arange(5, dtype=np.int32), lambda _: pieces).facts
    assert facts[2]
    assert not facts[[0, 4]].any()
    assert len(mark_facts(np.empty(0, np.int32), lambda _: []).facts) == 0


def test_negations_are_marked_apart() -> None:
    assert negations_in("it is not 5, nor does Anna don't. Never") == [
        "not",
        "nor",
        "don't.",
        "Never",
    ]
    assert negations_in("it isn’t so", r"\s?\w+|’") == ["isn", "’", "t"]


@pytest.mark.parametrize(
    "pieces",
    [
        [" �", "�", "uk", "asz"],  # Łukasz: Ł is two tokens
        [" �", "�", "�"],  # 北
        [" na", "�", "�", "ve"],
    ],
)
def test_a_word_with_characters_split_between_tokens_may_be_a_name(pieces: list[str]) -> None:
    ids = np.arange(len(pieces) + 2, dtype=np.int32)
    facts = mark_facts(ids, lambda _: ["met", *pieces, " there"]).facts
    assert facts.tolist() == [False, *[True] * len(pieces), False]


def alignment(
    source: Sequence[int], position: Sequence[int], donor: Sequence[int] | None = None
) -> Alignment:
    n = len(source)
    return Alignment(
        source=np.array(source, np.uint8),
        donor=np.array(donor or [0 if s else -1 for s in source], np.int32),
        position=np.array(position, np.int32),
        similarity=np.ones(n, np.float32),
        donors=("d", "e"),
    )


DONOR = np.arange(100, 120, dtype=np.int32)  # the id at position p is 100 + p
OTHER = np.arange(200, 220, dtype=np.int32)


def unsafe(
    ids: Sequence[int],
    found: Alignment,
    facts: Sequence[int] = (),
    negations: Sequence[int] = (),
    donor_negations: Sequence[int] = (),
) -> list[int]:
    """Positions that may not be reused; `donor_negations` are positions in the first donor."""

    def mask(n: int, at: Sequence[int]) -> np.ndarray:
        marked = np.zeros(n, np.bool_)
        marked[list(at)] = True
        return marked

    target: Ids = np.array(ids, np.int32)
    marks = FactMarks(mask(len(ids), [*facts, *negations]), mask(len(ids), negations))
    donors = [
        GuardedDonor(DONOR, mask(len(DONOR), donor_negations)),
        GuardedDonor(OTHER, mask(len(OTHER), [])),
    ]
    return np.flatnonzero(unsafe_reuse(target, found, marks, donors)).tolist()


def test_a_fact_inside_an_identical_run_is_safe() -> None:
    found = alignment([SPAN] * 5, [3, 4, 5, 6, 7])
    assert unsafe([103, 104, 105, 106, 107], found, range(5)) == []


def test_a_fact_beside_a_fresh_token_is_unsafe() -> None:
    found = alignment([SPAN] * 4 + [FRESH] + [SPAN] * 4, [0, 1, 2, 3, -1, 5, 6, 7, 8])
    ids = [100, 101, 102, 103, 999, 105, 106, 107, 108]
    assert unsafe(ids, found, range(9)) == [3, 4, 5]
    assert unsafe(ids, found, [0, 5, 8]) == [5]
    assert unsafe(ids, found) == []


def test_a_fuzzy_fact_is_unsafe_and_so_are_its_neighbours() -> None:
    found = alignment([SPAN, SPAN, FUZZY, SPAN, SPAN], [0, 1, 2, 3, 4])
    assert unsafe([100, 101, 777, 103, 104], found, range(5)) == [1, 2, 3]


def test_a_break_of_the_run_makes_both_sides_unsafe() -> None:
    found = alignment([SPAN] * 6, [0, 1, 2, 10, 11, 12])
    assert unsafe([100, 101, 102, 110, 111, 112], found, range(6)) == [2, 3]


def test_a_change_of_donor_breaks_the_run_even_at_the_next_position() -> None:
    found = alignment([SPAN] * 6, [0, 1, 2, 3, 4, 5], [0, 0, 0, 1, 1, 1])
    assert unsafe([100, 101, 102, 203, 204, 205], found, range(6)) == [2, 3]


def test_the_prompts_own_ends_break_nothing() -> None:
    assert unsafe([105, 106, 107], alignment([SPAN] * 3, [5, 6, 7]), [0, 2]) == []
    assert unsafe([105], alignment([SPAN], [5]), [0]) == []


def test_a_prefix_is_safe_and_extends_a_run() -> None:
    found = alignment([PREFIX, PREFIX, SPAN, SPAN, FRESH], [0, 1, 2, 3, -1])
    assert unsafe([100, 101, 102, 103, 999], found, range(5)) == [3, 4]


def test_a_prefix_that_no_donor_names_is_safe_but_says_nothing_of_its_neighbour() -> None:
    found = alignment([PREFIX, PREFIX, SPAN, SPAN, SPAN], [0, 1, 2, 3, 4], [-1, -1, 0, 0, 0])
    assert unsafe([100, 101, 102, 103, 104], found, range(5)) == [2]


SCOPE = range(-1, NEGATION_SCOPE + 1)  # what a negation governs, from its own place


def test_a_negation_inside_an_identical_run_governs_nothing_new() -> None:
    found = alignment([SPAN] * 12, range(12))
    ids = range(100, 112)
    assert unsafe(ids, found, negations=[5], donor_negations=[5]) == []


def test_a_new_negation_takes_what_it_governs_with_it() -> None:
    source = [SPAN] * 5 + [FRESH] + [SPAN] * 8
    found = alignment(source, [*range(5), -1, *range(5, 13)])
    ids = [*range(100, 105), 999, *range(105, 113)]
    assert unsafe(ids, found, negations=[5]) == [5 + k for k in SCOPE]


def test_a_negation_of_the_donor_replaced_by_another_word_does_so_too() -> None:
    found = alignment([SPAN] * 5 + [FUZZY] + [SPAN] * 8, range(14))
    ids = [*range(100, 105), 999, *range(106, 114)]
    assert unsafe(ids, found, donor_negations=[5]) == [5 + k for k in SCOPE]
    assert unsafe(ids, found) == []


def test_a_negation_of_the_donor_left_out_does_so_too() -> None:
    found = alignment([SPAN] * 12, [*range(5), *range(6, 13)])
    ids = [*range(100, 105), *range(106, 113)]
    assert unsafe(ids, found, donor_negations=[5]) == [5 + k for k in SCOPE]
    assert unsafe(ids, found, donor_negations=[3, 9]) == []  # these were not left out


def test_a_jump_far_ahead_is_another_place_and_no_omission() -> None:
    for skip, governed in ((MAX_SKIP, [4 + k for k in SCOPE]), (MAX_SKIP + 1, [])):
        positions = [*range(4), *range(3 + skip, 9 + skip)]
        ids = [100 + p for p in positions]
        found = alignment([SPAN] * 10, positions)
        assert unsafe(ids, found, donor_negations=[5]) == governed


def test_governed_tokens_of_an_exact_prefix_are_safe() -> None:
    found = alignment([PREFIX] * 4 + [FRESH] + [SPAN] * 4, [0, 1, 2, 3, -1, 4, 5, 6, 7])
    ids = [100, 101, 102, 103, 999, 104, 105, 106, 107]
    assert unsafe(ids, found, negations=[4]) == [4, 5, 6, 7, 8]


def test_short_prompts_are_harmless() -> None:
    for n in range(1, 8):
        found = alignment([FUZZY] * n, range(n))
        assert unsafe([999] * n, found, negations=[0]) == list(range(min(n, NEGATION_SCOPE + 1)))
