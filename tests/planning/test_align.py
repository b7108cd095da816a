"""Alignment by hand, and the common subsequence against its definition."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from properties import examples
from torch import Tensor

from semshare.donors.span_index import Span
from semshare.planning import align
from semshare.planning.align import (
    WINDOW,
    AlignmentBuilder,
    FuzzyCandidate,
    align_fuzzy,
    align_nearest,
    common_subsequence,
)
from semshare.types import Ids, TokenSource

FRESH, PREFIX, SPAN, FUZZY = TokenSource


def ids(values: Sequence[int]) -> Ids:
    return np.array(values, dtype=np.int32)


class IdCodes:
    """Stands in for `TokenLSH`: the code is the id itself, so nearness is by differing bits."""

    def encode(self, tokens: Ids, positions: NDArray[np.number]) -> Tensor:
        assert len(tokens) == len(positions)
        return torch.from_numpy(tokens.astype(np.int64))[:, None]


LSH = IdCodes()


def candidate(name: str, values: Sequence[int]) -> FuzzyCandidate:
    return FuzzyCandidate(name, ids(values), LSH.encode(ids(values), np.arange(len(values))))


def aligned(
    target: Sequence[int], *candidates: FuzzyCandidate, builder: AlignmentBuilder | None = None
) -> list[tuple[int, int, int]]:
    """(source, donor, position) of each token."""
    builder = builder or AlignmentBuilder(len(target))
    align_fuzzy(builder, ids(target), candidates, LSH)
    found = builder.build()
    return list(
        zip(found.source.tolist(), found.donor.tolist(), found.position.tolist(), strict=True)
    )


def test_common_subsequence_by_hand() -> None:
    found = common_subsequence(ids([1, 2, 3, 9, 4, 5]), ids([1, 2, 7, 3, 4, 5]))
    assert found.tolist() == [0, 1, 3, -1, 4, 5]
    assert common_subsequence(ids([1, 2]), ids([3, 4])).tolist() == [-1, -1]
    assert common_subsequence(ids([1, 2]), ids([])).tolist() == [-1, -1]


short_texts = st.lists(st.integers(0, 4), max_size=24)


@examples(100)
@given(short_texts, short_texts)
def test_common_subsequence_is_a_longest_one(left: list[int], right: list[int]) -> None:
    partner = common_subsequence(ids(left), ids(right))
    paired = np.flatnonzero(partner >= 0)
    assert np.all(np.diff(partner[paired]) > 0)
    assert [left[i] for i in paired] == [right[partner[i]] for i in paired]
    lengths = np.zeros((len(left) + 1, len(right) + 1), dtype=int)
    for i, a in enumerate(left):
        for j, b in enumerate(right):
            longest = max(lengths[i, j + 1], lengths[i + 1, j])
            lengths[i + 1, j + 1] = lengths[i, j] + 1 if a == b else longest
    assert len(paired) == lengths[-1, -1]


def test_prefix_and_spans_are_laid_down_as_found() -> None:
    builder = AlignmentBuilder(9)
    builder.set_prefix(3, "a")
    builder.set_spans([Span(4, 2, "b", 10), Span(7, 2, "a", 5)])
    found = builder.build()
    assert found.donors == ("a", "b")
    assert found.source.tolist() == [1, 1, 1, 0, 2, 2, 0, 2, 2]
    assert found.donor.tolist() == [0, 0, 0, -1, 1, 1, -1, 0, 0]
    assert found.position.tolist() == [0, 1, 2, -1, 10, 11, -1, 5, 6]
    assert found.in_order.tolist() == [1, 1, 1, 0, 1, 1, 0, 1, 1]


def test_a_prefix_of_no_donor_has_positions_but_no_donor() -> None:
    builder = AlignmentBuilder(3)
    builder.set_prefix(2, None)
    found = builder.build()
    assert found.donors == ()
    assert found.donor.tolist() == [-1, -1, -1]
    assert found.position.tolist() == [0, 1, -1]


def test_a_replaced_word_is_mapped_to_the_word_in_its_place() -> None:
    target = [10, 11, 12, 0b1110000, 13, 14]
    donor = candidate("d", [10, 11, 12, 0b1111000, 13, 14])
    assert aligned(target, donor) == [
        (SPAN, 0, 0), (SPAN, 0, 1), (SPAN, 0, 2), (FUZZY, 0, 3), (SPAN, 0, 4), (SPAN, 0, 5),
    ]  # fmt: skip


def test_the_nearest_code_wins_and_among_equals_the_expected_place() -> None:
    """Between anchors 0 → 0 and 4 → 8 the token in the middle is expected at 4."""
    far, near = 0b1111 << 20, 0b1 << 20
    left, right = 0xFF, 0xFF00  # anchors, farther than both
    target = [left, 50, 0, 51, right]
    donor = [left, far, far, far, far, far, far, far, right]
    assert aligned(target, candidate("d", donor))[2] == (FUZZY, 0, 4)
    donor[6] = near
    assert aligned(target, candidate("d", donor))[2] == (FUZZY, 0, 6)
    donor[1] = near  # as near, but farther from the expected place
    assert aligned(target, candidate("d", donor))[2] == (FUZZY, 0, 6)


def test_no_further_than_the_window() -> None:
    far, near = 0b1111 << 20, 0b1 << 20
    anchors = list(range(1, 40))
    target = [*anchors, 0, *anchors]
    donor = [*anchors, *([far] * 41), *anchors]
    middle = len(anchors) + 20
    for offset, reached in ((WINDOW, True), (WINDOW + 1, False)):
        changed = donor.copy()
        changed[middle - offset] = near
        position = aligned(target, candidate("d", changed))[len(anchors)][2]
        assert (position == middle - offset) == reached


def test_an_id_the_subsequence_had_to_leave_out_is_still_identical_text() -> None:
    """Two words swapped: one of them can't be in the subsequence, but its id is at hand."""
    builder = AlignmentBuilder(8)
    donor = candidate("d", [1, 2, 3, 65, 64, 4, 5, 6])
    found = aligned([1, 2, 3, 64, 65, 4, 5, 6], donor, builder=builder)
    assert found[3:5] == [(SPAN, 0, 4), (SPAN, 0, 3)]
    in_order = builder.build().in_order
    assert sorted(in_order[3:5].tolist()) == [False, True]
    assert in_order[[0, 1, 2, 5, 6, 7]].all()


def test_outside_the_anchors_both_texts_run_on_side_by_side() -> None:
    anchors = list(range(1, 41))
    before, after = 2 * WINDOW, 2 * WINDOW
    target = [*[0] * before, *anchors, *[0] * after]
    donor = [*[0b1 << 20] * before, *anchors, *[0b1 << 20] * after]
    found = aligned(target, candidate("d", donor))
    assert [position for _, _, position in found] == list(range(len(target)))


def test_donors_too_long_to_compare_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    short, long = candidate("short", range(1, 7)), candidate("long", [*range(1, 7), 50])
    monkeypatch.setattr(align, "MAX_PAIRS", 6 * 6)
    builder = AlignmentBuilder(6)
    aligned(range(1, 7), long, short, builder=builder)
    assert builder.build().donors == ("short",)
    assert aligned(range(1, 7), long) == [(FRESH, -1, -1)] * 6


def test_what_is_already_matched_stays() -> None:
    builder = AlignmentBuilder(6)
    builder.set_prefix(2, "a")
    builder.set_spans([Span(2, 2, "b", 70)])
    found = aligned([1, 2, 3, 4, 5, 6], candidate("d", [1, 2, 3, 4, 5, 6]), builder=builder)
    assert found == [
        (PREFIX, 0, 0), (PREFIX, 0, 1), (SPAN, 1, 70), (SPAN, 1, 71), (SPAN, 2, 4), (SPAN, 2, 5),
    ]  # fmt: skip


def test_what_is_expected_past_the_donors_ends_is_left_to_be_computed() -> None:
    shared = list(range(1, 41))
    found = aligned([*[90] * 5, *shared, *[91] * 30], candidate("d", [80, 81, *shared, 82]))
    assert [source != FRESH for source, _, _ in found] == [
        *[False] * 3, True, True, *[True] * 40, True, *[False] * 29
    ]  # fmt: skip


def test_a_new_turn_beside_identical_text_has_no_part_in_it() -> None:
    """The share is counted over what is not matched yet: here none of the new turn."""
    builder = AlignmentBuilder(240)
    builder.set_spans([Span(0, 200, "d", 0)])
    donor = [*range(1, 201), *[300] * 100]
    aligned([*range(1, 201), *[90] * 40], candidate("d", donor), builder=builder)
    assert (builder.source[200:] == FRESH).all()


def test_a_stretch_with_too_little_in_common_is_left_to_be_computed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(align, "STRETCH_TOKENS", 10)
    monkeypatch.setattr(align, "MIN_COMMON", 0.3)
    common = list(range(100, 103))
    enough = [*common, *range(10, 17)]
    too_little = [*common[:2], *range(20, 28)]
    donor = candidate("d", [*common, *range(200, 207), *common[:2], *range(300, 308)])
    found = aligned([*enough, *too_little], donor)
    assert all(source != FRESH for source, _, _ in found[:10])
    assert found[10:] == [(FRESH, -1, -1)] * 10


def test_each_stretch_takes_the_donor_that_shares_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(align, "STRETCH_TOKENS", 4)
    target = [1, 2, 3, 4, 5, 6, 7, 8, 9]
    first = candidate("first", [1, 2, 3, 4, 50, 51, 7, 52])
    second = candidate("second", [1, 60, 61, 62, 5, 6, 7, 8])
    found = aligned(target, first, second)
    assert [donor for _, donor, _ in found] == [0, 0, 0, 0, 1, 1, 1, 1, -1]
    assert found[4:8] == [(SPAN, 1, 4), (SPAN, 1, 5), (SPAN, 1, 6), (SPAN, 1, 7)]


@examples(60)
@given(
    target=st.lists(st.integers(1, 6), min_size=1, max_size=40),
    donors=st.lists(st.lists(st.integers(1, 6), min_size=1, max_size=40), min_size=1, max_size=3),
)
def test_every_matched_token_names_a_real_donor_token(
    target: list[int], donors: list[list[int]]
) -> None:
    builder = AlignmentBuilder(len(target))
    align_fuzzy(builder, ids(target), [candidate(f"d{i}", d) for i, d in enumerate(donors)], LSH)
    found = builder.build()
    for i, (source, donor, position) in enumerate(
        zip(found.source, found.donor, found.position, strict=True)
    ):
        if source == FRESH:
            assert (donor, position) == (-1, -1)
            continue
        text = donors[int(found.donors[donor].removeprefix("d"))]
        assert 0 <= position < len(text)
        assert (text[position] == target[i]) == (source == SPAN)
        assert source == SPAN or not found.in_order[i]
    for donor in range(len(found.donors)):
        # Stretches may take turns; within one donor's run of text the order is kept.
        mine = found.position[found.in_order & (found.donor == donor)]
        assert np.all(np.diff(mine) > 0)


@examples(60)
@given(
    st.lists(st.integers(0, 63), min_size=1, max_size=20),
    st.lists(st.integers(0, 63), min_size=1, max_size=20),
    st.integers(0, 5),
)
def test_every_token_is_mapped_to_the_nearest_code_of_the_whole_donor(
    target: list[int], donor: list[int], prefix: int
) -> None:
    prefix = min(prefix, len(target) - 1)
    builder = AlignmentBuilder(len(target))
    builder.set_prefix(prefix, None)
    align_nearest(builder, ids(target), candidate("d", donor), LSH)
    found = builder.build()
    assert found.source[:prefix].tolist() == [PREFIX] * prefix
    for at in range(prefix, len(target)):
        # Fewest differing bits, then the nearest place, then the earlier one.
        nearest = min(
            range(len(donor)), key=lambda p: ((target[at] ^ donor[p]).bit_count(), abs(p - at), p)
        )
        assert found.position[at] == nearest
        assert found.source[at] == (SPAN if target[at] == donor[nearest] else FUZZY)
        assert found.donors[found.donor[at]] == "d"
    assert not found.in_order[prefix:].any()
