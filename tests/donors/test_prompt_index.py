"""Nearest donors: vectors and codes against brute force, while donors come and go."""

from __future__ import annotations

import faiss
import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test
from properties import examples

from semshare.donors import prompt_index, vector_scan
from semshare.donors.embedders import Vector
from semshare.donors.prompt_index import PromptIndex

DIM = 8
LIMIT = 20


def unit(seed: int, dim: int = DIM) -> Vector:
    vector = np.random.default_rng(seed).standard_normal(dim)
    return (vector / np.linalg.norm(vector)).astype(np.float32)


class IndexMachine(RuleBasedStateMachine):
    """Donors come and go around the change from vectors to codes and back, and while it happens.

    So few are all candidates, and codes change nothing but the time that a search takes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.index = PromptIndex(DIM, flat_limit=LIMIT)
        self.vectors: dict[str, Vector] = {}
        self.next = 0

    def new(self, count: int) -> list[tuple[str, Vector]]:
        items = [(f"d{i}", unit(i)) for i in range(self.next, self.next + count)]
        self.vectors |= items
        self.next += count
        return items

    @rule(count=st.integers(1, 12))
    def add(self, count: int) -> None:
        for donor, vector in self.new(count):
            self.index.add(donor, vector)

    @rule(count=st.integers(0, 40))
    def add_many(self, count: int) -> None:
        self.index.add_many(iter(self.new(count)))

    @precondition(lambda self: self.vectors)
    @rule(data=st.data(), count=st.integers(1, 12))
    def remove(self, data: st.DataObject, count: int) -> None:
        for _ in range(min(count, len(self.vectors))):
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


def test_any_order_of_coming_and_going_agrees_with_brute_force(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(prompt_index, "_ENCODED", 4)  # donors go while codes are built
    run_state_machine_as_test(IndexMachine, settings=examples(50))


def test_on_a_gpu_what_its_copy_lags_behind_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """An index on the machine's own memory stands for the GPU's, which grows only, too."""
    monkeypatch.setattr(faiss, "index_cpu_to_all_gpus", lambda index: index, raising=False)
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 1, raising=False)
    monkeypatch.setattr(vector_scan, "_MOST_CHANGED", 6)
    monkeypatch.setattr(prompt_index, "CANDIDATES", 1)
    run_state_machine_as_test(IndexMachine, settings=examples(30))
    index = PromptIndex(DIM, flat_limit=LIMIT)
    index.add_many((f"d{i}", unit(i)) for i in range(LIMIT + 1))
    assert index.nbytes == (LIMIT + 1) * DIM * 4, "nothing but the vectors"


def test_an_empty_index_finds_nothing() -> None:
    index = PromptIndex(DIM)
    assert index.nearest(unit(0), 3) == []
    index.add("d", unit(1))
    index.remove("d")
    assert len(index) == 0
    assert index.nearest(unit(0), 3) == []


def test_recall_of_codes_on_near_duplicates() -> None:
    """Each of 2,000 prompts, slightly changed, finds its own among far more than candidates."""
    dim = 32
    index = PromptIndex(dim, flat_limit=50)
    vectors = [unit(i, dim) for i in range(2000)]
    for i, vector in enumerate(vectors):
        index.add(f"d{i}", vector)
    assert index._scan is not None
    for i in range(0, 2000, 3):
        index.remove(f"d{i}")
    for i in range(0, 600, 3):  # their codes are written where those of others were
        index.add(f"d{i}", vectors[i])
    hits = total = 0
    for i, vector in enumerate(vectors):
        changed = vector + 0.3 * unit(10_000 + i, dim)
        (best,) = index.nearest(changed / np.linalg.norm(changed), 1)
        number = int(best.donor[1:])
        assert number % 3 or number < 600, "a removed donor was returned"
        if i % 3 or i < 600:
            total += 1
            hits += best.donor == f"d{i}"
    assert hits / total >= 0.99


def test_codes_are_built_in_steps_and_the_index_answers_meanwhile() -> None:
    dim = 64  # 16 parts, of which 4 are learnt with every donor
    index = PromptIndex(dim, flat_limit=100)
    vectors = [unit(i, dim) for i in range(140)]
    complete = []
    for i, vector in enumerate(vectors):
        index.add(f"d{i}", vector)
        complete.append(index._scan is not None)
        assert index.nearest(vector, 1)[0].donor == f"d{i}"
    assert complete == [False] * 105 + [True] * 35, "no request builds all of it"
    assert index.nbytes == 140 * (dim * 4 + dim // 8)


def test_many_at_once_are_searched_by_codes_from_then_on() -> None:
    index = PromptIndex(DIM, flat_limit=LIMIT)
    index.add_many((f"d{i}", unit(i)) for i in range(LIMIT + 5))
    assert index.nbytes == (LIMIT + 5) * (DIM * 4 + DIM // 8)
    for i in range(LIMIT):
        index.remove(f"d{i}")
    assert index.nbytes == 5 * DIM * 4, "few are searched as they are again"
    assert {donor.donor for donor in index.nearest(unit(0), 9)} == {
        f"d{i}" for i in range(LIMIT, LIMIT + 5)
    }


@pytest.mark.parametrize("dim", [1, 3, 5, 50, 1025])
def test_vectors_of_any_length(dim: int) -> None:
    index = PromptIndex(dim, flat_limit=16)
    vectors = [unit(i, dim) for i in range(60)]
    index.add_many((f"d{i}", vector) for i, vector in enumerate(vectors))
    index.remove("d7")
    index.add("d7", vectors[7])
    for vector in vectors[:20]:
        best = index.nearest(vector, 1)[0].similarity
        assert best == pytest.approx(max(float(v @ vector) for v in vectors), abs=1e-6)


def test_codebooks_are_learnt_anew_as_the_index_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first donors are all alike; the later ones are told apart none the less."""
    monkeypatch.setattr(prompt_index, "CANDIDATES", 8)
    rng = np.random.default_rng(0)
    base = unit(0, 32)
    alike = [base + 0.01 * rng.standard_normal(32) for _ in range(60)]
    others = [unit(i, 32) for i in range(1, 900)]
    index = PromptIndex(32, flat_limit=50)
    for i, vector in enumerate([*alike, *others]):
        index.add(f"d{i}", (vector / np.linalg.norm(vector)).astype(np.float32))
    assert index._learnt_from == 821, "51, then 205, then 821 donors"
    found = [index.nearest(vector, 1)[0].donor for vector in others]
    assert np.mean([name == f"d{60 + i}" for i, name in enumerate(found)]) >= 0.99


def test_a_donor_is_indexed_once() -> None:
    index = PromptIndex(DIM)
    index.add("d", unit(0))
    with pytest.raises(ValueError, match="donor d is indexed already"):
        index.add("d", unit(1))
    with pytest.raises(ValueError, match="indexed already"):
        index.add_many([("e", unit(1)), ("e", unit(2))])
    assert [donor.donor for donor in index.nearest(unit(0), 5)] == ["d"]
    with pytest.raises(ValueError, match=r"flat_limit is 15: .* 16"):
        PromptIndex(DIM, flat_limit=15)
