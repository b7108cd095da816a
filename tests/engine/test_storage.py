"""Donors that leave the pool: what they give once they are back, and what their tiers may do."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from below import HOST, Moody, counters, push_out, settle, storing_engine
from invariants import assert_consistent
from prompts import answerable, reworded, words
from tiny import FAMILIES, tiny_engine

from semshare import (
    ModelNotAvailable,
    NotFound,
    QuotaExceeded,
    ReusePolicy,
    SemShare,
    StorageConfig,
    TokenSource,
)
from semshare.engine.limits import NamespaceLimits
from semshare.kv.tiers.host import HostTier
from semshare.kv.tiers.tier import Tier

STEM = words(400, 1)
DONOR = words(30, 2) + STEM
MOVED = answerable(words(50, 3) + STEM)
REWORDED = answerable(reworded(DONOR, 7))
CONTINUED = answerable(DONOR + words(40, 8))


def moved(seed: int) -> str:
    """The donor's text behind another beginning."""
    return answerable(words(50, 20 + seed) + STEM, seed)


OFF, PREFIX, SPAN, SEMANTIC = (
    ReusePolicy(mode=mode) for mode in ("off", "prefix", "span", "semantic")
)
LIMIT = 1e-4  # max abs difference of float32 logits


@pytest.mark.parametrize("family", FAMILIES)
def test_a_donor_that_comes_back_gives_the_bits_that_it_gave_before(family: str) -> None:
    stays, leaves = tiny_engine(family), storing_engine(family)
    for one in (stays, leaves):
        one.remember(DONOR)
    for prompt, policy in ((MOVED, SPAN), (REWORDED, SEMANTIC), (CONTINUED, PREFIX)):
        stays.library.namespace("default").prefixes.match(stays.encode(prompt))
        push_out(leaves)
        for_prompt = [one.score(prompt, "hello", policy=policy) for one in (stays, leaves)]
        expected, got = for_prompt
        assert torch.equal(expected.logits, got.logits)
        assert got.provenance.compute_fraction == expected.provenance.compute_fraction < 0.6
        assert got.provenance.fallback is None
        np.testing.assert_array_equal(expected.provenance.source, got.provenance.source)
        assert_consistent(leaves)
        stays.forget_all()
        stays.remember(DONOR)
    assert counters(leaves)["loads"] == 3
    leaves.close()


def test_a_stored_prefix_is_lossless_and_is_cached_once_it_is_loaded(engine: SemShare) -> None:
    full = engine.score(CONTINUED, "hello", policy=OFF)
    engine.remember(DONOR)
    push_out(engine)
    plan = engine.plan(CONTINUED, policy=PREFIX)
    assert plan.counts["prefix"] == 416
    assert counters(engine).get("loads", 0) == 0  # planning loads nothing
    answer = engine.generate(CONTINUED, max_tokens=2, policy=PREFIX)
    assert answer.provenance.counts["prefix"] == 416
    assert answer.provenance.exact
    assert (
        full.logits - engine.score(CONTINUED, "hello", policy=PREFIX).logits
    ).abs().max() < LIMIT
    assert counters(engine)["loads"] == 1


def test_only_what_a_plan_wants_is_read(tier: Moody) -> None:
    with storing_engine(kv_budget_bytes=64 << 20) as engine:
        long = words(3_000, 1)
        info = engine.remember(long)
        push_out(engine)
        wanted = answerable(words(40, 5) + long[1_000:1_900])  # 30 % of it
        tier.bytes_read = 0
        answer = engine.generate(wanted, max_tokens=1, policy=SPAN)
        assert answer.provenance.counts["span"] > 800
        assert tier.bytes_read < 0.36 * info.bytes
        tier.bytes_read = 0
        engine.generate(answerable(words(60, 6) + long[1_100:1_800]), max_tokens=1, policy=SPAN)
        assert tier.bytes_read == 0  # it is there already
        push_out(engine)
        assert_consistent(engine)


def test_a_stored_donor_is_a_donor_like_any_other(engine: SemShare) -> None:
    info = engine.remember(DONOR)
    push_out(engine)
    assert engine.donors() == [info]
    assert engine.donor_text(info.id) == DONOR
    assert engine.update_donor(info.id, pinned=True).pinned
    assert engine.publish(info.id).published
    elsewhere = engine.generate(MOVED, max_tokens=1, policy=SPAN, namespace="other")
    assert elsewhere.provenance.counts["span"] > 300
    push = engine.stats()["donors_evicted"]
    assert push == 0
    engine.forget(info.id)
    assert engine.donors() == []
    assert engine.generate(MOVED, max_tokens=1, policy=SPAN).provenance.reused == 0
    assert_consistent(engine)


def test_other_namespaces_do_not_find_what_is_stored(engine: SemShare) -> None:
    engine.remember(DONOR, namespace="mine")
    push_out(engine)
    for prompt, policy in ((MOVED, SPAN), (REWORDED, SEMANTIC), (CONTINUED, PREFIX)):
        answer = engine.generate(prompt, max_tokens=1, policy=policy, namespace="other")
        assert answer.provenance.reused == 0
    assert "loads" not in counters(engine)


def test_donors_are_there_after_a_restart(tier: Moody) -> None:
    with storing_engine() as before:
        donor = before.remember(DONOR, pinned=True)
        before.update_donor(donor.id, ttl_s=1_000)
        published = before.remember(words(300, 9), namespace="other")
        before.publish(published.id, namespace="other")
        told = before.donors() + before.donors(namespace="other")
        assert before.flush(30)
    tier.bytes_read = 0
    with storing_engine() as after:
        assert after.donors() + after.donors(namespace="other") == told
        assert tier.bytes_read == 0
        assert after.generate(MOVED, max_tokens=1, policy=SPAN).provenance.counts["span"] > 300
        over_published = answerable(words(50, 3) + words(300, 9))
        answer = after.generate(over_published, max_tokens=1, policy=SPAN, namespace="third")
        assert answer.provenance.counts["span"] > 200


def test_history_is_kept_with_the_donor(tier: Moody) -> None:
    with storing_engine() as before:
        donor = before.remember(DONOR)
        before.remember(DONOR)  # adds to it
        history = before.library.get("default", donor.id).history
        assert before.flush(30)
    with storing_engine() as after:
        np.testing.assert_array_equal(after.library.get("default", donor.id).history, history)


def test_what_is_forgotten_does_not_come_back(engine: SemShare, tier: Moody) -> None:
    first = engine.remember(DONOR)
    engine.remember(words(300, 9))
    assert engine.flush(30)
    engine.forget(first.id)
    assert [record.id for record in tier.records()] != []
    assert first.id not in {record.id for record in tier.records()}
    engine.forget_all()
    assert engine.flush(30)
    assert list(tier.records()) == []
    assert tier.used_bytes == 0


def test_an_expired_donor_leaves_the_tiers(tier: Moody) -> None:
    now = 1_000.0
    with storing_engine(now=lambda: now) as engine:
        engine.remember(DONOR, ttl_s=10)
        assert engine.flush(30)
        assert len(list(tier.records())) == 1
        now += 11
        assert engine.donors() == []
        assert engine.flush(30)
        assert list(tier.records()) == []


def test_a_damaged_blob_is_put_away_and_the_prompt_computed(engine: SemShare, tier: Moody) -> None:
    full = engine.score(MOVED, "hello", policy=OFF)
    donor = engine.remember(DONOR)
    push_out(engine)
    tier.damage = lambda part: bytes(part[:-1]) + bytes([part[-1] ^ 1])
    got = engine.score(MOVED, "hello", policy=SPAN)
    assert got.provenance.reused == 0
    assert (got.logits - full.logits).abs().max() < LIMIT
    assert tier.quarantined == [donor.id]
    settle(engine)
    assert engine.donors() == []
    tier.damage = lambda part: part
    assert engine.remember(DONOR).id == donor.id  # may be put anew
    push_out(engine)
    assert engine.generate(moved(1), max_tokens=1, policy=SPAN).provenance.counts["span"] > 300


def test_another_tier_has_what_one_has_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    upper, lower = Moody(), HostTier(64 << 20)
    lower.name = "lower"  # type: ignore[misc]
    with with_tiers(monkeypatch, upper, lower) as engine:
        donor = engine.remember(DONOR)
        push_out(engine)
        upper.damage = lambda part: part[:-1]
        answer = engine.generate(MOVED, max_tokens=1, policy=SPAN)
        assert answer.provenance.counts["span"] > 300
        assert upper.quarantined == [donor.id]
        upper.damage = lambda part: part
        for _ in range(2):  # what is loaded again moves up
            push_out(engine)
            engine.generate(MOVED, max_tokens=1, policy=SPAN)
        assert engine.flush(30)
        assert upper.holds(donor.id)
        assert counters(engine)["donors_promoted"] == 1


def test_a_tier_that_is_down_costs_reuse_only_and_heals(engine: SemShare, tier: Moody) -> None:
    full = engine.score(MOVED, "hello", policy=OFF)
    engine.remember(DONOR)
    push_out(engine)
    tier.down = True
    got = engine.score(MOVED, "hello", policy=SPAN)
    assert got.provenance.reused == 0
    assert (got.logits - full.logits).abs().max() < LIMIT
    assert len(engine.donors()) == 1
    tier.down = False
    assert engine.generate(moved(2), max_tokens=1, policy=SPAN).provenance.counts["span"] > 300


def test_what_could_not_be_written_is_written_once_the_tier_is_up(
    engine: SemShare, tier: Moody
) -> None:
    tier.down = True
    kept, dropped = engine.remember(DONOR), engine.remember(words(300, 9))
    assert engine.flush(30)
    engine.forget(dropped.id)
    assert list(tier.records()) == []
    tier.down = False
    assert engine.flush(30)
    assert [record.id for record in tier.records()] == [kept.id]


def test_a_slow_tier_is_waited_for_no_longer_than_is_set(tier: Moody) -> None:
    with storing_engine(storage=replace(HOST, load_timeout_s=0.05)) as engine:
        full = engine.score(MOVED, "hello", policy=OFF)
        engine.remember(DONOR)
        push_out(engine)
        with tier.stuck():
            got = engine.score(MOVED, "hello", policy=SPAN)
            assert got.provenance.reused == 0
            assert (got.logits - full.logits).abs().max() < LIMIT
            assert counters(engine)["loads_failed:TooLate"] == 1
            engine.generate(moved(2), max_tokens=1, policy=SPAN)  # it is not even asked for a while
            assert counters(engine)["loads_failed:TooLate"] == 1
        settle(engine)
        assert_consistent(engine)


def test_a_request_in_a_hurry_waits_for_half_of_its_time(engine: SemShare, tier: Moody) -> None:
    engine.remember(DONOR)
    push_out(engine)
    with tier.stuck():  # a load may take two seconds, the request less than one
        answer = engine.generate(MOVED, max_tokens=1, policy=SPAN, deadline_s=0.8)
        assert (answer.provenance.reused, len(answer.token_ids)) == (0, 1)
    settle(engine)
    again = engine.generate(moved(2), max_tokens=1, policy=SPAN)  # that said little about the tier
    assert again.provenance.counts["span"] > 300


def test_a_donor_that_is_evicted_while_it_is_written_is_not_lost(
    engine: SemShare, tier: Moody
) -> None:
    with tier.stuck():
        donor = engine.remember(DONOR)
        assert tier.asked.wait(30)
        with engine.session.lock:
            engine.library._let_go(engine.library.get("default", donor.id))
        assert not engine.pool.used_bytes
    assert engine.flush(30)
    assert [info.id for info in engine.donors()] == [donor.id]
    assert engine.generate(MOVED, max_tokens=1, policy=SPAN).provenance.counts["span"] > 300
    assert_consistent(engine)


def test_a_donor_that_is_forgotten_while_it_is_written_is_gone(
    engine: SemShare, tier: Moody
) -> None:
    with tier.stuck():
        donor = engine.remember(DONOR)
        assert tier.asked.wait(30)
        with engine.session.lock:
            engine.library.remove("default", donor.id)
    assert engine.flush(30)
    assert list(tier.records()) == []
    with pytest.raises(NotFound):
        engine.donor(donor.id)
    assert_consistent(engine)


def test_a_donor_that_its_tier_evicts_is_found_as_long_as_the_pool_has_it(
    tier: Moody, engine: SemShare
) -> None:
    donor = engine.remember(DONOR)
    assert engine.flush(30)
    tier.remove(donor.id)
    engine.session.storage.writer.check(donor.id)
    assert engine.flush(30)
    assert engine.generate(MOVED, max_tokens=1, policy=SPAN).provenance.counts["span"] > 300
    with engine.session.lock:
        engine.pool.release(engine.pool.allocate(engine.pool.n_slots))
    assert engine.donors() == []


@pytest.mark.parametrize("donor_format", ["full", "int8"])
def test_int8_below_the_pool_is_never_an_exact_prefix(donor_format: str) -> None:
    storage = StorageConfig(host_bytes=64 << 20, donor_format="int8")
    with storing_engine(storage=storage, donor_format=donor_format) as engine:
        engine.remember(DONOR)
        push_out(engine)
        answer = engine.score(CONTINUED, "hello", policy=PREFIX)
        assert answer.provenance.reused == 0
        assert answer.provenance.exact
        full = engine.score(MOVED, "hello", policy=OFF)
        got = engine.score(MOVED, "hello", policy=replace(SPAN, head_tokens=0))
        assert got.provenance.counts["span"] > 300
        assert not got.provenance.exact
        assert not np.any(got.provenance.source == TokenSource.PREFIX)
        assert (got.logits - full.logits).abs().max() > 0


def test_a_pool_without_room_computes(tier: Moody) -> None:
    """The donor and the request don't fit beside each other."""
    page = 16 * tiny_engine().pool.bytes_per_slot
    with storing_engine(kv_budget_bytes=30 * page) as engine:
        engine.remember(DONOR)  # 27 pages
        push_out(engine)
        answer = engine.generate(MOVED, max_tokens=1, policy=SPAN)  # 7 beside these, 30 by itself
        assert answer.provenance.reused == 0
        assert counters(engine)["loads"] == 1
        assert_consistent(engine)


def test_what_is_stored_counts_against_the_namespaces_quota(engine: SemShare) -> None:
    limits = NamespaceLimits(prefix="mine", max_donors=2)
    engine.limit(lambda namespace: limits if namespace == "mine" else NamespaceLimits(namespace))
    for seed in range(2):
        engine.remember(words(200, seed), namespace="mine")
    push_out(engine)
    with pytest.raises(QuotaExceeded, match="2 donors are kept, of 2"):
        engine.remember(words(200, 2), namespace="mine")
    engine.remember(words(200, 2), namespace="other")
    engine.forget(engine.donors(namespace="mine")[0].id, namespace="mine")
    engine.remember(words(200, 3), namespace="mine")


def test_two_engines_share_a_tier(monkeypatch: pytest.MonkeyPatch) -> None:
    shared = HostTier(64 << 20)
    with with_tiers(monkeypatch, shared) as one, with_tiers(monkeypatch, shared) as other:
        donor = one.remember(DONOR)
        assert one.flush(30)
        (record,) = shared.records()
        other.session.storage.writer.appeared(record)  # as a shared tier's thread does
        assert [info.id for info in other.donors()] == [donor.id]
        assert other.generate(MOVED, max_tokens=1, policy=SPAN).provenance.counts["span"] > 300
        forged = replace(record, ids=record.ids + 1)
        other.session.storage.writer.appeared(forged)
        assert len(other.donors()) == 1


def with_tiers(monkeypatch: pytest.MonkeyPatch, *tiers: Tier) -> SemShare:
    made = iter(tiers)
    monkeypatch.setattr("semshare.engine.storage_setup.HostTier", lambda *_: next(made))
    if len(tiers) == 2:
        monkeypatch.setattr("semshare.engine.storage_setup.DiskTier", lambda *_: next(made))
    storage = HOST if len(tiers) == 1 else replace(HOST, disk_path="nowhere")
    return storing_engine(storage=storage)


def test_without_a_tier_s_package_the_error_names_the_extra(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in [name for name in sys.modules if name.startswith("semshare.kv.tiers.redis")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "redis", None)
    with pytest.raises(ModelNotAvailable, match=r"semshare\[redis\]"):
        storing_engine(storage=StorageConfig(redis_url="redis://h"))
