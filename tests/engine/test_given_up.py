"""A request that is given up ends between two steps and holds nothing afterwards."""

from __future__ import annotations

import pytest
from invariants import assert_nothing_is_held
from prompts import words
from tiny import tiny_engine

from semshare import GivenUp

PROMPT = words(200, 1)


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_a_request_is_given_up_before_its_first_piece(steps: int) -> None:
    """The prompt takes many steps beside another answer; it is asked before each of them."""
    engine = tiny_engine(prefill_rows=8)
    beside = engine.stream(words(20, 2), max_tokens=60)
    next(beside)
    asked = 0

    def given_up() -> bool:
        nonlocal asked
        asked += 1
        return asked > steps

    with pytest.raises(GivenUp, match="send it again"):
        next(engine.stream(PROMPT, given_up=given_up))
    assert asked == steps + 1
    beside.close()
    assert_nothing_is_held(engine)


def test_a_request_is_given_up_in_the_middle_of_its_answers() -> None:
    engine = tiny_engine()
    gone = False
    stream = engine.stream(PROMPT, n=3, max_tokens=60, given_up=lambda: gone)
    next(stream)
    gone = True
    with pytest.raises(GivenUp):
        list(stream)
    assert_nothing_is_held(engine)


@pytest.mark.parametrize("chunks", [1, 3])
@pytest.mark.parametrize("name", ["remember", "prefill"])
def test_a_prompt_that_is_only_computed_is_given_up_between_chunks(name: str, chunks: int) -> None:
    engine = tiny_engine(prefill_rows=8)
    asked = 0

    def given_up() -> bool:
        nonlocal asked
        asked += 1
        return asked >= chunks

    with pytest.raises(GivenUp):
        getattr(engine, name)(PROMPT, given_up=given_up)
    assert asked == chunks
    assert not engine.donors()
    assert_nothing_is_held(engine)


def test_a_donor_that_is_wanted_to_its_end_is_the_same() -> None:
    engine, other = tiny_engine(), tiny_engine()
    donor = engine.remember(PROMPT, given_up=lambda: False)
    assert donor.tokens == other.remember(PROMPT).tokens
    followed = PROMPT + words(20, 2)
    expected = other.generate(followed, max_tokens=8)
    assert engine.generate(followed, max_tokens=8).token_ids == expected.token_ids


def test_an_answer_that_is_wanted_to_its_end_is_the_same() -> None:
    expected = tiny_engine().generate(PROMPT, max_tokens=8)
    answer = tiny_engine().generate(PROMPT, max_tokens=8, given_up=lambda: False)
    assert answer.token_ids == expected.token_ids
