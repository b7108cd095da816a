"""What may happen between two threads while donors go down and come back."""

from __future__ import annotations

import threading
from dataclasses import replace
from math import inf

import pytest
from below import HOST, Moody, push_out, settle, storing_engine
from invariants import assert_consistent
from prompts import answerable, words
from test_storage import DONOR, MOVED, OFF, SPAN

from semshare import InvalidRequest, SemShare
from semshare.engine import storage_writer
from semshare.engine.stopwatch import Stopwatch

PAGE = 16 * 1024  # bytes of a tiny engine's
OTHER = words(300, 9)


def evict(engine: SemShare, donor_id: str) -> None:
    with engine.session.lock:
        engine.library._let_go(engine.library.get("default", donor_id))


def forget_now(engine: SemShare, donor_id: str) -> None:
    """As `forget`, without a word to the tiers yet."""
    with engine.session.lock:
        engine.library.remove("default", donor_id)


# ---- pages


def test_a_donor_that_is_remembered_anew_while_its_old_self_fails_to_load_holds_its_pages(
    tier: Moody,
    engine: SemShare,
) -> None:
    donor, session = engine.remember(DONOR), engine.session
    push_out(engine)
    with tier.stuck():
        with session.lock:
            draft = session.draft(engine.encode(MOVED), SPAN, "default", Stopwatch())
            plan = session.planner.finish(draft, with_stored=True)
            session.storage.begin_loading(plan, "default")
        forget_now(engine, donor.id)
        engine.remember(DONOR)
        tier.down = True
    settle(engine)
    assert_consistent(engine)  # or nothing could evict it


def test_pinned_donors_that_come_back_do_not_fill_the_pool(tier: Moody) -> None:
    with storing_engine(kv_budget_bytes=60 * PAGE) as engine:
        texts = [words(400, 30 + seed) for seed in range(3)]
        for text in texts:
            donor = engine.remember(text)
            push_out(engine)
            engine.update_donor(donor.id, pinned=True)
        for text in texts:
            asked = answerable(words(30, 70) + text)
            answer = engine.generate(asked, max_tokens=1, policy=SPAN)
            assert answer.provenance.counts["span"] > 300
        engine.generate(words(900, 99), max_tokens=1)
        assert len(engine.donors()) == 3
        assert_consistent(engine)


def test_a_pinned_donor_that_never_left_stays(tier: Moody) -> None:
    with storing_engine(kv_budget_bytes=60 * PAGE) as engine:
        donor = engine.remember(DONOR, pinned=True)
        settle(engine)
        engine.generate(words(400, 99), max_tokens=1)
        assert engine.library.get("default", donor.id).is_whole


def test_a_read_that_hangs_takes_no_room_from_requests(tier: Moody) -> None:
    """27 of 30 pages were to be filled; the prompt takes all 30."""
    storage = replace(HOST, load_timeout_s=0.05)
    with storing_engine(kv_budget_bytes=30 * PAGE, storage=storage) as engine:
        full = engine.score(MOVED, "a", policy=OFF).logits
        engine.remember(DONOR)
        push_out(engine)
        with tier.stuck():
            got = engine.score(MOVED, "a", policy=SPAN)
            assert got.provenance.reused == 0
            assert_consistent(engine)
        settle(engine)  # what is read after all is not written over what others have by now
        assert (got.logits - full).abs().max() < 1e-4
        assert (engine.score(MOVED, "a", policy=OFF).logits - full).abs().max() < 1e-4
        assert_consistent(engine)


def test_a_donor_that_is_being_encoded_takes_no_room_from_requests(
    tier: Moody, monkeypatch: pytest.MonkeyPatch
) -> None:
    began, go_on, encode = threading.Event(), threading.Event(), storage_writer.encode_donor

    def slow(*given: object) -> object:
        began.set()
        assert go_on.wait(30)
        return encode(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(storage_writer, "encode_donor", slow)
    with storing_engine(kv_budget_bytes=30 * PAGE) as engine:
        engine.remember(DONOR)
        assert began.wait(30)
        threading.Timer(0.2, go_on.set).start()
        engine.generate(OTHER, max_tokens=1, policy=OFF)
        settle(engine)
        assert len(engine.donors()) == 1
        assert_consistent(engine)


def test_a_donor_that_can_not_be_encoded_stays_in_the_pool_alone(
    tier: Moody, engine: SemShare, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> object:
        raise InvalidRequest("numbers beyond what int8 can express")

    monkeypatch.setattr(storage_writer, "encode_donor", fails)
    donor = engine.remember(DONOR)
    assert engine.flush(30)
    engine.update_donor(donor.id, pinned=True)
    assert engine.flush(30)
    assert list(tier.records()) == []
    assert engine.library.get("default", donor.id).stored is None
    assert engine.generate(MOVED, max_tokens=1, policy=SPAN).provenance.reused > 300
    assert_consistent(engine)


# ---- donors that are forgotten, and remembered again


def test_a_donor_that_is_remembered_again_before_its_turn_is_written(
    tier: Moody,
    engine: SemShare,
) -> None:
    with tier.stuck():
        engine.remember(OTHER)
        assert tier.asked.wait(30)
        donor = engine.remember(DONOR)
        forget_now(engine, donor.id)
        engine.remember(DONOR)
    assert engine.flush(30)
    assert tier.holds(donor.id)


def test_who_is_remembered_again_is_not_what_it_was(tier: Moody) -> None:
    """It was published; it must not be so after a restart, whether it was written in time."""
    with storing_engine() as before:
        donor = before.remember(DONOR)
        before.publish(donor.id)
        assert before.flush(30)
        with tier.stuck():
            before.remember(OTHER)
            assert tier.asked.wait(30)
            forget_now(before, donor.id)
            before.remember(DONOR)
            threading.Timer(0.2, tier.held.set).start()
            before.close(0.0)
    with storing_engine() as after:
        assert not any(info.published for info in after.donors())


def test_a_late_update_says_nothing_of_who_was_remembered_since(
    tier: Moody,
    engine: SemShare,
) -> None:
    donor = engine.remember(DONOR)
    assert engine.flush(30)
    tier.down = True
    engine.update_donor(donor.id, ttl_s=1_000)
    assert engine.flush(30)
    forget_now(engine, donor.id)
    tier.down = False
    engine.remember(DONOR)
    for _ in range(2):
        assert engine.flush(30)
    assert [record.expires_at for record in tier.records()] == [inf]


def test_a_pin_is_kept_though_an_older_self_is_written_meanwhile(
    tier: Moody,
    engine: SemShare,
) -> None:
    with tier.stuck():
        donor = engine.remember(DONOR)
        assert tier.asked.wait(30)
        evict(engine, donor.id)
        engine.remember(DONOR, pinned=True)
    assert engine.flush(30)
    assert engine.donor(donor.id).pinned
    assert [record.pinned for record in tier.records()] == [True]


@pytest.mark.parametrize("by_id", [True, False])
@pytest.mark.parametrize("again", [True, False])
def test_what_is_evicted_while_it_is_written_can_be_forgotten(
    tier: Moody,
    engine: SemShare,
    by_id: bool,
    again: bool,
) -> None:
    with tier.stuck():
        donor = engine.remember(DONOR)
        assert tier.asked.wait(30)
        evict(engine, donor.id)
        if again:
            engine.remember(DONOR)
        threading.Timer(0.2, tier.held.set).start()
        if by_id:
            engine.forget(donor.id)
        else:
            engine.forget_all("default")
    assert engine.flush(30)
    assert engine.donors() == []
    assert list(tier.records()) == []


def test_a_donor_that_expires_while_room_is_made_for_it_holds_no_pages(
    tier: Moody, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1_000.0
    with storing_engine(now=lambda: now) as engine:
        engine.remember(DONOR, ttl_s=10)
        push_out(engine)
        allocate = engine.pool.allocate

        def slow(n_slots: int) -> object:
            nonlocal now
            now = 2_000.0
            engine.library.names  # noqa: B018 - whoever looks finds that its time is over
            return allocate(n_slots)

        monkeypatch.setattr(engine.pool, "allocate", slow)
        assert engine.generate(MOVED, max_tokens=1, policy=SPAN).provenance.reused == 0
        monkeypatch.undo()
        settle(engine)
        assert list(engine.library.residency.holders) == []
        assert_consistent(engine)
        push_out(engine)
        assert list(tier.records()) == []
