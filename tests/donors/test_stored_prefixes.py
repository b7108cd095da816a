"""The longest common beginning against brute force."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test
from properties import examples

from semshare.donors.stored_prefixes import StoredPrefixes
from semshare.types import Ids

PAGE = 3

texts = st.lists(st.sampled_from((0, 1, 255, 256, 70_000)), max_size=14)


def ids(values: list[int]) -> Ids:
    return np.array(values, dtype=np.int32)


def common_pages(left: list[int], right: list[int]) -> int:
    n = 0
    while left[n : n + PAGE] == right[n : n + PAGE] and len(right) >= n + PAGE <= len(left):
        n += PAGE
    return n


class PrefixMachine(RuleBasedStateMachine):
    """Donors come one by one or many at a time, and go; some have the same ids."""

    def __init__(self) -> None:
        super().__init__()
        self.index = StoredPrefixes(PAGE)
        self.donors: dict[str, list[int]] = {}
        self.next = 0

    def new(self, values: list[list[int]]) -> list[tuple[str, Ids]]:
        items = {f"d{self.next + i}": text for i, text in enumerate(values)}
        self.next += len(items)
        self.donors |= items
        return [(name, ids(text)) for name, text in items.items()]

    @rule(text=texts)
    def add(self, text: list[int]) -> None:
        ((name, new),) = self.new([text])
        self.index.add(name, new)

    @rule(values=st.lists(texts, max_size=4))
    def add_many(self, values: list[list[int]]) -> None:
        self.index.add_many(iter(self.new(values)))

    @precondition(lambda self: self.donors)
    @rule(data=st.data(), more=texts)
    def add_one_that_continues_another(self, data: st.DataObject, more: list[int]) -> None:
        known = self.donors[data.draw(st.sampled_from(sorted(self.donors)))]
        ((name, new),) = self.new([known + more])
        self.index.add(name, new)

    @precondition(lambda self: self.donors)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.donors)))
        del self.donors[name]
        self.index.remove(name)

    @rule(data=st.data(), prompt=texts, limit=st.integers(0, 16))
    def match_equals_brute_force(self, data: st.DataObject, prompt: list[int], limit: int) -> None:
        if self.donors and data.draw(st.booleans()):
            prompt = self.donors[data.draw(st.sampled_from(sorted(self.donors)))] + prompt
        found = self.index.match(ids(prompt), limit)
        common = {name: common_pages(prompt[:limit], text) for name, text in self.donors.items()}
        longest = max(common.values(), default=0)
        assert len(self.index) == len(self.donors)
        if longest == 0:
            assert found is None
        else:
            assert found is not None
            assert found[1] == longest == common[found[0]]


def test_any_order_of_coming_and_going_agrees_with_brute_force() -> None:
    run_state_machine_as_test(PrefixMachine, settings=examples(100))


def test_a_donor_is_kept_once() -> None:
    index = StoredPrefixes(PAGE)
    index.add("d", ids([1, 2, 3]))
    with pytest.raises(ValueError, match="'d' is indexed already: remove it first"):
        index.add("d", ids([4]))
    assert index.match(ids([1, 2, 3, 4]), 3) == ("d", 3)
    assert index.match(ids([1, 2, 3, 4]), 2) is None
