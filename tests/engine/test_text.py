"""Text piece by piece: nothing is lost, nothing is taken back, stops are exact."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from properties import examples
from tiny import SPECIAL_TOKENS, VOCAB_SIZE, tiny_tokenizer

from semshare.engine.text import TextAssembler

TOKENIZER = tiny_tokenizer()


def decode(ids: Sequence[int]) -> str:
    return str(TOKENIZER.decode(ids, skip_special_tokens=True))


def ids_of(text: str) -> list[int]:
    return list(TOKENIZER(text)["input_ids"])


def pieces(ids: Sequence[int], stop: Sequence[str] = ()) -> tuple[list[str], bool]:
    """What is given out, token by token as the decode loop does it."""
    text = TextAssembler(decode, stop)
    given_out = []
    for token in ids:
        given_out.append(text.push(token))
        assert text.text == "".join(given_out)
        if text.stopped:
            break
    given_out.append(text.finish())
    assert text.text == "".join(given_out)
    return given_out, text.stopped


any_text = st.text(alphabet="ab€é漢🙂 \n\ufffd", max_size=30)
any_tokens = st.lists(st.integers(0, VOCAB_SIZE - 1), max_size=30)


@examples(150)
@given(st.one_of(any_text.map(ids_of), any_tokens))
def test_pieces_add_up_to_the_whole_text(ids: list[int]) -> None:
    given_out, stopped = pieces(ids)
    assert "".join(given_out) == decode(ids)
    assert not stopped


@examples(200)
@given(any_text, st.text(alphabet="ab€é漢🙂 \n", min_size=1, max_size=4))
def test_text_ends_before_the_stop_string(text: str, stop: str) -> None:
    given_out, stopped = pieces(ids_of(text), [stop])
    assert stopped == (stop in text)
    assert "".join(given_out) == text.split(stop, maxsplit=1)[0]


def test_a_character_of_several_tokens_comes_when_it_is_complete() -> None:
    given_out, _ = pieces(ids_of("a€🙂b"))
    assert given_out == ["a", "", "", "€", "", "", "", "🙂", "b", ""]


def test_an_unfinished_character_comes_at_the_end() -> None:
    given_out, _ = pieces(ids_of("a€")[:-1])
    assert given_out == ["a", "", "", "\ufffd"]


def test_what_may_begin_a_stop_string_is_held_back() -> None:
    given_out, stopped = pieces(ids_of("xabyabcz"), ["abc"])
    assert given_out == ["x", "", "", "aby", "", "", "", ""]
    assert stopped
    given_out, stopped = pieces(ids_of("xab"), ["abc"])
    assert given_out == ["x", "", "", "ab"]
    assert not stopped


def test_a_stop_string_that_overlaps_itself() -> None:
    given_out, stopped = pieces(ids_of("aaab"), ["aab"])
    assert ("".join(given_out), stopped) == ("a", True)


def test_the_first_of_several_stop_strings_counts() -> None:
    given_out, _ = pieces(ids_of("one two three"), ["three", "two", ""])
    assert "".join(given_out) == "one "


def test_a_stop_string_in_the_middle_of_a_token() -> None:
    text = TextAssembler(lambda ids: "".join("hello" for _ in ids), ["ll"])
    assert text.push(7) == "he"
    assert text.stopped
    assert text.finish() == ""


def test_no_text_before_a_stop_at_once() -> None:
    assert pieces(ids_of("stop"), ["stop"]) == (["", "", "", "", ""], True)


def test_special_tokens_have_no_text() -> None:
    specials = list(range(len(SPECIAL_TOKENS)))
    given_out, _ = pieces([specials[1], *ids_of("a"), specials[2], *ids_of("b")])
    assert "".join(given_out) == "ab"


@pytest.mark.parametrize("n", [2_000])
def test_decoding_stays_linear_in_the_length(n: int) -> None:
    decoded = 0

    def counting(ids: Sequence[int]) -> str:
        nonlocal decoded
        decoded += len(ids)
        return decode(ids)

    text = TextAssembler(counting, ["never"])
    for token in ids_of("x" * n):
        text.push(token)
    text.finish()
    assert decoded <= 5 * n
