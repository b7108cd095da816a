"""Methods that reuse KV: their plans by hand, and what those compute."""

from __future__ import annotations

from dataclasses import replace
from math import ceil

import numpy as np
import pytest
import torch
from method_cases import (
    EXAMPLE,
    LIMIT,
    NAMESPACE,
    PAPER_A,
    TASK,
    chat,
    difference,
    engine_for,
    kept_by,
    run,
)
from prompts import words

from semshare import ReusePolicy, SemShare, TokenSource
from semshare.engine.stopwatch import Stopwatch
from semshare.evaluation.material import Example
from semshare.evaluation.methods import random_map, semsharekv
from semshare.evaluation.methods.base import Change, PolicyMethod
from semshare.evaluation.methods.cacheblend import blended
from semshare.evaluation.methods.epic import linked
from semshare.evaluation.methods.no_realign import unmoved
from semshare.evaluation.methods.random_map import shuffled
from semshare.evaluation.methods.reuse import IDENTICAL_TEXT
from semshare.kv.sequence import lay_out
from semshare.planning.retention import Retention
from semshare.types import FreshReason, ReusePlan

# A paper between texts that no donor has: one run of 200 identical characters.
ONE_RUN = Example(
    "one run",
    donors=(chat("Q" * 20, PAPER_A, "R" * 20),),
    target=chat("S" * 50, PAPER_A, "T" * 30),
)
# The template puts one token before the content, and a newline and the assistant's token behind.
RUN_AT, RUN_END, N = 51, 251, 1 + 50 + 200 + 30 + 2


def plans(
    engine: SemShare, change: Change, policy: ReusePolicy, example: Example
) -> tuple[ReusePlan, ReusePlan]:
    """The library's plan, and the changed one."""
    session = engine.session
    draft = session.draft(engine.encode(example.target), policy, NAMESPACE, Stopwatch())
    plan = session.planner.finish(draft)
    return plan, change(session, draft, plan)


def test_align_only_computes_what_matches_nothing_and_the_last_token() -> None:
    engine = engine_for(ONE_RUN)
    provenance = run(engine, "align_only", ONE_RUN).provenance
    expected = np.full(N, TokenSource.FRESH)
    expected[RUN_AT:RUN_END] = TokenSource.SPAN
    np.testing.assert_array_equal(provenance.source, expected)
    np.testing.assert_array_equal(provenance.donor_position[RUN_AT:RUN_END], np.arange(21, 221))
    assert provenance.compute_fraction == (N - 200) / N


def test_without_re_alignment_the_same_slots_are_read_without_a_shift() -> None:
    engine = engine_for(ONE_RUN)
    plan, changed = plans(engine, unmoved, IDENTICAL_TEXT, ONE_RUN)
    np.testing.assert_array_equal(changed.slots, plan.slots)
    np.testing.assert_array_equal(changed.source, plan.source)
    assert {view.shift for view in lay_out(plan).views} == {30}
    assert {view.shift for view in lay_out(changed).views} == {0}


def test_re_alignment_is_all_that_no_realign_leaves_out() -> None:
    engine = engine_for(ONE_RUN)
    aligned, unaligned = run(engine, "align_only", ONE_RUN), run(engine, "no_realign", ONE_RUN)
    assert difference(aligned, unaligned) > 0.1
    in_place = replace(ONE_RUN, target=chat("S" * 20, PAPER_A, "T" * 30))
    aligned, unaligned = run(engine, "align_only", in_place), run(engine, "no_realign", in_place)
    assert aligned.provenance.counts["span"] == 200
    assert torch.equal(aligned.logits, unaligned.logits)


def test_cacheblend_filters_16_percent_of_the_reused_tokens_on_average() -> None:
    engine = engine_for(ONE_RUN)
    plan, changed = plans(engine, blended, IDENTICAL_TEXT, ONE_RUN)
    assert plan.deviation is None
    assert changed.deviation is not None
    np.testing.assert_array_equal(changed.deviation.candidates, np.arange(RUN_AT, RUN_END))
    # 16 % of 200 is 32: 1.2, 1.0 and 0.8 times that in the layers after the first.
    keep = (200, ceil(38.4), 32, ceil(25.6))
    assert changed.deviation.keep == keep
    rows = 4 * (N - 200) + sum(keep)
    assert run(engine, "cacheblend", ONE_RUN).provenance.compute_fraction == rows / (4 * N)


def test_cacheblend_leaves_exact_prefixes_alone() -> None:
    target = chat("Q" * 20, PAPER_A[:100], "S" * 20, PAPER_A[100:], "T" * 30)
    example = replace(ONE_RUN, target=target)
    engine = engine_for(example)
    _, changed = plans(engine, blended, IDENTICAL_TEXT, example)
    assert changed.deviation is not None
    assert np.count_nonzero(changed.source == TokenSource.PREFIX) == 112  # whole pages of 121
    np.testing.assert_array_equal(changed.deviation.candidates, np.arange(141, 241))


def test_epic_computes_the_first_16_tokens_of_each_run() -> None:
    second = words(40, 70)
    example = Example(
        "two runs",
        donors=(chat("Q" * 20, PAPER_A, "R" * 20, second, "U" * 9),),
        target=chat("S" * 50, PAPER_A, second, "T" * 30),
    )
    engine = engine_for(example)
    plan, changed = plans(engine, linked, IDENTICAL_TEXT, example)
    heads = np.r_[RUN_AT : RUN_AT + 16, RUN_END : RUN_END + 16]
    assert set(np.flatnonzero(changed.source != plan.source)) == set(heads)
    assert np.all(changed.reasons[heads] == FreshReason.HEAD)
    for array in (changed.slots, changed.position, changed.donor):
        assert np.all(array[heads] == -1)
    n = len(plan.ids)
    assert run(engine, "epic", example).provenance.compute_fraction == (n - 240 + 32) / n


def test_semsharekv_maps_a_prompt_onto_itself_and_is_exact_if_it_keeps_everything() -> None:
    """Nothing is a prefix here, since pages are larger than the prompt."""
    donor = chat(PAPER_A, words(50, 71))
    example = Example("same", (donor,), donor)
    engine = engine_for(example, page_size=512)
    keeps_all = PolicyMethod("", "", replace(semsharekv.POLICY, retention=1.0), semsharekv.planned)
    full, outcome = run(engine, "full", example), keeps_all.run(engine, example, TASK)
    n = 253
    reused = outcome.provenance.source == TokenSource.SPAN
    np.testing.assert_array_equal(np.flatnonzero(reused), np.arange(n - 32))
    np.testing.assert_array_equal(outcome.provenance.donor_position[reused], np.arange(n - 32))
    assert difference(full, outcome) <= LIMIT


def test_semsharekv_recomputes_fewer_rows_the_deeper_a_layer_lies() -> None:
    engine = engine_for()
    outcome = run(engine, "semsharekv")
    n = len(outcome.provenance.source)
    counts = outcome.provenance.counts
    assert counts["fresh"] == 32  # every other token has a nearest one
    candidates = n - 32 - counts["prefix"]
    # 0.5, √(0.5 × 0.1), 0.1 in the layers after the first.
    keep = [candidates, *(ceil(share * candidates) for share in (0.5, 0.05**0.5, 0.1))]
    assert outcome.provenance.compute_fraction == (4 * 32 + sum(keep)) / (4 * n)
    assert len(outcome.provenance.donors) == 1
    assert outcome.provenance.retained == pytest.approx(0.6, abs=0.01)


def test_semsharekv_keeps_fewer_tokens_the_deeper_a_layer_lies() -> None:
    engine = engine_for()
    ids = engine.encode(EXAMPLE.target)
    share, decay = semsharekv.KEEP, semsharekv.KEEP_DECAY
    assert (1 - np.exp(-decay)) / decay == pytest.approx(share, abs=1e-3)
    # The first layer's share is 1 in the limit of many layers.
    budgets = Retention(share, decay, sinks=0).budgets(len(ids), 30)
    assert budgets[0] == pytest.approx(len(ids), rel=0.02)
    assert budgets[-1] == pytest.approx(np.exp(-decay) * len(ids), rel=0.05)


def test_a_random_map_keeps_the_edges_and_forgets_the_rest() -> None:
    engine = engine_for()
    plan, changed = plans(engine, shuffled, random_map.POLICY, EXAMPLE)
    np.testing.assert_array_equal(changed.source == TokenSource.FRESH, plan.source == 0)
    np.testing.assert_array_equal(changed.donor, plan.donor)
    space = engine.library.find(NAMESPACE)
    assert space is not None
    mapped = np.flatnonzero(changed.source > TokenSource.PREFIX)
    assert len(mapped) > 300
    for at in mapped:
        donor = space.donors[changed.donors[changed.donor[at]]]
        assert 4 <= changed.position[at] < len(donor.ids)
        assert changed.slots[at] == donor.slots[changed.position[at]]
    assert np.mean(changed.position[mapped] == plan.position[mapped]) < 0.05
    full, ours = run(engine, "full"), run(engine, "semshare")
    assert difference(full, run(engine, "random_map")) > difference(full, ours)


def test_repair_makes_the_later_tokens_exact_and_the_first_ones_are_ours() -> None:
    engine = engine_for(repair_rows=512, prefill_rows=512)
    before = kept_by(engine)
    task = replace(TASK, continuation=[7, 200, 31, 100, 99, 8, 8, 250], max_tokens=12)
    full, ours, repaired = (
        run(engine, name, task=task) for name in ("full", "semshare", "semshare_repair")
    )
    assert repaired.provenance.repaired_after is not None
    assert kept_by(engine) == before  # exact KV too
    first, last = repaired.logits[0], repaired.logits[-1]
    assert float((first - ours.logits[0]).abs().max()) <= LIMIT
    assert float((last - full.logits[-1]).abs().max()) <= LIMIT
    assert float((first - full.logits[0]).abs().max()) > 0.01
    n, prefix = len(repaired.provenance.source), repaired.provenance.counts["prefix"]
    assert repaired.own_kv_bytes == (n - prefix) * engine.pool.bytes_per_slot
