"""Whatever comes in whatever order, all pages are accounted for after every step."""

from __future__ import annotations

from typing import Any
from unittest import mock

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from invariants import assert_all_that_is_kept_is_exact, assert_nothing_is_held
from properties import examples
from stepping import Stepped
from tiny import tiny_engine
from workload import Workload, assert_right, shared_pieces

from semshare import ReusePolicy
from semshare.config import REPAIR_NAMES, REUSE_MODES

policies = st.builds(
    ReusePolicy,
    mode=st.sampled_from([*REUSE_MODES, "semantic", "semantic"]),
    recompute=st.sampled_from([0.0, 0.2]),
    selection=st.sampled_from(["none", "first_k", "deviation", "query_attention"]),
    min_similarity=st.just(0.0),
    min_span=st.just(8),
    sink_tokens=st.sampled_from([0, 4]),
    tail_tokens=st.sampled_from([1, 8]),
    repair=st.sampled_from(REPAIR_NAMES),
    remember=st.booleans(),
)


@examples(16)
@given(
    seed=st.integers(0, 2**32),
    family=st.sampled_from(["llama", "llama", "qwen2-window", "gemma3"]),
    pages=st.sampled_from([20, 30, 60, 2_000]),
    prefill_rows=st.sampled_from([5, 40, 256]),
    repair_rows=st.sampled_from([8, 64]),
    max_answers=st.sampled_from([3, 8, 64]),
    several=st.lists(policies, min_size=2, max_size=4),
    failing=st.sampled_from([0.0, 0.0, 0.01, 0.05]),
)
def test_all_pages_are_accounted_for_after_every_step(
    seed: int,
    family: str,
    pages: int,
    several: list[ReusePolicy],
    failing: float,
    **config: Any,
) -> None:
    config |= {"kv_budget_bytes": pages * 8 * 1024, "page_size": 8, "history_tokens": 3}
    # Small enough that answers outgrow their slots, and that spans are read in place.
    with (
        mock.patch("semshare.kv.sequence.ROOM_TOKENS", 4),
        mock.patch("semshare.kv.sequence.MIN_VIEW_TOKENS", 16),
    ):
        stepped = Stepped(tiny_engine(family, **config))
        work = Workload(
            stepped,
            np.random.default_rng(seed),
            shared_pieces(stepped, 32),
            several,
            most_tokens=16,
            failing=failing,
        )
        acts = [work.submit, work.step, work.step, work.step, work.step, work.cancel, work.call]
        with work.failures():
            for _ in range(60):
                work.any_of(acts)()
            work.failing = 0.0
            work.finish()
        for one in work.started:
            assert_right(stepped, one)
        assert_all_that_is_kept_is_exact(stepped.engine)
        stepped.engine.forget_all()
        assert stepped.engine.pool.used_bytes == 0


def test_ten_thousand_requests_leak_no_slot() -> None:
    engine = tiny_engine(
        layers=1,
        page_size=4,
        kv_budget_bytes=400 * 4 * 256,
        history_tokens=2,
    )
    assert engine.pool.n_pages == 400
    stepped = Stepped(engine, check_every=100)
    kept = ReusePolicy(min_similarity=0.0, remember=True, repair="eager")
    several = [ReusePolicy(mode="prefix")] * 8 + [ReusePolicy(mode="off"), kept]
    work = Workload(
        stepped,
        np.random.default_rng(0),
        shared_pieces(stepped, 18),
        several,
        failing=0.001,
    )
    with work.failures():
        while len(work.started) < 10_000:
            while stepped.scheduler.waiting < 4:
                work.submit()
            work.step()
            if work.chance(0.3):
                work.cancel()
            if work.chance(0.02):
                work.call()
        work.failing = 0.0
        work.finish()
    for one in work.started[::20]:
        assert_right(stepped, one)
    answered = sum(one.error is None and bool(one.outbox) for one in work.started)
    assert answered > 8_000
    assert_nothing_is_held(engine)
    engine.forget_all()
    assert engine.pool.used_bytes == 0
