"""Who holds the pool, in pages counted by hand."""

from __future__ import annotations

import pytest
from tiny import tiny_engine

from semshare import ReusePolicy
from semshare.errors import NotFound
from semshare.types import NamespaceUse

PAGE = 16  # slots
EXACT = ReusePolicy(mode="prefix", remember=False)


def test_every_page_has_one_holder() -> None:
    engine = tiny_engine(page_size=PAGE)
    page_bytes = PAGE * engine.pool.bytes_per_slot
    budget = engine.pool.n_pages * page_bytes
    engine.remember("a" * 40, namespace="x")  # 3 pages, of which the first 2 are whole
    engine.remember("a" * 32 + "b" * 16, namespace="x")  # shares 2 whole pages, adds 1
    engine.remember("c" * 16, namespace="y")
    engine.generate("d" * 33, policy=EXACT, max_tokens=1, namespace="y")  # caches 2 whole pages
    found = engine.pool_use()
    assert found.namespaces == {
        "x": NamespaceUse(donors=2, donor_bytes=4 * page_bytes, prefix_bytes=0),
        "y": NamespaceUse(donors=1, donor_bytes=page_bytes, prefix_bytes=2 * page_bytes),
    }
    assert found.running_bytes == 0
    assert found.free_bytes == budget - 7 * page_bytes
    assert found.donors_evicted == 0


def test_what_runs_holds_the_rest() -> None:
    engine = tiny_engine(page_size=PAGE)
    budget = engine.pool.n_slots * engine.pool.bytes_per_slot
    answer = engine.stream("e" * 20, policy=EXACT, max_tokens=8)
    next(answer)
    during = engine.pool_use()
    assert during.running_bytes > 0
    kept = sum(use.donor_bytes + use.prefix_bytes for use in during.namespaces.values())
    assert during.running_bytes + during.free_bytes + kept == budget
    answer.close()
    assert engine.pool_use().running_bytes == 0


def test_a_donors_ids_are_its_namespaces_own() -> None:
    engine = tiny_engine()
    donor = engine.remember("some text", namespace="x")
    assert engine.donor_ids(donor.id, namespace="x").tolist() == engine.encode("some text").tolist()
    with pytest.raises(NotFound, match="in this namespace"):
        engine.donor_ids(donor.id, namespace="y")
