"""Layouts by hand, and a sequence's own slots and references."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from properties import examples
from small_pools import small_pool

from semshare import PoolExhausted
from semshare.kv import sequence as module
from semshare.kv.pool import KVPool
from semshare.kv.sequence import (
    MAX_VIEWS,
    MIN_VIEW_TOKENS,
    ROOM_TOKENS,
    KVSequence,
    Layout,
    key_tree,
    lay_out,
)
from semshare.planning.plan import full_plan
from semshare.types import DeviationSchedule, ReusePlan, TokenSource

FRESH, PREFIX, SPAN, FUZZY = TokenSource

Run = tuple[TokenSource, int, int, int]  # source, tokens, donor position, slot


def plan_of(runs: Sequence[Run], candidates: Sequence[int] | None = None) -> ReusePlan:
    """A plan of runs one after another; fresh ones ignore position and slot."""
    source, position, slots = [], [], []
    for kind, n, donor_position, slot in runs:
        fresh = kind == FRESH
        source += [kind] * n
        position += [-1] * n if fresh else list(range(donor_position, donor_position + n))
        slots += [-1] * n if fresh else list(range(slot, slot + n))
    n = len(source)
    schedule = None
    if candidates is not None:
        schedule = DeviationSchedule((len(candidates),), np.array(candidates, dtype=np.int32))
    return ReusePlan(
        ids=np.zeros(n, np.int32),
        source=np.array(source, np.uint8),
        donor=np.where(np.array(source) == FRESH, -1, 0).astype(np.int32),
        position=np.array(position, np.int32),
        slots=np.array(slots, np.int64),
        donors=("d",),
        reasons=np.zeros(n, np.uint8),
        deviation=schedule,
    )


def views_of(layout: Layout) -> list[tuple[int, int, int, int]]:
    """(first position, tokens, slot, shift) of each view, checked to be contiguous."""
    for view in layout.views:
        np.testing.assert_array_equal(np.diff(view.positions), 1)
    return [(int(v.positions[0]), len(v), v.slot_start, v.shift) for v in layout.views]


def test_everything_fresh_is_all_own() -> None:
    layout = lay_out(plan_of([(FRESH, 5, 0, 0)]))
    assert layout.views == ()
    np.testing.assert_array_equal(layout.own, np.arange(5))
    assert len(layout.copied) == 0


def test_the_prefix_of_an_exact_plan_is_a_view_however_short() -> None:
    layout = lay_out(plan_of([(PREFIX, 4, 0, 40), (FRESH, 3, 0, 0)]))
    assert views_of(layout) == [(0, 4, 40, 0)]
    np.testing.assert_array_equal(layout.own, [4, 5, 6])
    assert len(layout.copied) == 0


def test_compressed_tokens_are_copied_however_long_their_run_is() -> None:
    n = MIN_VIEW_TOKENS
    plan = plan_of([(SPAN, n, 9, 40), (FRESH, 3, 0, 0), (SPAN, n, 9, 1000), (FRESH, 1, 0, 0)])
    layout = lay_out(plan, n_slots=1000)
    assert views_of(layout) == [(0, n, 40, -9)]
    np.testing.assert_array_equal(layout.copied, np.arange(n + 3, 2 * n + 3))
    np.testing.assert_array_equal(layout.copied_slots, np.arange(1000, 1000 + n))
    assert len(lay_out(plan, n_slots=1000 + n).views) == 2
    # The pool's last slot and the first compressed token are neighbours by number alone.
    across = plan_of([(SPAN, n, 9, 990), (FRESH, 1, 0, 0)])
    assert lay_out(across, n_slots=1000).views == ()


def test_a_short_prefix_beside_approximate_kv_is_copied() -> None:
    layout = lay_out(plan_of([(PREFIX, 4, 0, 40), (SPAN, 1, 9, 60), (FRESH, 3, 0, 0)]))
    assert layout.views == ()
    np.testing.assert_array_equal(layout.copied_slots, [40, 41, 42, 43, 60])
    np.testing.assert_array_equal(layout.copied_shift, [0, 0, 0, 0, -5])


def test_a_prefix_on_two_page_runs_is_two_views() -> None:
    layout = lay_out(plan_of([(PREFIX, 4, 0, 40), (PREFIX, 4, 4, 8), (FRESH, 1, 0, 0)]))
    assert views_of(layout) == [(0, 4, 40, 0), (4, 4, 8, 0)]


@pytest.mark.parametrize(
    ("tokens", "is_view"), [(MIN_VIEW_TOKENS, True), (MIN_VIEW_TOKENS - 1, False)]
)
def test_a_span_is_a_view_from_the_minimum_on(tokens: int, is_view: bool) -> None:
    layout = lay_out(plan_of([(FRESH, 3, 0, 0), (SPAN, tokens, 10, 100), (FRESH, 2, 0, 0)]))
    if is_view:
        assert views_of(layout) == [(3, tokens, 100, -7)]
        np.testing.assert_array_equal(layout.own, [0, 1, 2, tokens + 3, tokens + 4])
        assert len(layout.copied) == 0
    else:
        assert layout.views == ()
        np.testing.assert_array_equal(layout.own, np.arange(tokens + 5))
        np.testing.assert_array_equal(layout.copied, np.arange(3, tokens + 3))
        np.testing.assert_array_equal(layout.copied_slots, np.arange(100, 100 + tokens))
        np.testing.assert_array_equal(layout.copied_shift, np.full(tokens, -7))


def test_a_change_of_shift_or_a_gap_in_slots_ends_a_view() -> None:
    n = MIN_VIEW_TOKENS
    layout = lay_out(
        plan_of(
            [
                (SPAN, n, 50, 200),
                (SPAN, n, 60 + n, 200 + n),
                (SPAN, n, 60 + 2 * n, 900),
                (FRESH, 1, 0, 0),
            ]
        )
    )
    assert views_of(layout) == [(0, n, 200, -50), (n, n, 200 + n, -60), (2 * n, n, 900, -60)]


def test_fuzzy_tokens_are_copied_each_with_its_own_shift() -> None:
    layout = lay_out(
        plan_of([(FUZZY, 1, 7, 30), (FUZZY, 1, 3, 26), (FUZZY, 1, 7, 30), (FRESH, 1, 0, 0)])
    )
    np.testing.assert_array_equal(layout.copied, [0, 1, 2])
    np.testing.assert_array_equal(layout.copied_slots, [30, 26, 30])
    np.testing.assert_array_equal(layout.copied_shift, [-7, -2, -5])


def test_no_more_than_the_longest_few_runs_are_views() -> None:
    runs: list[Run] = []
    for i in range(MAX_VIEWS + 2):
        runs += [(SPAN, MIN_VIEW_TOKENS + i, 1000, 10_000 * i), (FRESH, 1, 0, 0)]
    layout = lay_out(plan_of(runs))
    assert len(layout.views) == MAX_VIEWS
    assert min(len(view) for view in layout.views) == MIN_VIEW_TOKENS + 2
    assert [int(v.positions[0]) for v in layout.views] == sorted(
        int(v.positions[0]) for v in layout.views
    )
    assert len(layout.copied) == 2 * MIN_VIEW_TOKENS + 1


def test_deviation_candidates_are_copied_and_never_viewed() -> None:
    n = 2 * MIN_VIEW_TOKENS
    runs = [(FRESH, 2, 0, 0), (SPAN, n + 1 + n, 10, 100), (FRESH, 1, 0, 0)]
    middle = 2 + n
    layout = lay_out(plan_of(runs, candidates=[middle]))
    assert views_of(layout) == [(2, n, 100, -8), (middle + 1, n, 100 + n + 1, -8)]
    np.testing.assert_array_equal(layout.copied, [middle])
    np.testing.assert_array_equal(layout.copied_slots, [100 + n])


def test_a_view_may_start_at_the_pools_first_slot_after_a_fresh_token() -> None:
    layout = lay_out(plan_of([(FRESH, 1, 0, 0), (SPAN, MIN_VIEW_TOKENS, 1, 0), (FRESH, 1, 0, 0)]))
    assert views_of(layout) == [(1, MIN_VIEW_TOKENS, 0, 0)]


any_runs = st.lists(
    st.tuples(
        st.sampled_from([FRESH, SPAN, FUZZY]),
        st.integers(1, 9),
        st.integers(0, 60),
        st.integers(0, 60),
    ),
    min_size=1,
    max_size=12,
)


@examples(150)
@given(any_runs, st.integers(0, 3), st.data())
def test_every_token_is_viewed_or_own_exactly_once(
    runs: list[Run], prefix_pages: int, data: st.DataObject
) -> None:
    prefix: list[Run] = [(PREFIX, 4 * prefix_pages, 0, 100)] if prefix_pages else []
    plain = plan_of([*prefix, *runs])
    reused = np.flatnonzero(plain.source > PREFIX).tolist()
    candidates = data.draw(
        st.lists(st.sampled_from(reused), unique=True) if reused else st.just([])
    )
    plan = plan_of([*prefix, *runs], sorted(candidates) or None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "MIN_VIEW_TOKENS", data.draw(st.integers(1, 6)))
        patch.setattr(module, "MAX_VIEWS", data.draw(st.integers(1, 4)))
        layout = lay_out(plan)
    viewed = np.concatenate([v.positions for v in layout.views] or [np.empty(0, np.int64)])
    np.testing.assert_array_equal(
        np.sort(np.concatenate((viewed, layout.own))), np.arange(len(plan.ids))
    )
    for view in layout.views:
        np.testing.assert_array_equal(
            plan.slots[view.positions], view.slot_start + np.arange(len(view))
        )
        np.testing.assert_array_equal(view.positions - plan.position[view.positions], view.shift)
    assert not np.isin(viewed, candidates).any()
    if plan.is_exact:
        assert np.isin(np.flatnonzero(plan.source == PREFIX), viewed).all()
    expected_copies = np.setdiff1d(np.flatnonzero(plan.source != FRESH), viewed)
    np.testing.assert_array_equal(layout.copied, expected_copies)
    np.testing.assert_array_equal(layout.copied_slots, plan.slots[layout.copied])
    np.testing.assert_array_equal(layout.copied_shift, layout.copied - plan.position[layout.copied])


def test_slots_for_an_answer_come_in_portions() -> None:
    pool = small_pool(400)
    sequence = KVSequence(
        pool, lay_out(full_plan(np.arange(8))), np.empty(0, np.int64), room=ROOM_TOKENS + 20
    )
    assert pool.free_pages == 400 - pool.pages_for(8 + ROOM_TOKENS)
    sequence.append(ROOM_TOKENS)
    assert pool.free_pages == 400 - pool.pages_for(8 + ROOM_TOKENS)
    for _ in range(20):
        sequence.append(1)
    assert pool.free_pages == 400 - pool.pages_for(8 + ROOM_TOKENS) - pool.pages_for(20)
    assert (np.diff(sequence.key_table().slots) == 1).all()
    sequence.release()
    assert pool.free_pages == 400


def test_a_sequence_holds_what_it_reads_until_released() -> None:
    pool = small_pool(8)
    donor = pool.allocate(8)
    plan = plan_of([(PREFIX, 8, 0, int(donor[0]) * 4), (FRESH, 3, 0, 0)])
    sequence = KVSequence(pool, lay_out(plan), donor, room=2)
    assert sequence.length == 11
    np.testing.assert_array_equal(pool.references(donor), [2, 2])
    assert pool.free_pages == 4  # three tokens and room for two
    pool.release(donor)  # the donor is forgotten meanwhile
    assert np.all(pool.references(donor) == 1)
    sequence.release()
    assert pool.free_pages == 8
    sequence.release()
    assert pool.free_pages == 8


def test_own_slots_and_segments_on_pages_apart() -> None:
    pool = small_pool(6)
    pool.allocate(24)
    pool.release(np.array([1, 3, 4]))
    plan = plan_of([(FRESH, 2, 0, 0), (SPAN, MIN_VIEW_TOKENS, 0, 0), (FRESH, 5, 0, 0)])
    sequence = KVSequence(pool, lay_out(plan), np.empty(0, np.int64), room=1)
    assert pool.references(np.array([3, 4])).tolist() == [1, 1]
    appended = sequence.append(1)
    assert appended.tolist() == [MIN_VIEW_TOKENS + 7]
    np.testing.assert_array_equal(
        sequence.own_slots(np.array([0, 1, MIN_VIEW_TOKENS + 2])), [12, 13, 14]
    )
    np.testing.assert_array_equal(sequence.own_slots(appended), [19])
    more = sequence.append(2)  # outgrows its room: page 1 is the last free one
    np.testing.assert_array_equal(sequence.own_slots(more), [4, 5])
    table = sequence.key_table()
    slots = [12, 13, *range(MIN_VIEW_TOKENS), *range(14, 20), 4, 5]
    np.testing.assert_array_equal(table.slots, slots)
    np.testing.assert_array_equal(table.positions, np.arange(MIN_VIEW_TOKENS + 10))
    np.testing.assert_array_equal(table.shifts, [0, 0] + [2] * MIN_VIEW_TOKENS + [0] * 8)
    assert sequence.length == MIN_VIEW_TOKENS + 10
    with pytest.raises(PoolExhausted):
        sequence.append(3)
    sequence.release()
    assert pool.free_pages == 3


def test_a_sequence_that_does_not_fit_takes_nothing() -> None:
    pool = small_pool(4)
    donor = pool.allocate(8)
    plan = plan_of([(PREFIX, 8, 0, int(donor[0]) * 4), (FRESH, 9, 0, 0)])
    with pytest.raises(PoolExhausted):
        KVSequence(pool, lay_out(plan), donor, room=0)
    np.testing.assert_array_equal(pool.references(donor), [1, 1])
    assert pool.free_pages == 2


# ------------------------------------------------------- forks, adoption, spare pages

NOTHING = np.empty(0, np.int64)


def fresh(pool: KVPool, n: int, *, room: int = 0) -> KVSequence:
    """A sequence of `n` tokens of its own."""
    return KVSequence(pool, lay_out(full_plan(np.arange(n))), NOTHING, room=room)


def test_a_fork_reads_its_origins_tokens_and_writes_its_own() -> None:
    pool = small_pool(10)
    origin = fresh(pool, 6, room=2)  # slots 0 to 7
    fork = origin.fork(room=3)  # slots 8 to 11
    assert pool.free_pages == 10 - 3
    assert fork.length == 6
    np.testing.assert_array_equal(fork.append(2), [6, 7])
    origin.append(2)
    np.testing.assert_array_equal(fork.key_table().slots, [0, 1, 2, 3, 4, 5, 8, 9])
    np.testing.assert_array_equal(origin.key_table().slots, np.arange(8))
    with pytest.raises(AssertionError, match="own slots"):
        fork.own_slots(np.array([5]))
    origin.release()
    assert pool.free_pages == 10 - 3, "the fork holds what it reads"
    fork.release()
    assert pool.free_pages == 10


def test_a_fork_that_does_not_fit_takes_nothing() -> None:
    pool = small_pool(2)
    origin = fresh(pool, 8)
    with pytest.raises(PoolExhausted):
        origin.fork(room=1)
    np.testing.assert_array_equal(pool.references(np.arange(2)), [1, 1])


def test_adopted_tokens_are_read_as_their_source_reads_them() -> None:
    pool = small_pool(80)
    donor = pool.allocate(MIN_VIEW_TOKENS)  # slots 0 to 127
    plan = plan_of([(FRESH, 4, 0, 0), (SPAN, MIN_VIEW_TOKENS, 0, 0), (FRESH, 4, 0, 0)])
    n = MIN_VIEW_TOKENS + 8
    mixed = KVSequence(pool, lay_out(plan), donor, room=4)
    exact = fresh(pool, n)
    mixed.append(1)
    answer = mixed.own_slots(np.array([n]))
    mixed.adopt(exact, 0, 50)
    expected = exact.key_table().slots
    table = mixed.key_table()
    np.testing.assert_array_equal(table.slots[:50], expected[:50])
    np.testing.assert_array_equal(table.slots[50 : n - 4], np.arange(46, MIN_VIEW_TOKENS))
    np.testing.assert_array_equal(table.shifts, [0] * 50 + [4] * (n - 54) + [0] * 5)
    mixed.adopt(exact, 50, n)
    np.testing.assert_array_equal(mixed.key_table().slots, np.append(expected, answer))
    assert not mixed.key_table().shifts.any()
    slots, positions = mixed.own
    assert (slots.tolist(), positions.tolist()) == (answer.tolist(), [n])
    tree = key_tree([mixed, exact])
    assert tree.n_nodes == 2, "what both read is one node, the answer's token another"
    exact.release()
    assert (pool.references(pool.pages_of(expected)) > 0).all()
    mixed.release()
    pool.release(donor)
    assert pool.free_pages == 80


def test_spare_pages_are_given_back_but_the_one_that_is_begun() -> None:
    pool = small_pool(10)
    sequence = fresh(pool, 6, room=14)  # five pages, of which one and a half are written
    assert sequence.give_back_spare() == 3
    assert sequence.give_back_spare() == 0
    assert pool.free_pages == 8
    np.testing.assert_array_equal(sequence.own_slots(sequence.append(2)), [6, 7])
    sequence.append(1)
    assert pool.free_pages < 8, "it asks for slots again"
    sequence.release()
    sequence.release()
    assert pool.free_pages == 10


def test_pages_in_order_end_where_another_page_follows() -> None:
    pool = small_pool(8)
    origin = fresh(pool, 6)  # pages 0 and 1
    np.testing.assert_array_equal(origin.pages_in_order(6), [0, 1])
    np.testing.assert_array_equal(origin.pages_in_order(4), [0])
    fork = origin.fork(room=4)  # page 2 goes on from the middle of page 1
    fork.append(4)
    np.testing.assert_array_equal(fork.pages_in_order(6), [0, 1])
    np.testing.assert_array_equal(fork.pages_in_order(7), [0])
    np.testing.assert_array_equal(fork.pages_in_order(10), [0])


@dataclass
class Listed:
    """A sequence as a plain list of (slot, shift)."""

    sequence: KVSequence
    tokens: list[tuple[int, int]]


@examples(80)
@given(st.data())
def test_any_history_reads_what_a_plain_list_says(data: st.DataObject) -> None:
    pool = small_pool(data.draw(st.sampled_from([6, 12, 60])))
    live: list[Listed] = []

    def begin() -> None:
        n = data.draw(st.integers(1, 12))
        sequence = fresh(pool, n, room=data.draw(st.integers(0, 20)))
        own = sequence.own_slots(np.arange(n)).tolist()
        live.append(Listed(sequence, [(slot, 0) for slot in own]))

    def fork() -> None:
        of = data.draw(st.sampled_from(live))
        forked = of.sequence.fork(room=data.draw(st.integers(0, 9)))
        live.append(Listed(forked, list(of.tokens)))

    def append() -> None:
        to = data.draw(st.sampled_from(live))
        at = to.sequence.append(data.draw(st.integers(1, 5)))
        assert at[0] == len(to.tokens)
        to.tokens += [(slot, 0) for slot in to.sequence.own_slots(at).tolist()]

    def adopt() -> None:
        to, source = (data.draw(st.sampled_from(live)) for _ in range(2))
        stop = data.draw(st.integers(0, min(len(to.tokens), len(source.tokens))))
        start = data.draw(st.integers(0, stop))
        to.sequence.adopt(source.sequence, start, stop)
        to.tokens[start:stop] = source.tokens[start:stop]

    def give_back() -> None:
        free = pool.free_pages
        given = data.draw(st.sampled_from(live)).sequence.give_back_spare()
        assert pool.free_pages == free + given

    def release() -> None:
        gone = live.pop(data.draw(st.integers(0, len(live) - 1)))
        gone.sequence.release()
        gone.sequence.release()

    for _ in range(data.draw(st.integers(1, 25))):
        act = data.draw(st.sampled_from([begin, fork, append, append, adopt, give_back, release]))
        free = pool.free_pages
        if act is begin or live:
            try:
                act()
            except PoolExhausted:
                assert pool.free_pages == free, "who does not fit takes nothing"
        for one in live:
            table = one.sequence.key_table()
            read = list(zip(table.slots.tolist(), table.shifts.tolist(), strict=True))
            assert read == one.tokens
            assert (pool.references(pool.pages_of(table.slots)) > 0).all()
            segments = [
                (at, slot, segment.shift)
                for segment in one.sequence.segments
                for at, slot in zip(segment.positions.tolist(), segment.slots.tolist(), strict=True)
            ]
            assert sorted(segments) == [(at, *token) for at, token in enumerate(one.tokens)]
            check_pages_in_order(one, pool)
        check_tree(live)
    for one in live:
        one.sequence.release()
    assert pool.free_pages == pool.n_pages


def check_pages_in_order(one: Listed, pool: KVPool) -> None:
    """Page after page holds the first tokens; the next page would not, or there is none."""
    size, n = pool.page_size, len(one.tokens)
    slots = [slot for slot, _ in one.tokens]
    expected: list[int] = []
    for start in range(0, n, size):
        page = slots[start : start + size]
        first = page[0]
        if first % size or page != list(range(first, first + len(page))):
            break
        expected.append(first // size)
    assert one.sequence.pages_in_order(n).tolist() == expected


def check_tree(live: Sequence[Listed]) -> None:
    """Its nodes give each sequence what its list says, and no key is in two nodes."""
    if not live:
        return
    tree = key_tree([one.sequence for one in live])
    assert len(np.unique(tree.slots)) == len(tree.slots)
    for one, path, shifts in zip(live, tree.paths, tree.shifts, strict=True):
        read = []
        for node, shift in zip(path.tolist(), shifts.tolist(), strict=True):
            keys = slice(tree.node_start[node], tree.node_start[node + 1])
            at = tree.stored_at[keys] + shift
            read += list(
                zip(at.tolist(), tree.slots[keys].tolist(), [shift] * len(at), strict=True)
            )
        assert sorted(read) == [(at, *token) for at, token in enumerate(one.tokens)]
