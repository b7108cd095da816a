"""Donors that are published: who finds them how, and that nobody adds to them."""

from __future__ import annotations

import pytest
from invariants import assert_all_that_is_kept_is_exact, assert_nothing_is_held
from prompts import answerable, reworded, words
from tiny import tiny_engine

from semshare import DonorInfo, NotFound, ReusePolicy, SemShare
from semshare.planning.planner import Found

PAPER = words(12, 4) + words(200, 1)
SAME = answerable(PAPER)
MOVED = answerable(words(20, 2) + PAPER)
REWORDED = answerable(words(20, 2) + reworded(PAPER, 3))
PREFIX = ReusePolicy(mode="prefix")
SPAN = ReusePolicy(mode="span", recompute=0.0)
SIMILAR = ReusePolicy(min_similarity=0.0, min_span=1 << 20, recompute=0.0)  # no spans
ASKED = [(SAME, PREFIX), (MOVED, SPAN), (REWORDED, SIMILAR)]


@pytest.fixture
def engine() -> SemShare:
    return tiny_engine(page_size=8)


def published(engine: SemShare) -> DonorInfo:
    donor = engine.remember(PAPER, namespace="a")
    return engine.publish(donor.id, namespace="a")


def found(engine: SemShare, prompt: str, policy: ReusePolicy, namespace: str) -> Found:
    return engine.session.planner.find_donors(engine.encode(prompt), policy, namespace)


@pytest.mark.parametrize(("prompt", "policy"), ASKED)
def test_it_is_found_by_all_from_then_on(
    engine: SemShare, prompt: str, policy: ReusePolicy
) -> None:
    donor = engine.remember(PAPER, namespace="a")
    assert engine.plan(prompt, policy=policy, namespace="b").donors == ()
    assert engine.publish(donor.id, namespace="a").published
    own = engine.plan(prompt, policy=policy, namespace="a")
    plan = engine.plan(prompt, policy=policy, namespace="b")
    assert plan.donors == own.donors == (donor.id,)
    assert plan.counts == own.counts
    assert plan.counts["fresh"] < len(PAPER) // 2
    engine.forget(donor.id, namespace="a")
    assert engine.plan(prompt, policy=policy, namespace="b").counts["fresh"] == len(prompt)


def test_an_exact_prefix_of_it_gives_the_answer_of_a_full_prefill(engine: SemShare) -> None:
    full = engine.generate(SAME, policy=ReusePolicy(mode="off"), namespace="b", max_tokens=8)
    published(engine)
    answer = engine.generate(SAME, policy=PREFIX, namespace="b", max_tokens=8)
    assert answer.provenance.counts["prefix"] == len(PAPER) // 8 * 8
    assert answer.provenance.exact
    assert answer.token_ids == full.token_ids


def test_nobody_adds_to_what_is_published(engine: SemShare) -> None:
    donor = published(engine)
    space = engine.library.published
    path = space.prefixes.match(engine.encode(PAPER)).pages.tolist()
    for prompt, policy in ASKED:
        kept = ReusePolicy(mode=policy.mode, min_similarity=0.0, remember=True, repair="eager")
        engine.generate(prompt, policy=kept, namespace="b", max_tokens=4)
    engine.complete_pending()
    assert len(engine.donors(namespace="b")) == 3
    assert list(space.donors) == [donor.id]
    assert space.prefixes.match(engine.encode(PAPER)).pages.tolist() == path
    assert sum(len(node.pages) for node in space.prefixes.nodes()) == len(path)
    for prompt, policy in ASKED:  # and what another namespace has made of it stays there
        names = set(engine.plan(prompt, policy=policy, namespace="c").donors)
        assert names <= {donor.id}
    assert_all_that_is_kept_is_exact(engine)
    engine.forget_all("a")
    assert space.donors == {}
    assert_nothing_is_held(engine)
    engine.forget_all()
    assert engine.pool.used_bytes == 0


def test_own_donors_win_ties(engine: SemShare) -> None:
    other = published(engine)
    own = engine.remember(PAPER, namespace="b")
    assert own.id != other.id
    assert found(engine, SAME, PREFIX, "b").prefix_donor == own.id
    assert {span.donor for span in found(engine, MOVED, SPAN, "b").spans} == {own.id}
    assert found(engine, REWORDED, SIMILAR, "b").similar == (own.id, other.id)


def test_the_longer_one_wins_whosever_it_is(engine: SemShare) -> None:
    other = published(engine)
    own = engine.remember(PAPER[:64] + words(40, 9), namespace="b")
    assert found(engine, SAME, PREFIX, "b").prefix_donor == other.id
    (span,) = found(engine, MOVED, SPAN, "b").spans
    assert (span.donor, span.length) == (other.id, len(PAPER))
    assert set(engine.plan(SAME, policy=PREFIX, namespace="b").donors) == {other.id}
    assert own.id in {d.id for d in engine.donors(namespace="b")}


def test_a_donor_is_similar_once_to_whoever_published_it(engine: SemShare) -> None:
    donor = published(engine)
    assert found(engine, REWORDED, SIMILAR, "a").similar == (donor.id,)


def test_requests_of_all_count_as_use_of_it_but_only_its_own_may_change_it() -> None:
    clock = [100.0]
    engine = tiny_engine(now=lambda: clock[0])
    donor = published(engine)
    clock[0] = 160.0
    engine.generate(MOVED, policy=SPAN, namespace="b", max_tokens=1)
    told = engine.donor(donor.id, namespace="a")
    assert (told.created, told.last_used) == (100.0, 160.0)
    assert engine.donor_text(donor.id, namespace="b") == PAPER
    for change in (engine.donor, engine.update_donor, engine.publish, engine.forget):
        with pytest.raises(NotFound):
            change(donor.id, namespace="b")


def test_it_expires_for_all() -> None:
    clock = [100.0]
    engine = tiny_engine(now=lambda: clock[0])
    donor = published(engine)
    assert engine.update_donor(donor.id, namespace="a", ttl_s=5.0).expires == 105.0
    clock[0] = 105.0
    assert engine.plan(MOVED, policy=SPAN, namespace="b").donors == ()
    with pytest.raises(NotFound):
        engine.donor_text(donor.id, namespace="b")
    assert engine.stats()["donors_expired"] == 1


def test_a_compressed_donor_is_published_for_spans_but_not_as_a_prefix() -> None:
    engine = tiny_engine(page_size=8, donor_format="int8")
    donor = published(engine)
    assert engine.plan(SAME, policy=PREFIX, namespace="b").counts["prefix"] == 0
    assert engine.plan(MOVED, policy=SPAN, namespace="b").donors == (donor.id,)
    engine.forget_all()
    assert engine.pool.used_bytes == 0


def test_a_prefix_over_published_pages_gives_back_what_is_above_it() -> None:
    probe = tiny_engine(page_size=8)
    page = probe.pool.page_size * probe.pool.bytes_per_slot
    engine = tiny_engine(page_size=8, kv_budget_bytes=100 * page)
    paper = words(160, 5)
    engine.generate(paper[:96], policy=PREFIX, namespace="b", max_tokens=1)  # b's own pages
    donor = engine.remember(paper, namespace="a", pinned=True)
    engine.publish(donor.id, namespace="a")
    for seed in (6, 7):  # below them in b's tree: published pages, and then tails
        engine.generate(paper + words(24, seed), policy=PREFIX, namespace="b", max_tokens=1)
    for seed in range(20, 24):
        engine.remember(words(48, seed), namespace=f"c{seed}")
    # All but what the pinned donor holds: 80 pages, of which a request takes one for its answer.
    prompt = words(8 * 80 - 4, 99)
    engine.generate(prompt, policy=ReusePolicy(mode="off"), namespace="z", max_tokens=2)
    assert [found.id for found in engine.donors(namespace="a")] == [donor.id]


def test_what_is_published_of_a_forgotten_donor_is_no_running_request(engine: SemShare) -> None:
    paper = words(100, 1)
    for text, namespace in ((paper, "a"), (paper + words(80, 2), "b")):
        donor = engine.remember(text, namespace=namespace)
        engine.publish(donor.id, namespace=namespace)
    (first,) = engine.donors(namespace="a")
    engine.forget(first.id, namespace="a")
    use = engine.pool_use()
    assert use.running_bytes == 0
    assert use.used_bytes == engine.pool.used_bytes
    assert use.used_bytes + use.free_bytes == engine.stats()["pool_budget_bytes"]
