"""Identical runs against brute force."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test
from properties import examples

from semshare.donors import ngram_matches, ngrams, span_index
from semshare.donors.ngrams import ngram_hashes
from semshare.donors.span_index import Span, SpanIndex, longest_first
from semshare.types import Ids

NGRAM = 4

words = st.lists(st.integers(0, 2), max_size=24)


def ids(*values: int) -> Ids:
    return np.array(values, dtype=np.int32)


def assert_true_spans(
    spans: list[Span], target: Ids, donors: dict[str, Ids], start: int, min_length: int
) -> None:
    """Each span is identical text, long enough, and they are disjoint and in order."""
    end = start
    for span in spans:
        assert span.start >= end
        assert span.length >= min_length
        end = span.start + span.length
        assert end <= len(target)
        donor = donors[span.donor]
        assert 0 <= span.donor_start <= span.donor_start + span.length <= len(donor)
        np.testing.assert_array_equal(
            target[span.start : end], donor[span.donor_start : span.donor_start + span.length]
        )


small_texts = st.lists(st.integers(0, 3), max_size=60).map(lambda v: np.array(v, dtype=np.int32))


@examples(150)
@given(
    donors=st.lists(small_texts, max_size=4),
    target=small_texts,
    min_length=st.integers(1, 8),
    data=st.data(),
)
def test_every_span_is_identical_text(
    donors: list[Ids], target: Ids, min_length: int, data: st.DataObject
) -> None:
    index = SpanIndex(NGRAM)
    named = {f"d{i}": donor for i, donor in enumerate(donors)}
    for name, donor in named.items():
        index.add(name, donor)
    start = data.draw(st.integers(0, len(target)))
    spans = index.find(target, start=start, min_length=min_length)
    assert_true_spans(spans, target, named, start, min_length)
    # A run that could go on to the right would have: the next pair of ids differs.
    for span in spans:
        after, donor_after = span.start + span.length, span.donor_start + span.length
        donor = named[span.donor]
        if after < len(target) and donor_after < len(donor):
            assert target[after] != donor[donor_after]
    removed = data.draw(st.sampled_from(sorted(named)) if named else st.none())
    if removed is not None:
        index.remove(removed)
        del named[removed]
        left = index.find(target, start=start, min_length=min_length)
        assert_true_spans(left, target, named, start, min_length)


@examples(100)
@given(
    seed=st.integers(0, 2**32 - 1),
    lengths=st.lists(st.integers(0, 30), min_size=1, max_size=5),
    min_length=st.integers(1, 16),
)
def test_every_planted_run_is_found_whole(seed: int, lengths: list[int], min_length: int) -> None:
    """Text that occurs once in its donor and once in the target, between text of neither."""
    rng = np.random.default_rng(seed)
    unique = iter(rng.permutation(10_000).astype(np.int32))

    def text(n: int) -> Ids:
        return np.array([next(unique) for _ in range(n)], dtype=np.int32)

    index = SpanIndex(NGRAM)
    target, expected = [text(int(rng.integers(0, 5)))], []
    at = len(target[0])
    for number, length in enumerate(lengths):
        run = text(length)
        before = int(rng.integers(0, 20))
        index.add(f"d{number}", np.concatenate((text(before), run, text(int(rng.integers(0, 20))))))
        if length >= max(min_length, NGRAM):
            expected.append(Span(at, length, f"d{number}", before))
        gap = text(int(rng.integers(1, 5)))
        target += [run, gap]
        at += length + len(gap)
    assert index.find(np.concatenate(target), start=0, min_length=min_length) == expected


def by_brute_force(target: Ids, donors: dict[str, Ids], start: int, least: int) -> list[Span]:
    """The longest run at the leftmost place where there is one, then on from its end."""
    spans = []
    at = start
    while at < len(target):
        best: Span | None = None
        for name, donor in donors.items():
            for place in range(len(donor)):
                n = 0
                while (
                    at + n < len(target)
                    and place + n < len(donor)
                    and target[at + n] == donor[place + n]
                ):
                    n += 1
                if n >= least and (best is None or n >= best.length):
                    best = Span(at, n, name, place)
        if best is None:
            at += 1
        else:
            spans.append(best)
            at += best.length
    return spans


class SpanMachine(RuleBasedStateMachine):
    """Donors come one by one or many at a time and go, while runs are merged in steps.

    No n-gram of these texts occurs so often that not all of its places are looked at.
    """

    def __init__(self) -> None:
        super().__init__()
        self.index = SpanIndex(NGRAM)
        self.donors: dict[str, Ids] = {}
        self.next = 0

    def new(self, texts: list[list[int]]) -> list[tuple[str, Ids]]:
        items = []
        for text in texts:
            items.append((f"d{self.next}", ids(*text)))
            self.next += 1
        self.donors |= items
        return items

    @rule(texts=st.lists(words, min_size=1, max_size=3))
    def add(self, texts: list[list[int]]) -> None:
        for name, text in self.new(texts):
            self.index.add(name, text)

    @rule(texts=st.lists(words, max_size=5))
    def add_many(self, texts: list[list[int]]) -> None:
        self.index.add_many(iter(self.new(texts)))

    @precondition(lambda self: self.donors)
    @rule(data=st.data())
    def add_the_same_again(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.donors)))
        text = self.donors.pop(name)
        self.index.remove(name)
        self.donors[name] = text  # the latest from now on
        self.index.add(name, text)

    @precondition(lambda self: self.donors)
    @rule(data=st.data(), count=st.integers(1, 3))
    def remove(self, data: st.DataObject, count: int) -> None:
        for _ in range(min(count, len(self.donors))):
            name = data.draw(st.sampled_from(sorted(self.donors)))
            del self.donors[name]
            self.index.remove(name)

    @rule(prompt=words, start=st.integers(0, 5), least=st.integers(1, 7))
    def find_equals_brute_force(self, prompt: list[int], start: int, least: int) -> None:
        found = self.index.find(ids(*prompt), start=start, min_length=least)
        assert len(self.index) == len(self.donors)
        assert found == by_brute_force(ids(*prompt), self.donors, start, max(least, NGRAM))


@pytest.mark.parametrize("tokens", [40, 1 << 30], ids=["in steps", "at once"])
def test_any_order_of_coming_and_going_agrees_with_brute_force(
    monkeypatch: pytest.MonkeyPatch, tokens: int
) -> None:
    monkeypatch.setattr(span_index, "_AT_ONCE", tokens)
    monkeypatch.setattr(span_index, "_SMALLEST", 5)
    monkeypatch.setattr(ngrams, "_SLICE", 8)
    monkeypatch.setattr(ngrams, "_DONORS", 2)
    monkeypatch.setattr(ngrams, "_BLOCK", 16)
    monkeypatch.setattr(ngram_matches, "_CANDIDATES", 1000)
    run_state_machine_as_test(SpanMachine, settings=examples(60))


def test_there_are_few_runs_however_many_donors_and_no_step_is_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    steps: list[int] = []
    sort = ngrams._moved

    def counted(*arguments: Any) -> Any:
        part = sort(*arguments)
        steps[-1] += len(part)
        return part

    monkeypatch.setattr(ngrams, "_moved", counted)
    monkeypatch.setattr(ngrams, "_SLICE", 1 << 10)
    monkeypatch.setattr(span_index, "_AT_ONCE", 1 << 12)
    rng = np.random.default_rng(0)
    index = SpanIndex()
    texts = rng.integers(0, 1 << 17, (1500, 100)).astype(np.int32)
    for i, text in enumerate(texts):
        steps.append(0)
        index.add(f"d{i}", text)
    assert len(index._runs) <= 7
    assert max(steps) < 4 * (1 << 12), "a donor that is added waits for the merge of all"
    assert index.find(texts[3], start=0, min_length=16) == [Span(0, 100, "d3", 0)]
    for i in range(1490):
        steps.append(0)
        index.remove(f"d{i}")
    assert index.nbytes < 40_000, "what is dead is left out"
    assert index.find(texts[3], start=0, min_length=16) == []
    assert index.find(texts[1495], start=0, min_length=16) == [Span(0, 100, "d1495", 0)]


def test_a_living_donor_is_found_behind_many_dead_ones() -> None:
    """More of its places are dead than are looked at, and too few of all to be cleared away."""
    index = SpanIndex()
    text = np.arange(40, dtype=np.int32)
    index.add_many(
        [
            ("wanted", text),
            *((f"d{i}", text) for i in range(30)),
            ("other", np.arange(1000, 9000, dtype=np.int32)),
        ]
    )
    for i in range(30):
        index.remove(f"d{i}")
    assert index.find(text, start=0, min_length=16) == [Span(0, 40, "wanted", 0)]


def test_a_donor_is_indexed_once() -> None:
    index = SpanIndex(NGRAM)
    index.add("d", ids(1, 2, 3, 4))
    with pytest.raises(ValueError, match="d is indexed already: remove it first"):
        index.add("d", ids(5, 6, 7, 8))
    with pytest.raises(ValueError, match="indexed already"):
        index.add_many([("e", ids(5, 6, 7, 8)), ("e", ids(5, 6, 7, 9))])
    assert len(index) == 1


def test_ids_of_large_vocabularies_and_small_ones_together() -> None:
    index = SpanIndex(NGRAM)
    small, large = ids(1, 2, 3, 4, 5), ids(70_001, 70_002, 70_003, 70_004)
    index.add("small", small)
    index.add("large", large)  # merged with the first
    assert index.find(large, start=0, min_length=4) == [Span(0, 4, "large", 0)]
    assert index.find(small, start=0, min_length=4) == [Span(0, 5, "small", 0)]
    assert index.find(large - 65_536, start=0, min_length=4) == []


def test_more_tokens_than_a_run_tells_apart_are_in_several(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(span_index, "MOST_TOKENS", 50)
    index = SpanIndex(NGRAM)
    texts = {f"d{i}": np.arange(20 * i, 20 * i + 20, dtype=np.int32) for i in range(8)}
    index.add_many(texts.items())
    assert len(index._runs) == 4
    for name, text in texts.items():
        assert index.find(text, start=0, min_length=16) == [Span(0, 20, name, 0)]


def test_a_run_is_cut_at_the_start_of_the_search() -> None:
    index = SpanIndex(NGRAM)
    index.add("d", np.arange(50, dtype=np.int32))
    found = index.find(np.arange(10, 40, dtype=np.int32), start=7, min_length=5)
    assert found == [Span(7, 23, "d", 17)]


def test_the_longest_run_wins_and_the_latest_donor_among_equals() -> None:
    index = SpanIndex(NGRAM)
    index.add("short", ids(1, 2, 3, 4, 5, 60))
    index.add("long", ids(70, 1, 2, 3, 4, 5, 6))
    index.add("as long", ids(80, 81, 1, 2, 3, 4, 5, 6))
    target = ids(90, 1, 2, 3, 4, 5, 6, 91)
    assert index.find(target, start=0, min_length=4) == [Span(1, 6, "as long", 2)]
    index.remove("as long")
    assert index.find(target, start=0, min_length=4) == [Span(1, 6, "long", 1)]
    index.remove("long")
    assert index.find(target, start=0, min_length=4) == [Span(1, 5, "short", 0)]
    index.remove("short")
    assert index.find(target, start=0, min_length=4) == []


def test_runs_from_several_donors_in_a_new_order() -> None:
    index = SpanIndex(NGRAM)
    papers = [np.arange(100 * i, 100 * i + 40, dtype=np.int32) for i in range(5)]
    for i, paper in enumerate(papers):
        index.add(f"d{i}", paper)
    order = [3, 0, 4, 2, 1]
    found = index.find(np.concatenate([papers[i] for i in order]), start=0, min_length=16)
    assert found == [Span(40 * k, 40, f"d{i}", 0) for k, i in enumerate(order)]


def test_a_run_is_found_whole_though_it_begins_with_boilerplate() -> None:
    """More places than are looked at begin like the run; what is rare in it finds them all."""
    index = SpanIndex(NGRAM)
    boilerplate = np.arange(6, dtype=np.int32)
    run = np.concatenate((boilerplate, np.arange(50, 60, dtype=np.int32)))
    index.add("wanted", np.concatenate(([90], run)).astype(np.int32))
    for i in range(12):
        index.add(f"other {i}", np.concatenate((boilerplate, [100 + i])).astype(np.int32))
    assert index.find(run, start=0, min_length=8) == [Span(0, 16, "wanted", 1)]


def test_a_run_shorter_than_asked_for_is_left_out() -> None:
    index = SpanIndex(NGRAM)
    index.add("d", np.arange(9, dtype=np.int32))
    target = np.concatenate((np.arange(9), [99])).astype(np.int32)
    assert len(index.find(target, start=0, min_length=9)) == 1
    assert index.find(target, start=0, min_length=10) == []


def test_equal_hashes_with_different_ids_are_no_match(monkeypatch: pytest.MonkeyPatch) -> None:
    constant = lambda values, n: np.zeros(max(len(values) - n + 1, 0), np.uint64)  # noqa: E731
    monkeypatch.setattr("semshare.donors.ngrams.ngram_hashes", constant)
    index = SpanIndex(NGRAM)
    index.add("d", ids(1, 2, 3, 4))
    assert index.find(ids(5, 6, 7, 8), start=0, min_length=1) == []
    assert index.find(ids(1, 2, 3, 4), start=0, min_length=1) == [Span(0, 4, "d", 0)]


def test_prompts_shorter_than_an_ngram_are_harmless() -> None:
    index = SpanIndex(NGRAM)
    index.add("tiny", ids(1, 2))
    index.add("d", ids(1, 2, 3, 4))
    assert index.find(ids(1, 2), start=0, min_length=1) == []
    assert index.find(ids(1, 2, 3, 4), start=4, min_length=1) == []
    index.remove("tiny")
    assert index.find(ids(1, 2, 3, 4), start=0, min_length=1) == [Span(0, 4, "d", 0)]


def test_hashes_are_the_same_in_every_process() -> None:
    found = ngram_hashes(ids(5, 0, 7, 7), 3)
    base, modulus = 0x9E3779B97F4A7C15, 2**64
    expected = [
        ((a + 1) * base**2 + (b + 1) * base + (c + 1)) % modulus
        for a, b, c in ((5, 0, 7), (0, 7, 7))
    ]
    assert found.tolist() == expected
    assert len(ngram_hashes(ids(1, 2), 3)) == 0


def test_the_longest_span_keeps_all_of_its_tokens() -> None:
    short, long, late = Span(0, 6, "a", 10), Span(4, 8, "b", 30), Span(11, 5, "c", 0)
    assert longest_first([short, long, late], min_length=4) == [
        Span(0, 4, "a", 10),
        Span(4, 8, "b", 30),
        Span(12, 4, "c", 1),
    ]
    assert longest_first([short, long, late], min_length=5) == [long]


def test_the_first_of_equal_spans_wins_and_a_long_one_is_cut_by_none() -> None:
    own, published = Span(3, 5, "own", 0), Span(3, 5, "published", 9)
    assert longest_first([own, published], min_length=1) == [own]
    assert longest_first([published, own], min_length=1) == [published]
    around = Span(0, 12, "around", 40)
    assert longest_first([own, around], min_length=1) == [around]
    assert longest_first([], min_length=1) == []


@examples(100)
@given(
    spans=st.lists(
        st.builds(
            Span,
            st.integers(0, 30),
            st.integers(1, 12),
            st.sampled_from("ab"),
            st.integers(0, 50),
        ),
        max_size=8,
    ),
    min_length=st.integers(1, 5),
)
def test_parts_of_spans_are_disjoint_long_enough_and_leave_nothing(
    spans: list[Span], min_length: int
) -> None:
    def pairs(span: Span) -> set[tuple[int, str, int]]:
        return {(span.start + i, span.donor, span.donor_start + i) for i in range(span.length)}

    kept = longest_first(spans, min_length=min_length)
    allowed = set().union(*map(pairs, spans))
    end = 0
    for span in kept:
        assert span.start >= end
        assert span.length >= min_length
        assert pairs(span) <= allowed
        end = span.start + span.length
    covered = {token for span in kept for token, *_ in pairs(span)}
    for span in spans:  # what is not covered is too short to be of use
        run = 0
        for token in range(span.start, span.start + span.length):
            run = 0 if token in covered else run + 1
            assert run < min_length
