"""The prefix tree against a dictionary of id tuples, under any order of calls."""

from __future__ import annotations

from itertools import count

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from properties import examples
from small_pools import small_pool

from semshare.donors.prefix_tree import PrefixNode, PrefixTree
from semshare.types import Ids

SIZE = 3  # tokens a page
PAGES = 400

# Few ids and a common stem, so that paths share, branch and split.
pieces = st.lists(st.sampled_from([(0, 0, 0), (0, 0, 1), (1, 0, 0)]), min_size=0, max_size=6)
tails = st.lists(st.integers(0, 1), max_size=SIZE - 1)
sequences = st.builds(
    lambda chunks, tail: np.array([i for c in chunks for i in c] + tail, dtype=np.int32),
    pieces,
    tails,
)

Path = tuple[int, ...]


class TreeMachine(RuleBasedStateMachine):
    """Inserts, matches, locks, readers and evictions; a dictionary says what must come out.

    `cached` maps the ids of every whole-page prefix to its page, `used` to the time it was last
    matched or inserted, `locks` to how many locks lie on it.
    """

    @initialize()
    def start(self) -> None:
        self.pool = small_pool(PAGES, page_size=SIZE)
        self.tree = PrefixTree(self.pool, count(1))
        self.cached: dict[Path, int] = {}
        self.used: dict[Path, int] = {}
        self.locks: dict[Path, int] = {}
        self.locked: list[tuple[PrefixNode, list[Path]]] = []
        self.readers: list[np.ndarray] = []
        self.time = 0

    def prefixes(self, ids: Ids) -> list[Path]:
        """Every whole-page prefix of `ids`, the shortest first."""
        return [tuple(ids[:n].tolist()) for n in range(SIZE, len(ids) + 1, SIZE)]

    def expected_match(self, ids: Ids) -> list[Path]:
        found: list[Path] = []
        for prefix in self.prefixes(ids):
            if prefix not in self.cached:
                break
            found.append(prefix)
        return found

    def touch(self, paths: list[Path]) -> None:
        self.time += 1
        self.used.update(dict.fromkeys(paths, self.time))

    @rule(ids=sequences, owner=st.sampled_from([None, "a", "b"]))
    def insert(self, ids: Ids, owner: str | None) -> None:
        pages = self.pool.allocate(len(ids))
        kept = self.expected_match(ids)
        node = self.tree.insert(ids, pages, owner=owner)
        self.touch(self.prefixes(ids))
        for index, prefix in enumerate(self.prefixes(ids)):
            self.cached.setdefault(prefix, int(pages[index]))
        for index in range(len(kept), len(self.prefixes(ids))):
            assert self.pool.references(pages[index : index + 1]) == 2
        self.pool.release(pages)  # as a request does when it ends: only new pages stay
        assert self.ids_to(node) == tuple(ids[: len(ids) // SIZE * SIZE].tolist())

    @rule(ids=sequences, limit=st.one_of(st.none(), st.integers(0, 20)))
    def match(self, ids: Ids, limit: int | None) -> None:
        expected = self.expected_match(ids if limit is None else ids[:limit])
        found = self.tree.match(ids, limit=limit)
        self.touch(expected)
        assert found.tokens == SIZE * len(expected)
        assert found.pages.tolist() == [self.cached[prefix] for prefix in expected]
        assert self.ids_to(found.node) == (expected[-1] if expected else ())

    @rule(ids=sequences)
    def lock(self, ids: Ids) -> None:
        expected = self.expected_match(ids)
        self.tree.lock(self.tree.match(ids).node)
        node = self.tree.match(ids).node
        self.touch(expected)
        self.locked.append((node, expected))
        for prefix in expected:
            self.locks[prefix] = self.locks.get(prefix, 0) + 1

    @precondition(lambda self: self.locked)
    @rule(data=st.data())
    def unlock(self, data: st.DataObject) -> None:
        node, paths = self.locked.pop(data.draw(st.integers(0, len(self.locked) - 1)))
        self.tree.unlock(node)
        for prefix in paths:
            self.locks[prefix] -= 1

    @rule(ids=sequences)
    def read(self, ids: Ids) -> None:
        pages = self.tree.match(ids).pages
        self.touch(self.expected_match(ids))
        self.pool.share(pages)
        self.readers.append(pages)

    @precondition(lambda self: self.readers)
    @rule(data=st.data())
    def stop_reading(self, data: st.DataObject) -> None:
        self.pool.release(self.readers.pop(data.draw(st.integers(0, len(self.readers) - 1))))

    @rule()
    def evict_the_oldest(self) -> None:
        leaf = self.tree.oldest_leaf(self.pool.references(np.arange(self.pool.n_pages)) == 1)
        read = set(np.concatenate(self.readers).tolist()) if self.readers else set()
        candidates = {}
        for node in self.tree.nodes():
            path = self.ids_to(node)
            free_to_go = not self.locks.get(path) and not read & set(node.pages.tolist())
            if free_to_go and not self.has_extension(path):
                candidates[path] = self.used[path]
        if leaf is None:
            assert not candidates
            return
        path = self.ids_to(leaf)
        assert candidates[path] == min(candidates.values()), "not the least recently used leaf"
        before = self.pool.free_pages
        self.tree.evict(leaf)
        assert self.pool.free_pages == before + len(leaf.pages)
        self.forget(leaf, path)

    @rule(ids=sequences)
    def forget_with_all_that_continues_it(self, ids: Ids) -> None:
        expected = self.expected_match(ids)
        node = self.tree.match(ids).node
        self.touch(expected)
        self.tree.forget(node)
        if not expected:
            return  # nothing of it was cached, and the rest of the tree is somebody else's
        for path in [p for p in self.cached if p[: len(expected[-1])] == expected[-1]]:
            if not self.locks.get(path):
                del self.cached[path]
        for prefix in reversed([p for p in expected if p in self.cached]):
            if self.locks.get(prefix) or self.has_extension(prefix):
                break
            del self.cached[prefix]

    @rule()
    def clear(self) -> None:
        if not self.locked and not self.readers:
            self.tree.clear()
            self.cached.clear()
            assert self.pool.free_pages == PAGES

    def has_extension(self, path: Path) -> bool:
        return any(len(p) == len(path) + SIZE and p[: len(path)] == path for p in self.cached)

    def forget(self, leaf: PrefixNode, path: Path) -> None:
        for k in range(len(leaf.pages)):
            del self.cached[path[: len(path) - k * SIZE]]

    def ids_to(self, node: PrefixNode) -> Path:
        ids: Path = ()
        step: PrefixNode | None = node
        while step is not None:
            ids = (*step.ids.tolist(), *ids)
            step = step.parent
        return ids

    @invariant()
    def pages_are_referenced_once_by_the_tree_and_once_a_reader(self) -> None:
        expected = np.zeros(PAGES, dtype=int)
        expected[list(self.cached.values())] += 1
        for pages in self.readers:
            expected[pages] += 1
        np.testing.assert_array_equal(self.pool.references(np.arange(PAGES)), expected)

    @invariant()
    def the_tree_holds_what_the_dictionary_holds(self) -> None:
        held: dict[Path, int] = {}
        for node in self.tree.nodes():
            assert len(node.ids) == SIZE * len(node.pages) > 0
            end = self.ids_to(node)
            start = len(end) - len(node.ids)
            for index, page in enumerate(node.pages):
                held[end[: start + (index + 1) * SIZE]] = int(page)
                assert node.locks == self.locks.get(end[: start + (index + 1) * SIZE], 0)
            for child in node.children.values():
                assert child.parent is node
        assert held == self.cached


def test_the_tree_behaves_like_a_dictionary_of_prefixes() -> None:
    run_state_machine_as_test(TreeMachine, settings=examples(80))


def arange_ids(n: int) -> Ids:
    return np.arange(n, dtype=np.int32)


def test_a_part_of_a_page_is_neither_cached_nor_matched() -> None:
    pool = small_pool(8, page_size=4)
    tree = PrefixTree(pool, count(1))
    tree.insert(arange_ids(11), pool.allocate(11), owner=None)
    assert tree.match(arange_ids(11)).tokens == 8
    assert tree.match(arange_ids(20)).tokens == 8
    assert tree.match(arange_ids(7)).tokens == 4
    assert tree.match(arange_ids(20), limit=7).tokens == 4
    assert tree.match(arange_ids(3)).tokens == 0
    assert tree.match(arange_ids(0)).tokens == 0


def test_one_different_id_in_a_page_ends_the_match_before_it() -> None:
    pool = small_pool(8, page_size=4)
    tree = PrefixTree(pool, count(1))
    tree.insert(arange_ids(16), pool.allocate(16), owner=None)
    for at, expected in ((0, 0), (3, 0), (4, 4), (9, 8), (15, 12)):
        ids = arange_ids(16)
        ids[at] = 99
        assert tree.match(ids).tokens == expected


def test_a_split_keeps_owner_locks_and_the_lower_node() -> None:
    pool = small_pool(8, page_size=4)
    tree = PrefixTree(pool, count(1))
    node = tree.insert(arange_ids(16), pool.allocate(16), owner="donor")
    tree.lock(node)
    upper = tree.match(arange_ids(8)).node
    assert upper is not node
    assert (upper.owner, upper.locks, node.owner, node.locks) == ("donor", 1, "donor", 1)
    assert node.parent is upper
    tree.unlock(node)
    assert upper.locks == node.locks == 0


def test_the_first_owner_of_a_run_stays_and_a_later_donor_names_the_rest() -> None:
    pool = small_pool(16, page_size=4)
    tree = PrefixTree(pool, count(1))
    tree.insert(arange_ids(4), pool.allocate(4), owner=None)
    tree.insert(arange_ids(8), pool.allocate(8), owner="first")
    tree.insert(arange_ids(12), pool.allocate(12), owner="second")
    owners = [tree.match(arange_ids(n)).node.owner for n in (4, 8, 12)]
    assert owners == ["first", "first", "second"]


def test_only_what_is_locked_can_be_unlocked_and_only_free_leaves_evicted() -> None:
    pool = small_pool(8, page_size=4)
    tree = PrefixTree(pool, count(1))
    upper = tree.insert(arange_ids(4), pool.allocate(4), owner=None)
    leaf = tree.insert(arange_ids(8), pool.allocate(8), owner=None)
    with pytest.raises(AssertionError, match="not locked"):
        tree.unlock(leaf)
    with pytest.raises(AssertionError, match="only an unlocked leaf"):
        tree.evict(upper)
    tree.lock(leaf)
    with pytest.raises(AssertionError, match="only an unlocked leaf"):
        tree.evict(leaf)
    assert tree.oldest_leaf(np.ones(8, np.bool_)) is None
