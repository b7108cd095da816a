"""The KV pool: who holds which page, under any order of calls."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from properties import examples
from small_pools import PAGE_BYTES, small_pool

from semshare import InvalidRequest, PoolExhausted
from semshare.kv.pool import KVPool
from semshare.types import Pages

PAGES = 12


class PoolMachine(RuleBasedStateMachine):
    """Holders take, share and give back pages; a plain count says what must be."""

    held = Bundle("held")

    def __init__(self) -> None:
        super().__init__()
        self.pool = small_pool(PAGES)
        self.expected = np.zeros(PAGES, dtype=int)
        self.reclaimable: list[Pages] = []

    @rule(target=held, n_slots=st.integers(0, (PAGES + 2) * 4))
    def allocate(self, n_slots: int) -> Pages:
        wanted = self.pool.pages_for(n_slots)
        free = int(np.count_nonzero(self.expected == 0))
        runs = "".join("x" if count else "." for count in self.expected).split("x")
        fitting = [len(run) for run in runs if len(run) >= wanted]
        if wanted > free:
            with pytest.raises(PoolExhausted, match=f"{n_slots} KV slots wanted, {free * 4} of 48"):
                self.pool.allocate(n_slots)
            return np.empty(0, dtype=np.int64)
        pages = self.pool.allocate(n_slots)
        assert len(pages) == len(set(pages.tolist())) == wanted
        assert np.all(self.expected[pages] == 0), "a used page was handed out"
        if wanted and fitting:
            assert np.all(np.diff(pages) == 1), "a contiguous run was there"
            low, high = int(pages[0]), int(pages[-1])
            while low > 0 and self.expected[low - 1] == 0:
                low -= 1
            while high + 1 < PAGES and self.expected[high + 1] == 0:
                high += 1
            assert high - low + 1 == min(fitting), "not the tightest run that fits"
        self.expected[pages] += 1
        return pages

    @rule(target=held, pages=held)
    def share(self, pages: Pages) -> Pages:
        if np.any(self.expected[pages] == 0):
            with pytest.raises(AssertionError, match="free page"):
                self.pool.share(pages)
            return np.empty(0, dtype=np.int64)
        self.pool.share(pages)
        self.expected[pages] += 1
        return pages

    @rule(pages=consumes(held))
    def release(self, pages: Pages) -> None:
        self.pool.release(pages)
        self.expected[pages] -= 1

    @precondition(lambda self: np.any(self.expected == 0))
    @rule(data=st.data())
    def a_free_page_cannot_be_released_or_shared(self, data: st.DataObject) -> None:
        free = data.draw(st.sampled_from(np.flatnonzero(self.expected == 0).tolist()))
        for call in (self.pool.share, self.pool.release):
            with pytest.raises(AssertionError, match="free page"):
                call(np.arange(PAGES) if np.any(self.expected) else np.array([free]))

    @invariant()
    def counts_agree(self) -> None:
        everything = np.arange(PAGES)
        np.testing.assert_array_equal(self.pool.references(everything), self.expected)
        free = int(np.count_nonzero(self.expected == 0))
        assert self.pool.free_pages == free
        assert self.pool.used_bytes == (PAGES - free) * 4 * PAGE_BYTES
        assert self.pool.used_bytes <= PAGES * 4 * PAGE_BYTES


def test_pages_are_never_both_free_and_held() -> None:
    run_state_machine_as_test(PoolMachine, settings=examples(60))


def test_memory_stays_within_the_budget() -> None:
    budget = 10 * 4 * PAGE_BYTES + 17  # and a part of a page that goes unused
    pool = KVPool(
        n_layers=2,
        n_kv_heads=1,
        head_dim=4,
        dtype=torch.float32,
        device=torch.device("cpu"),
        budget_bytes=budget,
        page_size=4,
    )
    assert pool.n_pages == 10
    tensors = [*pool.keys, *pool.values]
    assert sum(t.numel() * t.element_size() for t in tensors) == 10 * 4 * PAGE_BYTES <= budget


def test_a_budget_below_one_page_is_refused_with_both_numbers() -> None:
    with pytest.raises(InvalidRequest, match="kv_budget_bytes is 100: one page of 4 slots takes"):
        KVPool(
            n_layers=2,
            n_kv_heads=1,
            head_dim=4,
            dtype=torch.float32,
            device=torch.device("cpu"),
            budget_bytes=100,
            page_size=4,
        )


def test_the_tightest_run_that_fits_is_taken() -> None:
    pool = small_pool(12)
    pool.allocate(12 * 4)
    pool.release(np.array([1, 2, 3, 4, 6, 7, 9, 10, 11]))  # free runs: 1-4 | 6-7 | 9-11
    np.testing.assert_array_equal(pool.allocate(2 * 4), [6, 7])
    np.testing.assert_array_equal(pool.allocate(2 * 4), [9, 10])


def test_scattered_pages_are_used_where_no_run_fits_the_largest_first() -> None:
    pool = small_pool(9)
    pool.allocate(9 * 4)
    pool.release(np.array([0, 2, 3, 4, 6, 7]))  # free runs: 0 | 2-4 | 6-7
    np.testing.assert_array_equal(pool.allocate(5 * 4), [2, 3, 4, 6, 7])


def test_reclaim_is_asked_only_where_pages_are_missing() -> None:
    pool = small_pool(4)
    asked: list[int] = []

    def reclaim(wanted: int) -> None:
        asked.append(wanted)
        pool.release(first)

    pool.reclaim = reclaim
    first = pool.allocate(3 * 4)
    pool.allocate(1)
    assert asked == []
    np.testing.assert_array_equal(pool.allocate(9), first)
    assert asked == [3]


def test_exhausted_after_reclaim_takes_nothing() -> None:
    pool = small_pool(4)
    pool.allocate(2 * 4)
    pool.reclaim = lambda wanted: None
    with pytest.raises(PoolExhausted, match=r"12 KV slots wanted, 8 of 16 free .* kv_budget_bytes"):
        pool.allocate(12)
    assert pool.free_pages == 2


def test_slots_and_pages_of_each_other() -> None:
    pool = small_pool(8)
    np.testing.assert_array_equal(pool.slots_of(np.array([5, 2])), [20, 21, 22, 23, 8, 9, 10, 11])
    np.testing.assert_array_equal(pool.pages_of(np.array([23, 8, 20, 9])), [2, 5])
    assert [pool.pages_for(n) for n in (0, 1, 4, 5)] == [0, 1, 1, 2]
    assert len(pool.slots_of(np.empty(0, np.int64))) == 0


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads Linux's own count")
def test_an_empty_pool_takes_no_memory() -> None:
    def resident_bytes() -> int:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    before = resident_bytes()
    pool = small_pool((1 << 30) // (4 * PAGE_BYTES))
    assert pool.all_keys.nbytes == pool.all_values.nbytes == 1 << 29
    assert resident_bytes() - before < 1 << 26
