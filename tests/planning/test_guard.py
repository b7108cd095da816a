"""Which words carry facts, and where a fact may be reused, by hand."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import pytest

from semshare.planning.guard import fact_tokens, is_fact_word, unsafe_reuse
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
    mask = fact_tokens(np.arange(len(pieces), dtype=np.int32), lambda _: pieces)
    return [piece.strip() for piece, is_fact in zip(pieces, mask, strict=True) if is_fact]


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
    mask = fact_tokens(np.arange(5, dtype=np.int32), lambda _: pieces)
    assert mask[2]
    assert not mask[[0, 4]].any()
    assert len(fact_tokens(np.empty(0, np.int32), lambda _: [])) == 0


@pytest.mark.parametrize(
    "pieces",
    [
        [" �", "�", "uk", "asz"],  # Łukasz: Ł is two tokens
        [" �", "�", "�"],  # 北
        [" na", "�", "�", "ve"],
    ],
)
def test_a_word_with_characters_split_between_tokens_may_be_a_name(pieces: list[str]) -> None:
    mask = fact_tokens(np.arange(len(pieces) + 2), lambda _: ["met", *pieces, " there"])
    assert mask.tolist() == [False, *[True] * len(pieces), False]


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
    ids: Sequence[int], found: Alignment, facts: Sequence[int], neighbours: int = 1
) -> list[int]:
    target: Ids = np.array(ids, np.int32)
    mask = np.zeros(len(ids), np.bool_)
    mask[list(facts)] = True
    result = unsafe_reuse(target, found, mask, [DONOR, OTHER], neighbours=neighbours)
    return np.flatnonzero(result).tolist()


def test_a_fact_inside_an_identical_run_is_safe() -> None:
    found = alignment([SPAN] * 5, [3, 4, 5, 6, 7])
    assert unsafe([103, 104, 105, 106, 107], found, range(5)) == []


def test_a_fact_beside_a_fresh_token_is_unsafe_and_wider_with_more_neighbours() -> None:
    found = alignment([SPAN] * 4 + [FRESH] + [SPAN] * 4, [0, 1, 2, 3, -1, 5, 6, 7, 8])
    ids = [100, 101, 102, 103, 999, 105, 106, 107, 108]
    assert unsafe(ids, found, range(9)) == [3, 4, 5]
    assert unsafe(ids, found, range(9), neighbours=2) == [2, 3, 4, 5, 6]
    assert unsafe(ids, found, range(9), neighbours=0) == [4]
    assert unsafe(ids, found, [0, 5, 8]) == [5]


def test_a_fuzzy_fact_is_unsafe_and_so_are_its_neighbours() -> None:
    found = alignment([SPAN, SPAN, FUZZY, SPAN, SPAN], [0, 1, 2, 3, 4])
    assert unsafe([100, 101, 777, 103, 104], found, range(5)) == [1, 2, 3]


def test_a_break_of_the_run_makes_both_sides_unsafe() -> None:
    found = alignment([SPAN] * 6, [0, 1, 2, 10, 11, 12])
    ids = [100, 101, 102, 110, 111, 112]
    assert unsafe(ids, found, range(6)) == [2, 3]
    assert unsafe(ids, found, range(6), neighbours=2) == [1, 2, 3, 4]


def test_a_change_of_donor_breaks_the_run_even_at_the_next_position() -> None:
    found = alignment([SPAN] * 6, [0, 1, 2, 3, 4, 5], [0, 0, 0, 1, 1, 1])
    assert unsafe([100, 101, 102, 203, 204, 205], found, range(6)) == [2, 3]


def test_the_prompts_own_ends_break_nothing() -> None:
    found = alignment([SPAN] * 3, [5, 6, 7])
    assert unsafe([105, 106, 107], found, [0, 2], neighbours=2) == []
    assert unsafe([105], alignment([SPAN], [5]), [0]) == []


def test_a_prefix_is_safe_and_extends_a_run() -> None:
    found = alignment([PREFIX, PREFIX, SPAN, SPAN, FRESH], [0, 1, 2, 3, -1])
    assert unsafe([100, 101, 102, 103, 999], found, range(5)) == [3, 4]


def test_a_prefix_that_no_donor_names_is_safe_but_says_nothing_of_its_neighbour() -> None:
    found = alignment([PREFIX, PREFIX, SPAN, SPAN, SPAN], [0, 1, 2, 3, 4], [-1, -1, 0, 0, 0])
    assert unsafe([100, 101, 102, 103, 104], found, range(5)) == [2]
