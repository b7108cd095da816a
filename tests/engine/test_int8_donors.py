"""Donors kept in int8: what they take, what they cost, and that nothing else changes."""

from __future__ import annotations

from unittest import mock

import numpy as np
import pytest
import torch
from prompts import answerable, reworded, words
from tiny import FAMILIES, tiny_engine

from semshare import InvalidRequest, PoolExhausted, ReusePolicy, SemShare, TokenSource
from semshare.kv.codec import Int8Codec

EXACT_LIMIT = 1e-4  # max abs difference of float32 logits
STEM = words(400, 1)
DONOR = words(30, 2) + STEM
MOVED = answerable(words(50, 3) + STEM)
SPAN = ReusePolicy(mode="span")
OFF = ReusePolicy(mode="off")
# Of 2 heads of 16 numbers in float32, a token takes 128 bytes a layer, of keys or of values; in
# int8 it takes 32 and two scales: 56 tokens in a page of 16 slots.
INT8_PER_PAGE = 56


def page_bytes(engine: SemShare) -> int:
    return engine.pool.page_size * engine.pool.bytes_per_slot


def engines(family: str = "llama") -> tuple[SemShare, SemShare]:
    """The same model with donors in full and in int8."""
    return tiny_engine(family), tiny_engine(family, donor_format="int8")


@pytest.mark.parametrize("family", FAMILIES)
def test_an_int8_donor_gives_nearly_the_logits_of_a_full_one(family: str) -> None:
    full, int8 = engines(family)
    for engine in (full, int8):
        engine.remember(DONOR)
    expected = full.score(MOVED, "hello", policy=SPAN)
    score = int8.score(MOVED, "hello", policy=SPAN)
    np.testing.assert_array_equal(score.provenance.source, expected.provenance.source)
    assert score.provenance.donors == expected.provenance.donors
    assert score.provenance.counts["span"] > 350
    assert not score.provenance.exact
    moved_by_int8 = float((score.logits - expected.logits).abs().max())
    by_reuse = float((expected.logits - full.score(MOVED, "hello", policy=OFF).logits).abs().max())
    assert 0 < moved_by_int8 < 0.1 * max(by_reuse, 1.0)


def test_what_is_loaded_is_what_the_codec_gives_back_at_the_new_position() -> None:
    full, int8 = engines()
    for engine in (full, int8):
        engine.remember(DONOR)
    donor = int8.library.get("default", int8.donors()[0].id)
    exact = full.library.get("default", full.donors()[0].id)
    codec = Int8Codec(2, 16)
    assert int8._session.executor._compressed is not None
    for layer in range(4):
        keys, values = int8._session.executor._compressed.read(layer, torch.from_numpy(donor.slots))
        for got, pool in ((keys, full.pool.keys), (values, full.pool.values)):
            stored = codec.decode(codec.encode(pool[layer][exact.slots]), torch.float32)
            assert torch.equal(got, stored)


def test_an_int8_donor_takes_its_own_pages_and_its_prefix_can_be_evicted() -> None:
    engine = tiny_engine(donor_format="int8")
    info = engine.remember(DONOR)
    pages = -(-430 // INT8_PER_PAGE)
    assert info.bytes == pages * page_bytes(engine)
    cached = 430 // 16
    assert engine.stats()["pool_bytes"] == (pages + cached) * page_bytes(engine)
    # All but the donor's pages are within reach of a request; pinned, the donor's are not.
    engine.remember(DONOR, pinned=True)
    free = engine.pool.n_pages - pages
    held = engine.pool.allocate(free * 16)
    assert engine.stats()["donors"] == 1
    assert engine.stats()["pool_pages_free"] == 0
    with pytest.raises(PoolExhausted):
        engine.pool.allocate(1)
    engine.pool.release(held)
    assert engine.stats()["pool_bytes"] == info.bytes


def test_an_unpinned_int8_donor_is_evicted_for_those_who_need_the_room() -> None:
    engine = tiny_engine(donor_format="int8")
    engine.remember(DONOR)
    held = engine.pool.allocate(engine.pool.n_slots)
    assert engine.stats()["donors"] == 0
    assert engine.stats()["donors_evicted"] == 1
    engine.pool.release(held)
    assert engine.score(MOVED, "x", policy=SPAN).provenance.exact


@pytest.mark.parametrize("donor_format", ["full", "int8"])
def test_forgetting_a_donor_forgets_its_exact_prefix(donor_format: str) -> None:
    engine = tiny_engine(donor_format=donor_format)
    info = engine.remember(DONOR)
    assert engine.plan(DONOR).counts["prefix"] == 416
    engine.forget(info.id)
    assert engine.stats()["pool_bytes"] == 0
    assert engine.plan(DONOR).counts["fresh"] == len(DONOR)


def test_forgetting_an_int8_donor_leaves_a_prefix_that_others_made() -> None:
    engine = tiny_engine(donor_format="int8")
    info = engine.remember(DONOR)
    engine.pool.release(engine.pool.allocate((engine.pool.n_pages - 8) * 16))  # evicts the prefix
    assert engine.stats()["donors"] == 1
    engine.score(DONOR[:200], "x", policy=ReusePolicy(mode="prefix"))
    engine.forget(info.id)
    assert engine.plan(DONOR).counts["prefix"] == 192


def test_the_same_prompt_is_exact_while_it_is_cached_and_its_sinks_afterwards() -> None:
    engine = tiny_engine(donor_format="int8")
    engine.remember(DONOR)
    hit = engine.score(DONOR, "ab", policy=SPAN)
    assert hit.provenance.exact
    assert hit.provenance.counts["prefix"] == 416
    engine.pool.release(engine.pool.allocate((engine.pool.n_pages - 8) * 16))
    again = engine.score(DONOR, "ab", policy=SPAN)
    assert not again.provenance.exact
    assert again.provenance.counts["span"] > 300
    assert set(again.provenance.source[:4]) == {TokenSource.FRESH}
    assert float((again.logits - hit.logits).abs().max()) < 0.1


def test_a_prompt_that_is_an_int8_donor_already_is_not_computed_to_become_one() -> None:
    engine = tiny_engine(donor_format="int8", now=lambda: 0.0)  # so that use leaves no trace
    info = engine.remember(DONOR)
    engine.pool.release(engine.pool.allocate((engine.pool.n_pages - 8) * 16))
    policy = ReusePolicy(mode="span", remember=True)
    answer = engine.generate(DONOR, max_tokens=2, policy=policy)
    assert not answer.provenance.exact
    assert (answer.remembered, answer.donor) == ("done", info)
    assert engine.complete_pending() == []


def test_pending_prompts_become_int8_donors() -> None:
    engine = tiny_engine(donor_format="int8")
    engine.remember(DONOR)
    policy = ReusePolicy(mode="span", remember=True)
    assert engine.generate(MOVED, max_tokens=2, policy=policy).remembered == "pending"
    (info,) = engine.complete_pending()
    assert info.bytes == -(-len(MOVED) // INT8_PER_PAGE) * page_bytes(engine)
    assert engine.stats()["donors"] == 2
    engine.forget_all()
    assert engine.stats()["pool_bytes"] == 0


@pytest.mark.parametrize("selection", ["deviation", "query_attention", "first_k"])
def test_every_selection_works_over_int8_donors(selection: str) -> None:
    full, int8 = engines()
    prompt = answerable(words(20, 5) + reworded(STEM, 6))
    policy = ReusePolicy.from_mapping(
        {"selection": selection, "min_similarity": 0.0, "only_unmatched": False, "recompute": 0.3}
    )
    for engine in (full, int8):
        engine.remember(DONOR)
    expected = full.score(prompt, "hello", policy=policy)
    score = int8.score(prompt, "hello", policy=policy)
    assert score.provenance.fallback is None
    assert score.provenance.reused > 0
    assert float((score.logits - expected.logits).abs().max()) < 0.5


def test_numbers_that_int8_cannot_store_make_no_donor_and_leave_no_page() -> None:
    engine = tiny_engine(donor_format="int8")
    refused = InvalidRequest("too large")
    with mock.patch.object(Int8Codec, "encode", side_effect=refused):
        with pytest.raises(InvalidRequest, match="too large"):
            engine.remember(DONOR)
        answer = engine.generate(MOVED, max_tokens=2, policy=ReusePolicy(remember=True))
    assert (answer.remembered, answer.donor) == ("no", None)
    assert engine.stats()["not_kept"] == 1
    engine.forget_all()
    assert engine.stats()["pool_bytes"] == 0


def test_without_room_for_a_compressed_copy_nothing_is_kept() -> None:
    # 27 pages of the prompt and 8 of its copy, of 34.
    engine = tiny_engine(
        donor_format="int8", kv_budget_bytes=34 * page_bytes(tiny_engine()), history_tokens=0
    )
    with pytest.raises(PoolExhausted):
        engine.remember(DONOR)
    assert engine.stats()["donors"] == 0
    engine.forget_all()
    assert engine.stats()["pool_bytes"] == 0


def test_an_unknown_format_is_refused() -> None:
    with pytest.raises(InvalidRequest, match=r"donor_format is 'int4'.*full, int8"):
        tiny_engine(donor_format="int4")
