"""Donors of all namespaces: what they hold, who finds them, and who has to go."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from properties import examples
from small_pools import small_pool

from semshare import NotFound, PoolExhausted
from semshare.donors.embedders import HashEmbedder, Vector
from semshare.donors.library import DonorLibrary
from semshare.donors.namespace import Donor, donor_id
from semshare.donors.prefix_tree import PrefixNode
from semshare.kv.pool import KVPool
from semshare.planning.guard import FactMarks
from semshare.types import Ids, Pages, Scores

PAGES = 12
NO_HISTORY = np.empty(0, np.float32)

# Prompts over few ids, so that they share stems and are sometimes the same.
prompts = st.lists(
    st.sampled_from([(0, 0, 0, 0), (0, 0, 0, 1), (2, 2)]), min_size=1, max_size=5
).map(lambda chunks: np.array([i for chunk in chunks for i in chunk], dtype=np.int32))
spaces_of_machine = ("a", "b")
spaces = st.sampled_from(spaces_of_machine)
lifetimes = st.sampled_from([None, 1.0, 5.0])


def ids_from(start: int, n: int) -> Ids:
    return np.arange(start, start + n, dtype=np.int32)


class NoTraits:
    """Of tokens that are nothing special."""

    def __init__(self, ids: Ids) -> None:
        self.codes = torch.zeros((len(ids), 1), dtype=torch.int64)
        self.marks = FactMarks(*np.zeros((3, len(ids)), np.bool_))

    def compute(self) -> None:
        """They are there."""


@dataclass
class Clock:
    """Seconds that pass when a test says so."""

    now: float = 1_000.0

    def __call__(self) -> float:
        return self.now


def library_over(pool: KVPool, clock: Callable[[], float] | None = None) -> DonorLibrary:
    return DonorLibrary(pool, HashEmbedder(16), NoTraits, now=clock or Clock())


def keep(
    library: DonorLibrary,
    pool: KVPool,
    ids: Ids,
    *,
    namespace: str = "n",
    pinned: bool = False,
    history: Scores = NO_HISTORY,
    ttl_s: float | None = None,
) -> Donor:
    """Add a donor as a request does: on pages of its own, given back afterwards."""
    pages = pool.allocate(len(ids))
    try:
        return library.renew(
            namespace, ids, history=history, pinned=pinned, ttl_s=ttl_s
        ) or library.add(
            namespace,
            ids,
            pages,
            history=history,
            pinned=pinned,
            ttl_s=ttl_s,
        )
    finally:
        pool.release(pages)


@pytest.fixture
def pool() -> KVPool:
    return small_pool(PAGES)


@pytest.fixture
def library(pool: KVPool) -> DonorLibrary:
    return library_over(pool)


def test_a_donor_is_found_by_prefix_by_span_and_by_meaning(
    library: DonorLibrary, pool: KVPool
) -> None:
    ids = ids_from(0, 14)
    donor = keep(library, pool, ids)
    space = library.namespace("n")
    assert space.prefixes.match(ids).node.owner == donor.id
    (span,) = space.spans.find(np.concatenate(([99], ids)).astype(np.int32), start=0, min_length=8)
    assert (span.donor, span.start, span.length) == (donor.id, 1, 14)
    (similar,) = space.prompts.nearest(library.vectors.of(ids), 3)
    assert similar.donor == donor.id
    assert donor.info.tokens == 14
    assert donor.info.bytes == 4 * 4 * pool.bytes_per_slot == pool.used_bytes
    np.testing.assert_array_equal(donor.slots, pool.slots_of(donor.pages)[:14])


def test_namespaces_hold_nothing_of_each_other(library: DonorLibrary, pool: KVPool) -> None:
    donor = keep(library, pool, ids_from(0, 14), namespace="a")
    other = library.namespace("b")
    assert other.prefixes.match(ids_from(0, 14)).tokens == 0
    assert other.spans.find(ids_from(0, 14), start=0, min_length=8) == []
    assert other.prompts.nearest(library.vectors.of(ids_from(0, 14)), 3) == []
    assert library.infos("b") == []
    with pytest.raises(NotFound, match=f"no donor '{donor.id}' in this namespace"):
        library.remove("b", donor.id)
    assert [info.id for info in library.infos("a")] == [donor.id]


def test_ids_of_donors_are_the_same_in_every_process() -> None:
    assert donor_id("n", ids_from(0, 3)) == "donor-ebe5aafb6f5cf43c5b41c4dd"
    names = {
        donor_id(space, ids) for space in ("a", "b") for ids in (ids_from(0, 3), ids_from(1, 3))
    }
    assert len(names) == 4


def test_the_same_prompt_again_stays_the_donor_it_is(library: DonorLibrary, pool: KVPool) -> None:
    ids = ids_from(0, 14)
    first = keep(library, pool, ids, pinned=True)
    pages = np.concatenate((first.pages[:3], pool.allocate(8)))
    longer = np.concatenate((ids[:12], ids_from(70, 8)))
    library.cache_prefix("n", longer, pages)  # a later request built on it
    used = pool.used_bytes
    assert keep(library, pool, ids) is first
    assert [info.pinned for info in library.infos("n")] == [True]
    assert pool.used_bytes == used
    assert len(library.namespace("n").prompts) == 1
    assert library.namespace("n").prefixes.match(longer).tokens == 20


def test_a_donors_history_grows(library: DonorLibrary, pool: KVPool) -> None:
    ids = ids_from(0, 4)
    one = np.array([1, 0, 2, 0], np.float32)
    for history, total in ((NO_HISTORY, []), (one, one), (NO_HISTORY, one), (one, one + one)):
        donor = keep(library, pool, ids, history=history)
        np.testing.assert_array_equal(donor.history, total)


def test_removing_gives_all_pages_back(library: DonorLibrary, pool: KVPool) -> None:
    donor = keep(library, pool, ids_from(0, 14))
    library.remove("n", donor.id)
    assert pool.free_pages == PAGES
    space = library.namespace("n")
    assert space.prefixes.match(ids_from(0, 14)).tokens == 0
    assert space.spans.find(ids_from(0, 14), start=0, min_length=8) == []
    assert space.prompts.nearest(library.vectors.of(ids_from(0, 14)), 3) == []
    with pytest.raises(NotFound):
        library.get("n", donor.id)


def test_removing_leaves_what_another_donor_shares(library: DonorLibrary, pool: KVPool) -> None:
    stem = ids_from(0, 8)
    first = keep(library, pool, np.concatenate((stem, ids_from(50, 4))))
    second = keep(library, pool, np.concatenate((stem, ids_from(60, 4))))
    library.remove("n", first.id)
    match = library.namespace("n").prefixes.match(second.ids)
    assert match.tokens == 12
    assert np.all(pool.references(match.pages) >= 1)
    library.remove("n", second.id)
    assert pool.free_pages == PAGES


def test_pages_in_use_outlive_their_donor(library: DonorLibrary, pool: KVPool) -> None:
    donor = keep(library, pool, ids_from(0, 14))
    read = donor.pages.copy()
    pool.share(read)  # a request reads it
    library.remove("n", donor.id)
    assert pool.free_pages == PAGES - 4
    pool.release(read)
    assert pool.free_pages == PAGES


def test_a_prompt_shorter_than_a_page_can_be_a_donor(library: DonorLibrary, pool: KVPool) -> None:
    donor = keep(library, pool, ids_from(0, 3))
    keep(library, pool, ids_from(7, 2))
    library.remove("n", donor.id)
    assert pool.free_pages == PAGES - 1


def test_clear_gives_back_donors_and_prefixes_of_one_namespace(
    library: DonorLibrary, pool: KVPool
) -> None:
    keep(library, pool, ids_from(0, 8), namespace="a", pinned=True)
    keep(library, pool, ids_from(0, 8), namespace="b")
    pages = pool.allocate(8)
    library.cache_prefix("a", ids_from(30, 8), pages)
    pool.release(pages)
    library.clear("a")
    assert pool.free_pages == PAGES - 2
    assert library.infos("a") == []
    assert len(library.infos("b")) == 1
    library.clear("never seen")


def test_cached_prefixes_go_before_donors_and_the_oldest_first(
    library: DonorLibrary, pool: KVPool
) -> None:
    old = keep(library, pool, ids_from(100, 8))
    for start in (0, 20):
        pages = pool.allocate(8)
        library.cache_prefix("n", ids_from(start, 8), pages)
        pool.release(pages)
    new = keep(library, pool, ids_from(200, 8))
    prefixes = library.namespace("n").prefixes
    prefixes.match(ids_from(0, 8))  # now the prefix from 20 is the oldest
    assert pool.free_pages == 4
    pool.allocate(6 * 4)
    assert prefixes.match(ids_from(20, 8)).tokens == 0
    assert prefixes.match(ids_from(0, 8)).tokens == 8
    pool.allocate(2 * 4)
    assert [info.id for info in library.infos("n")] == [old.id, new.id]
    library.touch("n", [old.id, "gone"])  # the other one is older now
    pool.allocate(2 * 4)
    assert [info.id for info in library.infos("n")] == [old.id]
    assert library.evicted_donors == 1


def test_pinned_donors_stay(library: DonorLibrary, pool: KVPool) -> None:
    pinned = keep(library, pool, ids_from(0, 16), pinned=True)
    keep(library, pool, ids_from(100, 16))
    pool.allocate(8 * 4)
    assert [info.id for info in library.infos("n")] == [pinned.id]
    assert library.namespace("n").prefixes.match(ids_from(0, 16)).tokens == 16


def test_nobody_goes_where_that_would_not_be_enough(library: DonorLibrary, pool: KVPool) -> None:
    keep(library, pool, ids_from(0, 16), pinned=True)
    keep(library, pool, ids_from(100, 16))
    pages = pool.allocate(8)
    library.cache_prefix("n", ids_from(200, 8), pages)
    pool.release(pages)
    with pytest.raises(PoolExhausted):
        pool.allocate(9 * 4)
    assert len(library.infos("n")) == 2
    assert library.namespace("n").prefixes.match(ids_from(200, 8)).tokens == 8


def test_a_namespace_that_holds_nothing_is_not_kept(library: DonorLibrary, pool: KVPool) -> None:
    donor = keep(library, pool, ids_from(0, 8), namespace="a")
    assert library.find("a") is not None
    library.remove("a", donor.id)
    assert library.names == []
    pages = pool.allocate(8)
    library.cache_prefix("b", ids_from(0, 8), pages)
    pool.release(pages)
    pool.release(pool.allocate(PAGES * 4))
    assert library.names == []
    assert library.find("b") is None


def test_what_can_never_fit_evicts_nobody(library: DonorLibrary, pool: KVPool) -> None:
    donor = keep(library, pool, ids_from(0, 16))
    with pytest.raises(PoolExhausted):
        pool.allocate((PAGES + 1) * 4)
    assert [info.id for info in library.infos("n")] == [donor.id]


def test_a_prefix_that_is_read_is_not_evicted(library: DonorLibrary, pool: KVPool) -> None:
    pages = pool.allocate(8)
    library.cache_prefix("n", ids_from(0, 8), pages)  # and its request still runs
    with pytest.raises(PoolExhausted):
        pool.allocate(11 * 4)
    assert library.namespace("n").prefixes.match(ids_from(0, 8)).tokens == 8


def test_a_prefix_that_is_read_in_part_gives_back_the_rest(
    library: DonorLibrary, pool: KVPool
) -> None:
    pages = pool.allocate(8)
    library.cache_prefix("n", ids_from(0, 8), pages)
    pool.release(pages[1:])  # a request still reads the first page
    with pytest.raises(PoolExhausted):
        pool.allocate(12 * 4)
    assert library.namespace("n").prefixes.match(ids_from(0, 8)).tokens == 8
    pool.release(pool.allocate(11 * 4))
    pool.release(pages[:1])
    assert pool.free_pages == PAGES


def test_a_pinned_donor_does_not_hold_what_continues_it(
    library: DonorLibrary, pool: KVPool
) -> None:
    """The donor's last page is full only of the sequence that was cached first."""
    pages = pool.allocate(5 * 4)
    library.cache_prefix("n", ids_from(0, 20), pages)
    library.add("n", ids_from(0, 6), pages, history=NO_HISTORY, pinned=True)
    pool.release(pages)
    keep(library, pool, ids_from(100, 16))
    pool.release(pool.allocate(10 * 4))  # all but the two pages of the pinned donor
    assert [info.pinned for info in library.infos("n")] == [True]


def test_what_fills_no_page_makes_no_namespace(library: DonorLibrary, pool: KVPool) -> None:
    pages = pool.allocate(3)
    library.cache_prefix("short", ids_from(0, 3), pages)
    assert library.names == []


def test_an_expired_donor_is_found_by_nobody_from_that_moment_on(pool: KVPool) -> None:
    clock = Clock(now=100.0)
    looks: list[Callable[[DonorLibrary, str], object]] = [
        lambda library, _: library.find("n"),
        lambda library, _: library.readable("n"),
        lambda library, _: library.readable("another"),
        lambda library, _: library.infos("n"),
        lambda library, _: library.usage("")[0],
        lambda library, _: library.holds("n", ids_from(0, 14)),
        lambda library, name: library.get("n", name),
        lambda library, name: library.get_readable("another", name),
    ]
    for look in looks:
        library = library_over(pool, clock)
        name = keep(library, pool, ids_from(0, 14), pinned=True, ttl_s=10.0).id
        library.publish("n", name)
        assert library.infos("n")[0].expires == clock.now + 10.0
        clock.now += 9.5
        assert look(library, name)
        clock.now += 0.5
        with suppress(NotFound):
            assert not look(library, name)
        assert pool.free_pages == PAGES
        assert library.expired_donors == 1


def test_what_has_expired_goes_before_anybody_is_evicted(pool: KVPool) -> None:
    library = library_over(pool, clock := Clock())
    old = keep(library, pool, ids_from(0, 8))
    keep(library, pool, ids_from(100, 8), ttl_s=1.0)
    clock.now += 1.0
    pool.release(pool.allocate(10 * 4))  # all but the older donor's two pages
    assert [info.id for info in library.infos("n")] == [old.id]
    assert library.evicted_donors == 0


def test_a_donor_may_expire_while_room_is_being_made(pool: KVPool) -> None:
    times = [0.0]
    library = library_over(pool, lambda: times.pop(0) if len(times) > 1 else times[0])
    keep(library, pool, ids_from(0, 8), ttl_s=1.0)
    times[:] = [0.5, 1.0]  # it is there at the first look, and not at the second
    pool.release(pool.allocate(PAGES * 4))
    assert library.infos("n") == []
    assert library.evicted_donors + library.expired_donors == 1


@pytest.mark.parametrize(
    ("first", "again", "expires"),
    [(10.0, 5.0, 110.0), (10.0, 20.0, 121.0), (10.0, None, None), (None, 5.0, None)],
)
def test_a_prompt_remembered_again_expires_when_the_later_of_both_does(
    pool: KVPool, first: float | None, again: float | None, expires: float | None
) -> None:
    library = library_over(pool, clock := Clock(now=100.0))
    keep(library, pool, ids_from(0, 8), ttl_s=first)
    clock.now = 101.0
    donor = keep(library, pool, ids_from(0, 8), ttl_s=again)
    assert donor.info.expires == expires
    assert (donor.info.created, donor.info.last_used) == (100.0, 101.0)


def test_an_update_changes_what_it_names_and_nothing_else(pool: KVPool) -> None:
    library = library_over(pool, Clock(now=100.0))
    name = keep(library, pool, ids_from(0, 8), pinned=True, ttl_s=10.0).id
    told = [
        library.update("n", name, **changes).info
        for changes in ({}, {"pinned": False}, {"ttl_s": 50.0}, {"ttl_s": None})
    ]
    assert [(info.pinned, info.expires) for info in told] == [
        (True, 110.0),
        (False, 110.0),
        (False, 150.0),
        (False, None),
    ]
    with pytest.raises(NotFound):
        library.update("another", name, pinned=True)


def test_usage_counts_the_namespaces_that_begin_alike(library: DonorLibrary, pool: KVPool) -> None:
    for name, tokens in (("a/x", 8), ("a/y", 5), ("ab/x", 4)):
        keep(library, pool, ids_from(0, tokens), namespace=name)
    page = 4 * pool.bytes_per_slot
    assert library.usage("a/") == (2, 4 * page)
    assert library.usage("ab/") == (1, page)
    assert library.usage("") == (3, 5 * page)
    assert library.usage("c/") == (0, 0)


def test_publishing_takes_no_page_and_reads_where_the_donor_is(
    library: DonorLibrary, pool: KVPool
) -> None:
    donor = keep(library, pool, ids_from(0, 14), namespace="a")
    used = pool.used_bytes
    assert library.publish("a", donor.id) is library.publish("a", donor.id) is donor
    assert pool.used_bytes == used
    (space,) = library.readable("b")
    match = space.prefixes.match(ids_from(0, 14))
    np.testing.assert_array_equal(pool.slots_of(match.pages), donor.slots[:12])
    assert library.readable("a") == [library.find("a"), space]
    assert library.get_readable("b", donor.id) is donor
    for look in (library.get, library.publish, library.remove):
        with pytest.raises(NotFound):
            look("b", donor.id)
    library.remove("a", donor.id)
    assert library.readable("b") == []
    assert pool.free_pages == PAGES


def test_using_a_published_donor_keeps_it_from_being_the_oldest(
    library: DonorLibrary, pool: KVPool
) -> None:
    published = keep(library, pool, ids_from(0, 16), namespace="a")
    library.publish("a", published.id)
    keep(library, pool, ids_from(100, 16), namespace="a")
    library.touch("b", [published.id])
    pool.release(pool.allocate(8 * 4))
    assert [info.id for info in library.infos("a")] == [published.id]


def test_what_is_published_whole_is_cached_by_nobody_else(
    library: DonorLibrary, pool: KVPool
) -> None:
    donor = keep(library, pool, ids_from(0, 8), namespace="a")
    library.publish("a", donor.id)
    library.cache_prefix("b", donor.ids, donor.pages)
    assert library.find("b") is None


def test_pages_that_two_namespaces_had_of_a_published_donor_are_freed(
    library: DonorLibrary, pool: KVPool
) -> None:
    donor = keep(library, pool, ids_from(0, 8), namespace="a")
    library.publish("a", donor.id)
    for name, start in (("b", 50), ("c", 60)):
        own = pool.allocate(4)
        ids = np.concatenate((donor.ids, ids_from(start, 4)))
        library.cache_prefix(name, ids, np.concatenate((donor.pages, own)))
        pool.release(own)
        library.namespace(name).prefixes.match(donor.ids)  # a node of just what both share
    library.remove("a", donor.id)
    assert pool.free_pages == PAGES - 4
    pool.release(pool.allocate(PAGES * 4))
    assert library.names == []


class Misshapen(HashEmbedder):
    def embed(self, ids: Ids) -> Vector:
        return super().embed(ids)[:-1]


def test_a_vector_of_the_wrong_shape_leaves_nothing_behind(pool: KVPool) -> None:
    library = DonorLibrary(pool, Misshapen(16), NoTraits)
    with pytest.raises(ValueError, match=r"shape \(15,\): its dim is 16"):
        keep(library, pool, ids_from(0, 6))
    assert library.infos("n") == []
    assert pool.used_bytes == 0


class FailsOnce(HashEmbedder):
    """An embedder whose first call fails, as a model out of memory would."""

    failed = False

    def embed(self, ids: Ids) -> Vector:
        if not self.failed:
            self.failed = True
            raise RuntimeError("no memory")
        return super().embed(ids)


def test_an_embedder_that_fails_leaves_nothing_half_kept(pool: KVPool) -> None:
    library = DonorLibrary(pool, FailsOnce(16), NoTraits)
    with pytest.raises(RuntimeError, match="no memory"):
        keep(library, pool, ids_from(0, 14))
    assert pool.free_pages == PAGES
    assert library.infos("n") == []
    donor = keep(library, pool, ids_from(0, 14))
    library.remove("n", donor.id)
    assert pool.free_pages == PAGES


def test_the_owner_of_a_prefix_is_the_first_donor_that_begins_with_it(
    library: DonorLibrary, pool: KVPool
) -> None:
    long = keep(library, pool, ids_from(0, 12))
    keep(library, pool, ids_from(0, 4))
    match = library.namespace("n").prefixes.match
    assert match(ids_from(0, 4)).node.owner == long.id
    library.remove("n", long.id)
    assert match(ids_from(0, 12)).tokens == 4


class LibraryMachine(RuleBasedStateMachine):
    """Donors, cached prefixes and readers come and go under pressure; every page is accounted."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = small_pool(PAGES)
        self.clock = Clock()
        self.library = library_over(self.pool, self.clock)
        self.readers: list[Pages] = []

    @rule(ids=prompts, namespace=spaces, pinned=st.booleans(), ttl_s=lifetimes)
    def keep(self, ids: Ids, namespace: str, pinned: bool, ttl_s: float | None) -> None:
        pinned = pinned and sum(d.pinned for d in self.donors()) < 2
        try:
            donor = keep(
                self.library, self.pool, ids, namespace=namespace, pinned=pinned, ttl_s=ttl_s
            )
        except PoolExhausted:
            return
        assert self.library.get(namespace, donor.id) is donor

    @rule(seconds=st.integers(1, 4))
    def wait(self, seconds: int) -> None:
        self.clock.now += seconds
        for name in spaces_of_machine:
            assert all(
                info.expires is None or info.expires > self.clock.now
                for info in self.library.infos(name)
            )

    @rule(namespace=spaces, data=st.data())
    def publish(self, namespace: str, data: st.DataObject) -> None:
        if infos := self.library.infos(namespace):
            self.library.publish(namespace, data.draw(st.sampled_from(infos)).id)

    @rule(namespace=spaces, pinned=st.sampled_from([None, False]), ttl_s=lifetimes, data=st.data())
    def update(
        self, namespace: str, pinned: bool | None, ttl_s: float | None, data: st.DataObject
    ) -> None:
        if infos := self.library.infos(namespace):
            name = data.draw(st.sampled_from(infos)).id
            self.library.update(namespace, name, pinned=pinned, ttl_s=ttl_s)

    @rule(ids=prompts, namespace=spaces)
    def serve_exactly(self, ids: Ids, namespace: str) -> None:
        """As a request: a prefix hit, the rest on own pages, all of it cached at the end."""
        match = max(
            (
                space.prefixes.match(ids, limit=len(ids) - 1)
                for space in (self.library.namespace(namespace), self.library.published)
            ),
            key=lambda found: found.tokens,
        )
        self.pool.share(match.pages)
        try:
            own = self.pool.allocate(len(ids) - match.tokens)
        except PoolExhausted:
            self.pool.release(match.pages)
            return
        self.library.cache_prefix(namespace, ids, np.concatenate((match.pages, own)))
        self.pool.release(match.pages)
        self.pool.release(own)

    @rule(namespace=spaces, data=st.data())
    def remove(self, namespace: str, data: st.DataObject) -> None:
        infos = self.library.infos(namespace)
        if infos:
            self.library.remove(namespace, data.draw(st.sampled_from(infos)).id)

    @rule(data=st.data())
    def read_a_donor(self, data: st.DataObject) -> None:
        if donors := self.donors():
            pages = data.draw(st.sampled_from(donors)).pages
            self.pool.share(pages)
            self.readers.append(pages)

    @precondition(lambda self: self.readers)
    @rule(data=st.data())
    def stop_reading(self, data: st.DataObject) -> None:
        self.pool.release(self.readers.pop(data.draw(st.integers(0, len(self.readers) - 1))))

    @rule(namespace=spaces)
    def clear(self, namespace: str) -> None:
        self.library.clear(namespace)

    @rule(n_slots=st.integers(1, 4 * PAGES))
    def need_room(self, n_slots: int) -> None:
        before = {d.id for d in self.donors()}
        kept = [d.pages for d in self.donors() if d.pinned]
        for donor in self.donors():
            if donor.pinned:
                ends = [end for end in (donor.node, donor.published_node) if end is not None]
                kept += [node.pages for end in ends for node in end.path()]
        needed = np.unique(np.concatenate([*self.readers, *kept, np.empty(0, np.int64)]))
        wanted = self.pool.pages_for(n_slots)
        try:
            self.pool.release(self.pool.allocate(n_slots))
        except PoolExhausted:
            assert wanted > PAGES - len(needed)
            assert {d.id for d in self.donors()} == before
        else:
            assert wanted <= PAGES - len(needed)
        assert {d.id for d in self.donors() if d.pinned} <= before

    def donors(self) -> list[Donor]:
        names = self.library.names
        return [d for name in names for d in self.library.namespace(name).donors.values()]

    def nodes(self) -> list[PrefixNode]:
        names = self.library.names
        spaces = [*map(self.library.namespace, names), self.library.published]
        return [node for space in spaces for node in space.prefixes.nodes()]

    @invariant()
    def every_reference_has_its_holder(self) -> None:
        expected = np.zeros(PAGES, dtype=int)
        for node in self.nodes():
            expected[node.pages] += 1
        for pages in (*self.readers, *(donor.pages for donor in self.donors())):
            expected[pages] += 1
        np.testing.assert_array_equal(self.pool.references(np.arange(PAGES)), expected)

    @invariant()
    def the_path_of_every_donor_is_locked_and_of_nobody_else(self) -> None:
        for name in self.library.names:
            space = self.library.namespace(name)
            expected: Counter[int] = Counter()
            for donor in space.donors.values():
                step: PrefixNode | None = donor.node
                while step is not None:
                    expected[id(step)] += 1
                    step = step.parent
            for node in space.prefixes.nodes():
                assert node.locks == expected[id(node)]
            assert len(space.prompts) == len(space.donors)

    @invariant()
    def what_is_published_is_found_by_all_and_nothing_else_is(self) -> None:
        space = self.library.published
        assert space.donors == {d.id: d for d in self.donors() if d.published}
        assert len(space.prompts) == len(space.donors)
        expected: Counter[int] = Counter()
        for donor in space.donors.values():
            assert donor.published_node is not None
            expected.update(id(node) for node in donor.published_node.path())
            whole = len(donor.ids) // self.pool.page_size * self.pool.page_size
            assert space.prefixes.match(donor.ids).tokens == whole
        nodes = space.prefixes.nodes()
        assert {id(node): node.locks for node in nodes} == expected


def test_every_page_is_accounted_for_whatever_happens() -> None:
    run_state_machine_as_test(LibraryMachine, settings=examples(60))
