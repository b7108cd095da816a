"""What must hold of an engine's KV between any two steps, and of what it keeps at the end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from running import PAGE, pool_for

from semshare import SemShare
from semshare.donors.namespace import Namespace
from semshare.donors.prefix_tree import PrefixNode
from semshare.engine.executor import Executor
from semshare.engine.generation import Generation
from semshare.engine.rows import DecodeRows, PromptRows, Rows
from semshare.kv.sequence import KVSequence, lay_out
from semshare.planning.plan import full_plan
from semshare.types import STORED, Ids, Slots

LIMIT = 1e-4  # max abs difference of float32 KV and logits


def assert_consistent(engine: SemShare) -> None:
    """Between two steps every page is held by those who may hold it, and by nobody else."""
    scheduler, pool = engine._session.scheduler, engine.pool
    assert pool.used_bytes <= engine.config.kv_budget_bytes
    for waiting in scheduler._admission.waiting:
        assert not any(one._held for one in sequences_of(waiting)), "who waits holds slots"
    active = scheduler.active
    assert len({id(one) for one in active}) == len(active)
    assert not any(one.ended for one in active), "an ended request is still there"
    for one in scheduler._running:
        assert one.going_on, "nothing would ever end this request"
    live = [sequence for one in active for sequence in sequences_of(one) if sequence._held]
    expected = np.zeros(pool.n_pages, dtype=int)
    for pages in kept_pages(engine):
        expected[pages] += 1
    for sequence in live:
        for pages in sequence._held:
            np.add.at(expected, pages, 1)
    np.testing.assert_array_equal(pool.references(np.arange(pool.n_pages)), expected)
    assert_nobody_writes_what_another_reads(engine, live)
    for space in spaces(engine):
        assert_locked_by_its_donors(space)
    assert_published_is_what_it_says(engine)
    assert_residency_is_what_it_says(engine)


def sequences_of(generation: Generation) -> list[KVSequence]:
    """All sequences of a request, each once."""
    found = [one.sequence for one in generation.continuations]
    if generation.repair is not None:
        found.append(generation.repair.sequence)
    if generation.served is not None:
        found.append(generation.served.sequence)
    return list({id(sequence): sequence for sequence in found}.values())


def spaces(engine: SemShare) -> list[Namespace]:
    """All namespaces that hold anything."""
    return [engine.library.namespace(name) for name in engine.library.names]


def kept_pages(engine: SemShare) -> Iterator[np.ndarray]:
    """Pages of each tree node, of each donor, and of what moves between pool and storage."""
    for space in spaces(engine):
        yield from (node.pages for node in space.prefixes.nodes())
        yield from (donor.pages for donor in space.donors.values())
    yield from (node.pages for node in engine.library.published.prefixes.nodes())
    yield from (one.pages for one in (*engine.pool.arrivals, *engine.pool.departures))


def assert_nobody_writes_what_another_reads(engine: SemShare, live: Sequence[KVSequence]) -> None:
    """Slots that are written later have one owner, who alone reads them."""
    pool = engine.pool
    owners, spare = np.zeros(pool.n_slots, int), np.zeros(pool.n_slots, np.bool_)
    for sequence in live:
        held = np.concatenate(sequence._held)
        read = sequence.key_table().slots
        assert np.isin(pool.pages_of(read), held).all(), "it reads what it does not hold"
        assert np.isin(pool.pages_of(sequence._spare), held).all()
        mine = np.concatenate((sequence.own[0], sequence._spare))
        assert len(np.unique(mine)) == len(mine)
        owners[mine] += 1
        spare[sequence._spare] = True
    assert owners.max(initial=0) <= 1, "two sequences may write the same slot"
    for sequence in live:
        assert not spare[sequence.key_table().slots].any(), "it reads what nobody has written"
    for space in spaces(engine):
        for node in space.prefixes.nodes():
            assert not spare[pool.slots_of(node.pages)].any(), "a cached prefix will be written"
        for donor in space.donors.values():
            plain = (donor.slots >= 0) & (donor.slots < pool.n_slots)  # others are compressed
            assert not spare[donor.slots[plain]].any(), "a donor will be written"


def assert_locked_by_its_donors(space: Namespace) -> None:
    """A node is locked once for each donor at it or below it."""
    nodes = space.prefixes.nodes()
    expected = {id(node): 0 for node in nodes}
    for donor in space.donors.values():
        for node in path_of(donor.node):
            expected[id(node)] += 1
    assert {id(node): node.locks for node in nodes} == expected


def path_of(node: PrefixNode | None) -> Iterator[PrefixNode]:
    return iter(()) if node is None else node.path()


def assert_residency_is_what_it_says(engine: SemShare) -> None:
    """A donor holds the pages of the slots that it names; one below the pool is found there."""
    residency = engine.library.residency
    holders = set(residency.holders)
    donors = [donor for space in spaces(engine) for donor in space.donors.values()]
    assert holders <= set(donors), "who is no donor any more holds pages"
    assert residency._below <= {donor.id for donor in donors}
    published = engine.library.published
    assert set(published.stored_prefixes._ids) <= set(published.donors)
    for space in spaces(engine):
        for donor in space.donors.values():
            assert (donor in holders) == (len(donor.pages) > 0)
            in_pool = engine.pool.pages_of(donor.slots[donor.slots != STORED])
            np.testing.assert_array_equal(in_pool, np.sort(donor.pages))
            if not donor.is_whole:
                assert donor.stored is not None, "its KV is nowhere"
                exact = donor.stored.coding == "full"
                assert (donor.id in space.stored_prefixes) == exact
            if donor.node is not None:
                assert donor.is_whole
                assert donor.id not in space.stored_prefixes
        assert set(space.stored_prefixes._ids) <= set(space.donors)


def assert_published_is_what_it_says(engine: SemShare) -> None:
    """The published space holds the published donors of all namespaces, and nothing else."""
    published = engine.library.published
    donors = [donor for space in spaces(engine) for donor in space.donors.values()]
    assert published.donors == {donor.id: donor for donor in donors if donor.published}
    nodes = published.prefixes.nodes()
    expected = {id(node): 0 for node in nodes}
    for donor in published.donors.values():
        for node in path_of(donor.published_node):
            expected[id(node)] += 1
    assert {id(node): node.locks for node in nodes} == expected
    assert 0 not in expected.values(), "something is published that is no donor's"


def assert_may_run(several: Sequence[Rows]) -> None:
    """Rows write slots that their sequence still holds, and no other rows of the pass read."""
    written: list[tuple[KVSequence, Slots]] = []
    for rows in several:
        assert isinstance(rows, PromptRows | DecodeRows)
        if isinstance(rows, PromptRows):
            written.append((rows.sequence, rows.sequence.own_slots(rows.positions)))
        else:
            written += [
                (sequence, sequence.own_slots(rows.positions[index : index + 1]))
                for index, sequence in enumerate(rows.sequences)
            ]
    pool = written[0][0].pool
    writer = np.full(pool.n_slots, -1)
    for index, (sequence, slots) in enumerate(written):
        assert sequence._held, "its slots were given back"
        is_held = np.zeros(pool.n_pages, np.bool_)
        is_held[np.concatenate(sequence._held)] = True
        assert is_held[slots // pool.page_size].all(), "its slots were given back"
        assert (writer[slots] == -1).all(), "two rows write the same slot"
        writer[slots] = index
    for index, (sequence, _) in enumerate(written):
        assert np.isin(writer[sequence.key_table().slots], (-1, index)).all()


def assert_nothing_is_held(engine: SemShare) -> None:
    """No request is left, and all pages in use are a donor's or a cached prefix's."""
    assert engine._session.scheduler.active == []
    assert engine._session.scheduler.waiting == 0
    assert_consistent(engine)


@torch.inference_mode()
def kv_by_full_prefill(engine: SemShare, ids: Ids) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """For each layer the keys and values `[n, kv_heads, d]` of `ids`, computed elsewhere."""
    pool = pool_for(engine.model, 2 + 3 * len(ids) // PAGE)
    sequence = KVSequence(pool, lay_out(full_plan(ids)), np.empty(0, np.int64), room=0)
    at = np.arange(len(ids))
    Executor(engine.model, pool).forward(sequence, ids, at)
    slots = torch.from_numpy(sequence.own_slots(at))
    return [(k[slots], v[slots]) for k, v in zip(pool.keys, pool.values, strict=True)]


def assert_exact(engine: SemShare, ids: Ids, slots: Slots) -> None:
    """The KV at `slots` is what a full prefill of `ids` makes."""
    at = torch.from_numpy(slots)
    for index, (keys, values) in enumerate(kv_by_full_prefill(engine, ids)):
        for kept, expected in ((engine.pool.keys, keys), (engine.pool.values, values)):
            assert float((kept[index][at] - expected).abs().max()) <= LIMIT


def assert_all_that_is_kept_is_exact(engine: SemShare) -> None:
    """Walk every prefix tree and every donor, and account for every page."""
    assert_nothing_is_held(engine)
    for space in (*spaces(engine), engine.library.published):
        for node in space.prefixes.nodes():
            if not node.children:
                path: list[PrefixNode] = list(node.path())[::-1]
                pages = np.concatenate([step.pages for step in path])
                assert_exact(
                    engine, np.concatenate([step.ids for step in path]), engine.pool.slots_of(pages)
                )
        for donor in space.donors.values():
            assert_exact(engine, donor.ids, donor.slots)
