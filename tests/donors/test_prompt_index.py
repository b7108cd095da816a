"""Nearest donors: exact and approximate search against brute force, and removal."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test
from properties import examples

from semshare.donors.embedders import Vector
from semshare.donors.prompt_index import PromptIndex

DIM = 8


def unit(seed: int, dim: int = DIM) -> Vector:
    vector = np.random.default_rng(seed).standard_normal(dim)
    return (vector / np.linalg.norm(vector)).astype(np.float32)


class IndexMachine(RuleBasedStateMachine):
    """Adds and removes donors around the change from flat to graph and back."""

    def __init__(self) -> None:
        super().__init__()
        self.index = PromptIndex(DIM, flat_limit=6)
        self.vectors: dict[str, Vector] = {}
        self.next = 0

    @rule(count=st.integers(1, 4))
    def add(self, count: int) -> None:
        for _ in range(count):
            self.vectors[f"d{self.next}"] = unit(self.next)
            self.index.add(f"d{self.next}", unit(self.next))
            self.next += 1

    @precondition(lambda self: self.vectors)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.vectors)))
        del self.vectors[name]
        self.index.remove(name)

    @precondition(lambda self: self.next)
    @rule(data=st.data())
    def add_again(self, data: st.DataObject) -> None:
        gone = sorted({f"d{i}" for i in range(self.next)} - set(self.vectors))
        if gone:
            name = data.draw(st.sampled_from(gone))
            self.vectors[name] = unit(int(name[1:]))
            self.index.add(name, self.vectors[name])

    @rule(seed=st.integers(1000, 1100), k=st.integers(1, 5))
    def nearest_equals_brute_force(self, seed: int, k: int) -> None:
        query = unit(seed)
        found = self.index.nearest(query, k)
        expected = sorted((-float(v @ query), name) for name, v in self.vectors.items())[:k]
        assert len(self.index) == len(self.vectors)
        assert [donor.donor for donor in found] == [name for _, name in expected]
        for donor, (negative, _) in zip(found, expected, strict=True):
            assert donor.similarity == pytest.approx(-negative, abs=1e-5)


def test_flat_and_graph_agree_with_brute_force_through_removals() -> None:
    run_state_machine_as_test(IndexMachine, settings=examples(50))


def test_an_empty_index_finds_nothing() -> None:
    index = PromptIndex(DIM)
    assert index.nearest(unit(0), 3) == []
    index.add("d", unit(1))
    index.remove("d")
    assert len(index) == 0
    assert index.nearest(unit(0), 3) == []


def test_recall_of_the_graph_on_near_duplicates() -> None:
    """Each of 400 prompts, slightly changed, finds its own among vectors beyond the flat limit."""
    dim = 32
    index = PromptIndex(dim, flat_limit=50)
    vectors = [unit(i, dim) for i in range(400)]
    for i, vector in enumerate(vectors):
        index.add(f"d{i}", vector)
    for i in range(0, 400, 3):
        index.remove(f"d{i}")
    hits = total = 0
    for i, vector in enumerate(vectors):
        changed = vector + 0.3 * unit(10_000 + i, dim)
        (best,) = index.nearest(changed / np.linalg.norm(changed), 1)
        assert int(best.donor[1:]) % 3, "a removed donor was returned"
        if i % 3:
            total += 1
            hits += best.donor == f"d{i}"
    assert hits / total >= 0.99
