"""Decode steps: the logits of transformers, and of several sequences those of each by itself."""

from __future__ import annotations

from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from properties import examples
from running import PAGE, pool_for, random_ids, transformers_logits
from tiny import FAMILIES, VOCAB_SIZE, tiny_model
from torch import nn

from semshare.engine.adapter import ModelAdapter
from semshare.engine.executor import Executor
from semshare.kv.sequence import KVSequence, Layout, Segment, key_tree, lay_out
from semshare.planning.plan import full_plan
from semshare_kernels import linear, native
from semshare_kernels.decode import cpu

LIMIT = 1e-4  # max abs difference of float32 logits
DONOR = random_ids(160, VOCAB_SIZE)
NOTHING = np.empty(0, np.int64)
STEPS = 5

_executors: dict[str, tuple[Executor, KVSequence]] = {}


def donor_in(family: str) -> tuple[Executor, KVSequence]:
    """An executor whose pool holds the donor's KV; made once for each family."""
    if family not in _executors:
        adapter = ModelAdapter(tiny_model(family))
        executor = Executor(adapter, pool_for(adapter, 400))
        donor = KVSequence(executor.pool, lay_out(full_plan(DONOR)), NOTHING, room=0)
        with torch.inference_mode():
            executor.forward(donor, DONOR, np.arange(len(DONOR)))
        _executors[family] = executor, donor
    return _executors[family]


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_a_token_at_a_time_has_the_logits_of_transformers(
    family: str, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not compiled:
        monkeypatch.setattr(native, "library", lambda: None)
    executor, _ = donor_in(family)
    expected = transformers_logits(executor.adapter.hf_model, DONOR)
    sequence = KVSequence(executor.pool, lay_out(full_plan(DONOR[:90])), NOTHING, room=len(DONOR))
    executor.forward(sequence, DONOR[:90], np.arange(90))
    got = [
        executor.decode([sequence], DONOR[index : index + 1], sequence.append(1))
        for index in range(90, len(DONOR))
    ]
    sequence.release()
    assert float((torch.cat(got) - expected[90:]).abs().max()) <= LIMIT


def reading(executor: Executor, donor: KVSequence, views: list[tuple[int, int, int]]) -> KVSequence:
    """A sequence that reads the donor's tokens [start, stop) after so many tokens of its own."""
    first_slot = int(donor.own[0][0])
    at, own, segments = 0, [], []
    for before, start, stop in views:
        own.append(np.arange(at, at + before))
        at += before
        segments.append(Segment(first_slot + start, np.arange(at, at + stop - start), at - start))
        at += stop - start
    own.append(np.arange(at, at + 1))
    layout = Layout(tuple(segments), np.concatenate(own), NOTHING, NOTHING, NOTHING)
    return KVSequence(executor.pool, layout, executor.pool.pages_of(donor.own[0]), room=STEPS)


def run_of(donor: KVSequence) -> int:
    """The donor's first slots that lie in a row, on the pages that the pool had left."""
    return int(np.argmax(np.append(np.diff(donor.own[0]) != 1, True))) + 1


views_of_donor = st.lists(
    st.tuples(st.integers(0, 5), st.integers(0, PAGE - 1), st.integers(1, PAGE)), max_size=3
)


@pytest.mark.parametrize("family", ["llama", "mistral-window", "gemma3"])
@examples(15)
@given(st.lists(views_of_donor, min_size=1, max_size=4), st.sampled_from([-(1 << 60), 1 << 60]))
@torch.inference_mode()
def test_sequences_together_have_the_logits_of_each_by_itself(
    family: str, several: list[list[tuple[int, int, int]]], call_bytes: int
) -> None:
    """However their views of one donor overlap, and wherever it stands in them."""
    executor, donor = donor_in(family)
    length = run_of(donor)
    cut = [[(a, b % length, min(b % length + n, length)) for a, b, n in one] for one in several]
    pairs = [(reading(executor, donor, views), reading(executor, donor, views)) for views in cut]
    for both in pairs:
        for sequence in both:
            at = sequence.own[1]
            executor.forward(sequence, DONOR[: len(at)], at)
    for step in range(STEPS):
        ids = DONOR[step : step + len(pairs)]
        expected = torch.cat(
            [
                executor.forward(alone, ids[index : index + 1], alone.append(1)).logits
                for index, (alone, _) in enumerate(pairs)
            ]
        )
        together = [sequence for _, sequence in pairs]
        positions = np.concatenate([sequence.append(1) for sequence in together])
        with mock.patch.object(cpu, "CALL_BYTES", call_bytes):  # all is shared, or nothing
            got = executor.decode(together, ids, positions)
        assert float((got - expected).abs().max()) <= LIMIT
    for sequence in (sequence for both in pairs for sequence in both):
        sequence.release()


@pytest.mark.skipif(native.library() is None, reason="no compiled loops here")
@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_a_batchs_projections_are_all_made_for_few_rows(family: str) -> None:
    executor, donor = donor_in(family)
    rows = linear.cpu.MIN_ROWS
    sequences = [reading(executor, donor, []) for _ in range(rows)]
    positions = np.concatenate([sequence.own[1][:1] for sequence in sequences])
    with mock.patch.object(linear, "few_rows_linear", wraps=linear.few_rows_linear) as product:
        executor.decode(sequences, DONOR[:rows], positions)
    projections = [m for m in executor.adapter.hf_model.modules() if isinstance(m, nn.Linear)]
    asked = [call.args[1] for call in product.call_args_list]
    assert {id(weight) for weight in asked} == {id(one.weight) for one in projections}
    assert len(asked) == len(projections)
    for sequence in sequences:
        sequence.release()


def test_overlapping_views_share_what_they_have_in_common() -> None:
    executor, donor = donor_in("llama")
    first_slot = int(donor.own[0][0])
    views = [[(2, 0, 6)], [(0, 3, 8)], [(3, 0, 3), (0, 6, 8)]]
    sequences = [reading(executor, donor, one) for one in views]
    tree = key_tree(sequences)
    bounds = tree.node_start
    assert len(np.unique(tree.slots)) == len(tree.slots)
    read = [
        {
            (int(slot) - first_slot, int(shift))
            for node, shift in zip(path, shifts, strict=True)
            for slot in tree.slots[bounds[node] : bounds[node + 1]]
            if int(slot) - first_slot in range(8)
        }
        for path, shifts in zip(tree.paths, tree.shifts, strict=True)
    ]
    assert read[0] == {(slot, 2) for slot in range(6)}
    assert read[1] == {(slot, -3) for slot in range(3, 8)}
    assert read[2] == {(0, 3), (1, 3), (2, 3), (6, 0), (7, 0)}
    shared = set(tree.paths[0]) & set(tree.paths[1])
    assert [bounds[node + 1] - bounds[node] for node in shared] == [3]
    for sequence in sequences:
        sequence.release()


@torch.inference_mode()
def test_a_donor_that_is_decoded_too_shares_its_own_tokens() -> None:
    executor, _ = donor_in("llama")
    alone = KVSequence(executor.pool, lay_out(full_plan(DONOR)), NOTHING, room=STEPS)
    executor.forward(alone, DONOR, np.arange(len(DONOR)))
    also = KVSequence(executor.pool, lay_out(full_plan(DONOR)), NOTHING, room=STEPS)
    executor.forward(also, DONOR, np.arange(len(DONOR)))
    reader = reading(executor, also, [(0, 0, run_of(also))])
    executor.forward(reader, DONOR[:1], reader.own[1])
    ids = DONOR[:2]
    expected = executor.forward(alone, ids[:1], alone.append(1)).logits
    positions = np.concatenate([also.append(1), reader.append(1)])
    got = executor.decode([also, reader], ids, positions)
    assert float((got[0] - expected[0]).abs().max()) <= LIMIT
    for sequence in (alone, also, reader):
        sequence.release()


def test_pages_that_lie_apart_are_one_node_of_their_only_reader() -> None:
    executor, donor = donor_in("llama")
    layout = Layout(
        tuple(
            Segment(int(slot), np.array([at]), 0)
            for at, slot in enumerate(donor.own[0][::PAGE].tolist())
        ),
        np.array([len(donor.own[0][::PAGE])]),
        NOTHING,
        NOTHING,
        NOTHING,
    )
    sequence = KVSequence(executor.pool, layout, executor.pool.pages_of(donor.own[0]), room=1)
    tree = key_tree([sequence])
    sequence.release()
    assert tree.n_nodes == 1
    assert len(tree.slots) == sequence.length
