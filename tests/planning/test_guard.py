"""Which words carry facts, and where a fact may be reused, by hand."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import pytest

from semshare.planning.guard import (
    NEGATION_SCOPE,
    FactMarks,
    is_fact_word,
    mark_facts,
    unsafe_reuse,
)
from semshare.types import Alignment, TokenSource

FRESH, PREFIX, SPAN, FUZZY = TokenSource


@pytest.mark.parametrize(
    "word",
    "7 1999 3rd B2B x1 Paris Müller NASA eV not never Don't isn’t without cannot hardly "
    "ain't n't Mustn’t rarely kg GHz percent grams litre miles zero twelve sixth half Monday "
    "get_value parseJson f() std::move __init__ % € ≥ ½ -5 −3 +7 "
    "北京 العربية".split(),
)
def test_words_with_facts(word: str) -> None:
    assert is_fact_word(word, starts_sentence=False)


@pytest.mark.parametrize(
    "word", "table notable running the a über don it's ok may once both I He The Our".split()
)
def test_words_without_facts(word: str) -> None:
    assert not is_fact_word(word, starts_sentence=False)


def test_a_capital_at_the_start_of_a_sentence_is_no_name_but_other_facts_stay() -> None:
    assert not is_fact_word("The", starts_sentence=True)
    for word in ("NASA", "Not", "Twelve", "B2B", "parseJson"):
        assert is_fact_word(word, starts_sentence=True)


def qualifiers_in(text: str) -> list[str]:
    """Words of `text` that must be the donor's too."""
    pieces = re.findall(r"\s*\S+", text)
    mask = mark_facts(np.arange(len(pieces), dtype=np.int32), lambda _: pieces).qualifiers
    return [piece.strip() for piece, marked in zip(pieces, mask, strict=True) if marked]


def test_qualifiers_turn_a_statement_around_or_begin_it_like_a_name() -> None:
    assert qualifiers_in("it rose above all before most others") == [
        "rose",
        "above",
        "all",
        "before",
        "most",
    ]
    assert qualifiers_in("Alice went. Bert stayed: The rest and Our May. Further on") == [
        "Alice",
        "Bert",
        "Further",
    ]


def test_a_sign_belongs_to_its_number_and_a_hyphen_does_not() -> None:
    assert facts_in("at -5 or −6, in 3-7 or x-8", r"\s\w|[-−]|\w+|\S|\s") == [
        "-", "5", "−", "6", "3", "7", "8",
    ]  # fmt: skip


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
    assert found == ["Paris", "2,140,000", "not", "3", "%."]


@pytest.mark.parametrize("end", [".", "!", "?", ":", ".\n\n", '." ', ". ("])
def test_a_sentence_starts_after_its_end(end: str) -> None:
    assert facts_in(f"it was so{end} Then it went on") == []
    assert facts_in(f"it was so{end} then Anna went on") == ["Anna"]


def test_a_comma_or_dash_starts_no_sentence() -> None:
    assert facts_in("so, Anna - Bert went on") == ["Anna", "Bert"]


def test_the_first_word_of_a_prompt_starts_a_sentence() -> None:
    assert facts_in("Then we go") == []
    assert facts_in('"Then" we go') == []


def test_a_wide_gap_starts_no_sentence() -> None:
    assert facts_in("name" + " " * 30 + "Alice") == ["Alice"]


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
    source: Sequence[int],
    position: Sequence[int],
    donor: Sequence[int] | None = None,
    out_of_order: Sequence[int] = (),
) -> Alignment:
    in_order = np.isin(source, (PREFIX, SPAN))
    in_order[list(out_of_order)] = False
    return Alignment(
        source=np.array(source, np.uint8),
        donor=np.array(donor or [0 if s else -1 for s in source], np.int32),
        position=np.array(position, np.int32),
        in_order=in_order,
        donors=("d", "e"),
    )


def unsafe(
    found: Alignment,
    facts: Sequence[int] = (),
    qualifiers: Sequence[int] = (),
    negations: Sequence[int] = (),
    donor_facts: Sequence[int] = (),
    donor_qualifiers: Sequence[int] = (),
    donor_negations: Sequence[int] = (),
    donor_tokens: int = 20,
) -> list[int]:
    """Positions that may not be reused; those of the donor are positions in the first donor."""

    def mask(n: int, at: Sequence[int]) -> np.ndarray:
        marked = np.zeros(n, np.bool_)
        marked[list(at)] = True
        return marked

    def marks(
        n: int, facts: Sequence[int], qualifiers: Sequence[int], negations: Sequence[int]
    ) -> FactMarks:
        return FactMarks(mask(n, [*facts, *negations]), mask(n, qualifiers), mask(n, negations))

    donors = [
        marks(donor_tokens, donor_facts, donor_qualifiers, donor_negations),
        marks(donor_tokens, (), (), ()),
    ]
    target = marks(len(found.source), facts, qualifiers, negations)
    return np.flatnonzero(unsafe_reuse(found, target, donors)).tolist()


def test_a_fact_inside_an_identical_run_is_safe() -> None:
    assert unsafe(alignment([SPAN] * 5, [3, 4, 5, 6, 7]), range(5)) == []


def test_a_fact_after_a_fresh_token_is_unsafe_and_before_one_safe() -> None:
    """A token's KV has read what comes before it, and nothing of what comes after."""
    found = alignment([SPAN] * 4 + [FRESH] + [SPAN] * 4, [0, 1, 2, 3, -1, 5, 6, 7, 8])
    assert unsafe(found, range(9)) == [4, 5]
    assert unsafe(found, [0, 3, 8]) == []
    assert unsafe(found) == []


def test_a_fuzzy_fact_is_unsafe_and_so_is_the_one_after_it() -> None:
    found = alignment([SPAN, SPAN, FUZZY, SPAN, SPAN], [0, 1, 2, 3, 4])
    assert unsafe(found, range(5)) == [2, 3]


def test_a_break_of_the_run_makes_what_follows_unsafe() -> None:
    assert unsafe(alignment([SPAN] * 6, [0, 1, 2, 10, 11, 12]), range(6)) == [3]


def test_a_change_of_donor_breaks_the_run_even_at_the_next_position() -> None:
    found = alignment([SPAN] * 6, [0, 1, 2, 3, 4, 5], [0, 0, 0, 1, 1, 1])
    assert unsafe(found, range(6)) == [3]


def test_the_prompts_own_beginning_breaks_nothing() -> None:
    assert unsafe(alignment([SPAN] * 3, [5, 6, 7]), [0, 2]) == []
    assert unsafe(alignment([SPAN], [5]), [0]) == []


def test_the_same_number_found_somewhere_near_is_another_ones() -> None:
    """7 dogs and 5 cats from 5 dogs and 7 cats: the ids are there, in the other's place."""
    found = alignment([SPAN] * 5, [3, 1, 2, 0, 4], out_of_order=[0, 3])
    assert unsafe(found, [0, 3]) == [0, 3]


@pytest.mark.parametrize("kind", ["donor_facts", "donor_qualifiers"])
def test_nothing_else_stands_on_a_fact_or_a_qualifier_of_the_donor(kind: str) -> None:
    """Not "she" on a name that begins a sentence, not "dropped" on "rose"."""
    found = alignment([SPAN, FUZZY, SPAN, SPAN], [0, 1, 2, 3])
    assert unsafe(found, **{kind: [1]}) == [1]
    assert unsafe(found, **{kind: [2]}) == []  # the same word


def test_a_qualifier_needs_its_place_in_the_order_but_no_neighbour() -> None:
    found = alignment([SPAN, FUZZY, SPAN, FRESH, SPAN], [0, 1, 2, -1, 9], out_of_order=[4])
    assert unsafe(found, qualifiers=range(5)) == [1, 3, 4]


def test_a_prefix_is_safe_and_extends_a_run() -> None:
    found = alignment([PREFIX, PREFIX, SPAN, SPAN, FRESH], [0, 1, 2, 3, -1])
    assert unsafe(found, range(5)) == [4]


def test_a_prefix_that_no_donor_names_is_safe_but_says_nothing_of_its_neighbour() -> None:
    found = alignment([PREFIX, PREFIX, SPAN, SPAN, SPAN], [0, 1, 2, 3, 4], [-1, -1, 0, 0, 0])
    assert unsafe(found, range(5)) == [2]


SCOPE = range(-1, NEGATION_SCOPE + 1)  # what a negation governs, from its own place


def test_a_negation_that_both_have_governs_nothing_new() -> None:
    assert unsafe(alignment([SPAN] * 12, range(12)), negations=[5], donor_negations=[5]) == []
    moved = alignment([SPAN] * 5 + [FRESH] + [SPAN] * 6, [*range(5), -1, *range(6, 12)])
    assert unsafe(moved, negations=[6], donor_negations=[6]) == [6]  # after another word


def test_a_new_negation_takes_what_it_governs_with_it() -> None:
    source = [SPAN] * 5 + [FRESH] + [SPAN] * 8
    found = alignment(source, [*range(5), -1, *range(5, 13)])
    assert unsafe(found, negations=[5]) == [5 + k for k in SCOPE]


def test_a_negation_found_somewhere_near_is_a_new_one() -> None:
    found = alignment([SPAN] * 14, [*range(5), 9, *range(5, 13)], out_of_order=[5])
    assert unsafe(found, negations=[5]) == [5 + k for k in SCOPE]


def test_a_negation_of_the_donor_replaced_by_another_word_does_so_too() -> None:
    found = alignment([SPAN] * 5 + [FUZZY] + [SPAN] * 8, range(14))
    assert unsafe(found, donor_negations=[5]) == [5 + k for k in SCOPE]
    assert unsafe(found) == []


def test_a_negation_of_the_donor_left_out_does_so_too() -> None:
    found = alignment([SPAN] * 12, [*range(5), *range(6, 13)])
    assert unsafe(found, donor_negations=[5]) == [4, 5, 6, 7, 8]
    assert unsafe(found, donor_negations=[3, 9]) == []  # these were not left out


def test_a_negation_of_the_donor_before_a_run_governs_its_first_tokens() -> None:
    """Donor: it is not safe to take. Target: they say it is safe to take."""
    found = alignment([FRESH] * 3 + [SPAN] * 8, [-1, -1, -1, *range(6, 14)])
    assert unsafe(found, donor_negations=[5]) == [3, 4, 5, 6]
    assert unsafe(found, donor_negations=[3]) == [3, 4]
    assert unsafe(found, donor_negations=[1]) == []  # too far before


def test_a_negation_of_the_donor_is_lost_however_much_was_left_out_with_it() -> None:
    for skipped in (3, 30):
        found = alignment([SPAN] * 10, [*range(4), *range(4 + skipped, 10 + skipped)])
        last = 3 + skipped
        assert unsafe(found, donor_negations=[last], donor_tokens=60) == [4, 5, 6, 7]


def test_a_negation_of_the_donor_is_lost_whatever_was_matched_before_it() -> None:
    found = alignment([SPAN] * 9, [0, 1, 2, 0, *range(5, 10)], out_of_order=[3])
    assert unsafe(found, donor_negations=[4]) == [4, 5, 6, 7]


def test_governed_tokens_of_an_exact_prefix_are_safe() -> None:
    found = alignment([PREFIX] * 4 + [FRESH] + [SPAN] * 4, [0, 1, 2, 3, -1, 4, 5, 6, 7])
    assert unsafe(found, negations=[4]) == [4, 5, 6, 7, 8]


def test_short_prompts_are_harmless() -> None:
    for n in range(1, 8):
        found = alignment([FUZZY] * n, range(n))
        assert unsafe(found, negations=[0]) == list(range(min(n, NEGATION_SCOPE + 1)))
