"""Eviction: by hand, and against models that keep plain lists."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from properties import examples

from semshare import SemShareError
from semshare.config import EvictionName
from semshare.errors import TierFull
from semshare.kv.tiers.budget import Budget


def s3_fifo(budget_bytes: int = 100) -> Budget:
    return Budget("test", budget_bytes, "s3-fifo")


def admit(budget: Budget, donors: str, n_bytes: int = 10) -> list[str]:
    """Each letter is a donor."""
    return [victim for donor in donors for victim in budget.admit(donor, n_bytes, pinned=False)]


def test_lru_drops_what_was_not_used_for_longest() -> None:
    budget = Budget("test", 30, "lru")
    assert admit(budget, "abc") == []
    budget.used("a")
    assert admit(budget, "de") == ["b", "c"]
    assert admit(budget, "f", 20) == ["a", "d"]
    assert budget.used_bytes == 30


def test_s3_fifo_drops_first_what_came_first_and_was_not_used_twice() -> None:
    budget = s3_fifo()
    admit(budget, "abcdefghij")
    budget.used("a")
    budget.used("b")
    budget.used("b")
    # a was used once only, b twice: it moves to the main queue, and c is next.
    assert admit(budget, "kl") == ["a", "c"]
    assert "b" in budget


def test_s3_fifo_a_donor_that_comes_back_goes_to_the_main_queue() -> None:
    budget = s3_fifo()
    assert admit(budget, "abcdefghijk") == ["a"]
    assert admit(budget, "a") == ["b"]
    # Eight more push all others out of the small queue, and a stays.
    assert admit(budget, "qrstuvwx") == list("cdefghij")
    assert admit(budget, "yz") == ["k", "q"]
    assert "a" in budget


@pytest.mark.parametrize(("pushed_out", "known"), [("KLMNOPQRS", True), ("KLMNOPQRST", False)])
def test_s3_fifo_ghosts_are_known_for_as_many_bytes_as_the_main_queue_has(
    pushed_out: str, known: bool
) -> None:
    budget = s3_fifo()
    admit(budget, "abcdefghij")
    assert admit(budget, pushed_out)[0] == "a"
    # 90 bytes of ghosts are known: of nine that were pushed out all, of ten not the first, a.
    budget.remove("K")
    assert admit(budget, "a") == []
    admit(budget, "0123456789")
    assert ("a" in budget) == known  # in the main queue, or pushed out of the small one


def main_queue_of_b_and_c() -> Budget:
    budget = s3_fifo()
    admit(budget, "abc", 30)
    for donor in "aabbcc":
        budget.used(donor)
    # All three move on with their uses cleared, so that the oldest goes.
    assert admit(budget, "d", 20) == ["a"]
    budget.remove("d")
    admit(budget, "e", 5)  # less than a tenth: the main queue gives way first
    return budget


def test_s3_fifo_the_main_queue_gives_a_used_donor_another_round() -> None:
    budget = main_queue_of_b_and_c()
    budget.used("b")
    assert admit(budget, "f", 40) == ["c"]
    budget = main_queue_of_b_and_c()
    assert admit(budget, "f", 40) == ["b"]


def test_s3_fifo_counts_three_uses_at_most() -> None:
    budget = main_queue_of_b_and_c()
    for donor in "bbbbbbbbbccc":
        budget.used(donor)
    # b and c have three rounds more each, and b is at the end first.
    assert admit(budget, "f", 40) == ["b"]


def test_s3_fifo_a_scan_pushes_nothing_out_that_is_used_again() -> None:
    for policy, kept in (("s3-fifo", True), ("lru", False)):
        budget = Budget("test", 1000, policy)
        for donor in ("hot", "warm"):
            budget.admit(donor, 100, pinned=False)
            budget.used(donor)
            budget.used(donor)
        for number in range(200):
            budget.admit(str(number), 10, pinned=False)
        assert ("hot" in budget, "warm" in budget) == (kept, kept)


@pytest.mark.parametrize("policy", ["lru", "s3-fifo"])
def test_nothing_is_evicted_for_a_donor_that_does_not_fit_anyway(policy: EvictionName) -> None:
    budget = Budget("disk", 100, policy)
    budget.admit("stays", 40, pinned=True)
    admit(budget, "abc")
    with pytest.raises(TierFull, match=r"donor x takes 61 bytes; tier disk has 100, .* hold 40"):
        budget.admit("x", 61, pinned=False)
    assert (budget.used_bytes, len(budget)) == (70, 4)
    assert budget.admit("x", 60, pinned=False) == ["a", "b", "c"]
    assert issubclass(TierFull, SemShareError)


@pytest.mark.parametrize("policy", ["lru", "s3-fifo"])
def test_a_donor_is_no_victim_of_its_own_new_size(policy: EvictionName) -> None:
    budget = Budget("test", 100, policy)
    admit(budget, "abc", 30)
    assert budget.admit("a", 50, pinned=False) == ["b"]
    assert budget.used_bytes == 80
    assert budget.admit("a", 10, pinned=True) == []
    assert budget.used_bytes == 40
    # Pinned now, it still makes room for itself.
    assert budget.admit("a", 100, pinned=True) == ["c"]


class Model:
    """Donors in lists, oldest first; slow and plain."""

    def __init__(self, budget: int, policy: EvictionName) -> None:
        self.budget, self.policy = budget, policy
        self.sizes: dict[str, int] = {}
        self.pinned: set[str] = set()
        self.uses: dict[str, int] = {}
        self.small: list[str] = []  # LRU: the only list
        self.main: list[str] = []
        self.ghosts: list[tuple[str, int]] = []

    def bytes_of(self, donors: Sequence[str]) -> int:
        return sum(self.sizes[donor] for donor in donors)

    def admit(self, donor: str, size: int, pinned: bool) -> list[str] | None:
        others = [other for other in self.pinned if other != donor]
        if self.bytes_of(others) + size > self.budget:
            return None
        victims = []
        while self.bytes_of([d for d in self.sizes if d != donor]) + size > self.budget:
            victim = self.victim({*self.pinned, donor})
            victims.append(victim)
            self.forget(victim)
        if donor not in self.sizes:
            known = [ghost for ghost in self.ghosts if ghost[0] == donor]
            (self.main if known else self.small).append(donor)
            self.ghosts = [ghost for ghost in self.ghosts if ghost[0] != donor]
            self.uses[donor] = 0
        self.sizes[donor] = size
        (self.pinned.add if pinned else self.pinned.discard)(donor)
        return victims

    def victim(self, pinned: set[str]) -> str:
        if self.policy == "lru":
            return next(donor for donor in self.small if donor not in pinned)
        from_small = self.bytes_of(self.small) >= int(self.budget * 0.1)
        while True:
            if not self.small or not (from_small or set(self.main) <= pinned):
                if set(self.main) <= pinned:
                    from_small = True
                    continue
                donor = self.main.pop(0)
                if donor not in pinned and self.uses[donor] == 0:
                    self.main.insert(0, donor)  # `forget` takes it out
                    return donor
                self.uses[donor] -= donor not in pinned
                self.main.append(donor)
            else:
                donor = self.small[0]
                if donor not in pinned and self.uses[donor] < 2:
                    self.ghosts.append((donor, self.sizes[donor]))
                    room = self.budget - int(self.budget * 0.1)
                    while sum(size for _, size in self.ghosts) > room:
                        self.ghosts.pop(0)
                    return donor
                if donor not in pinned:
                    self.uses[donor] = 0
                self.main.append(self.small.pop(0))

    def used(self, donor: str) -> None:
        if donor in self.sizes:
            self.uses[donor] = min(3, self.uses[donor] + 1)
            if self.policy == "lru":
                self.small.append(self.small.pop(self.small.index(donor)))

    def forget(self, donor: str) -> None:
        if donor in self.sizes:
            del self.sizes[donor]
            self.pinned.discard(donor)
            (self.small if donor in self.small else self.main).remove(donor)


donors = st.sampled_from("abcdefghijkl")
actions = st.one_of(
    st.tuples(st.just("admit"), donors, st.integers(1, 45), st.sampled_from([False] * 4 + [True])),
    st.tuples(st.just("used"), donors),
    st.tuples(st.just("remove"), donors),
    st.tuples(st.just("pin"), donors, st.booleans()),
)


@pytest.mark.parametrize("policy", ["lru", "s3-fifo"])
@given(budget_bytes=st.integers(1, 120), steps=st.lists(actions, max_size=60))
@examples(300)
def test_the_budget_does_as_the_model_does(
    policy: EvictionName, budget_bytes: int, steps: list[tuple]
) -> None:
    budget, model = Budget("test", budget_bytes, policy), Model(budget_bytes, policy)
    for what, donor, *rest in steps:
        if what == "admit":
            size, pinned = rest
            expected = model.admit(donor, size, pinned)
            if expected is None:
                with pytest.raises(TierFull):
                    budget.admit(donor, size, pinned=pinned)
            else:
                assert budget.admit(donor, size, pinned=pinned) == expected
        elif what == "used":
            budget.used(donor)
            model.used(donor)
        elif what == "remove":
            budget.remove(donor)
            model.forget(donor)
        elif what == "pin":
            budget.pin(donor, rest[0])
            if donor in model.sizes:
                (model.pinned.add if rest[0] else model.pinned.discard)(donor)
        assert budget.used_bytes == sum(model.sizes.values()) <= budget_bytes
        assert {donor for donor in "abcdefghijkl" if donor in budget} == set(model.sizes)
