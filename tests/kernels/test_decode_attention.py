"""Decode over any tree equals decode of each sequence by itself."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from attention_cases import CPU, LIMITS, Rope, as_with_amx, in_torch, largest_error, poisoned_pool
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from properties import examples
from torch import Tensor

from semshare_kernels import AttentionShape, KeyTable, KeyTree, decode_attention, plan_decode
from semshare_kernels.decode import DecodePlan, cpu, gpu, reference
from semshare_kernels.decode.plan import sharing_pays
from semshare_kernels.decode.tree import Links
from semshare_kernels.tiles import cpu as tiles
from semshare_kernels.tiles.cpu import CpuTiles


@dataclass(repr=False)
class TreeCase:
    """Sequences over a tree of nodes in a poisoned pool."""

    q_pos: NDArray[np.int64]
    tree: KeyTree
    query: Tensor  # [n_sequences, heads, d], not rotated
    keys: Tensor
    values: Tensor
    window: int | None
    shape: AttentionShape

    @property
    def rope(self) -> Rope:
        return Rope(self.shape.head_dim // 2 * 2)

    def decoded(self, plan: DecodePlan) -> tuple[Tensor, Tensor]:
        rows = self.query[torch.from_numpy(plan.row_sequence)].float()
        at = self.q_pos[plan.row_sequence] - plan.row_shift
        turned = self.rope.turned(rows, at).to(self.query.dtype)
        return decode_attention(plan, turned, self.keys, self.values, self.shape.head_dim**-0.5)

    def one_by_one(self) -> tuple[Tensor, Tensor]:
        def moved(keys: Tensor, table: KeyTable) -> Tensor:
            return self.rope.turned(keys.float(), table.shifts)

        upright = self.rope.turned(self.query.float(), self.q_pos).to(self.query.dtype)
        scale = self.shape.head_dim**-0.5
        return reference.decode_attention(
            self.q_pos, self.tree, upright, self.keys, self.values, scale, self.window, moved
        )


def tree_case(
    seed: int,
    *,
    sequences: int,
    nodes: int,
    node_keys: int,
    shifted: bool = True,
    scattered: bool = False,
    heads: tuple[int, int] = (2, 2),
    head_dim: int = 16,
    window: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> TreeCase:
    """Sequences that end in a node of their own, under random nodes of a random tree.

    Args:
        seed: of everything random.
        sequences, nodes: how many; a node may have no reader.
        node_keys: most keys of a node; it may have none.
        shifted: sequences have a node at different positions.
        scattered: the slots of a node lie anywhere.
        heads: KV heads, and query heads a KV head.
        head_dim, window, dtype: of the attention.

    """
    rng = np.random.default_rng(seed)
    parent = [int(rng.integers(-1, node)) for node in range(nodes)]
    lengths = [*rng.integers(0, node_keys + 1, size=nodes), *rng.integers(1, 4, size=sequences)]
    starts = np.concatenate(([0], np.cumsum(lengths))).astype(np.int64)
    stored_at = np.concatenate(
        [rng.integers(0, 50) + np.arange(length) for length in lengths]
    ).astype(np.int64)
    paths, shifts, q_pos = [], [], []
    for sequence in range(sequences):
        path = []
        node = int(rng.integers(-1, nodes))
        while node >= 0:
            path.append(node)
            node = parent[node]
        path = [*reversed(path), nodes + sequence]
        at, shift = 0, []
        for node in path:
            first = int(stored_at[starts[node]]) if lengths[node] else 0
            own = node >= nodes
            if shifted and not own:
                at += int(rng.integers(0, 30))
            shift.append(at - first)
            at += int(lengths[node])
        if not shifted:  # all stand where they were stored, one after the other or not
            shift = [0] * len(path)
            at = int(max(stored_at[starts[n + 1] - 1] for n in path if lengths[n])) + 1
        paths.append(np.array(path, np.int64))
        shifts.append(np.array(shift, np.int64))
        q_pos.append(at - 1)
    n_keys = int(starts[-1])
    slots = np.arange(n_keys) + 5 * np.repeat(np.arange(len(lengths)), lengths) + 2
    if scattered:
        slots = rng.permutation(3 * n_keys)[:n_keys]
    kv_heads, group = heads
    shape = AttentionShape(kv_heads * group, kv_heads, head_dim, dtype, CPU)
    keys, values = poisoned_pool(rng, slots.astype(np.int64), shape)
    query = rng.standard_normal((sequences, shape.heads, head_dim))
    return TreeCase(
        np.array(q_pos, np.int64),
        KeyTree(slots.astype(np.int64), stored_at, starts, tuple(paths), tuple(shifts)),
        torch.from_numpy(query).to(dtype),
        keys,
        values,
        window,
        shape,
    )


cases = st.builds(
    tree_case,
    st.integers(0, 2**32 - 1),
    sequences=st.integers(1, 9),
    nodes=st.integers(0, 6),
    node_keys=st.sampled_from([1, 5, 40, 130]),
    shifted=st.booleans(),
    scattered=st.booleans(),
    heads=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    window=st.one_of(st.none(), st.integers(1, 60)),
)


def plan_on_cpu(case: TreeCase) -> DecodePlan:
    return plan_decode(case.q_pos, case.tree, window=case.window, shape=case.shape)


def plan_in_tiles(case: TreeCase) -> DecodePlan:
    return gpu.plan_for_gpu(case.q_pos, case.tree, case.window, case.shape)


def assert_right(case: TreeCase, plan: DecodePlan) -> None:
    out, lse = case.decoded(plan)
    expected, expected_lse = case.one_by_one()
    assert out.dtype == case.shape.dtype
    assert lse.dtype == torch.float32
    assert largest_error(out, expected) <= LIMITS[case.shape.dtype]
    assert largest_error(lse, expected_lse) <= 2 * LIMITS[case.shape.dtype]


@pytest.mark.parametrize("run_by", [nullcontext, in_torch, as_with_amx])
@examples(120)
@given(
    case=cases,
    call_bytes=st.sampled_from([0, 2000, 1 << 40]),
    part_keys=st.sampled_from([1, 7, 256]),
    few_rows=st.sampled_from([0, 4, 100]),
    state_bytes=st.sampled_from([0, 1 << 16]),
)
def test_cpu_equals_each_sequence_by_itself(
    run_by: Callable[[], AbstractContextManager[None]],
    case: TreeCase,
    call_bytes: int,
    part_keys: int,
    few_rows: int,
    state_bytes: int,
) -> None:
    """Whatever is shared, however it is cut, with the loops in C and without."""
    with (
        mock.patch.object(cpu, "CALL_BYTES", call_bytes),
        mock.patch.object(tiles, "MIN_PART_KEYS", part_keys),
        mock.patch.object(tiles, "FEW_ROWS", few_rows),
        mock.patch.object(tiles, "STATE_BYTES", state_bytes),
        mock.patch.object(tiles, "TORCH_KEYS", part_keys),
        run_by(),
    ):
        assert_right(case, plan_on_cpu(case))


@examples(20)
@given(cases, st.sampled_from([0, 1 << 40]), st.sampled_from([1, 1000]))
def test_triton_equals_each_sequence_by_itself(
    case: TreeCase, call_bytes: int, part_blocks: int
) -> None:
    with (
        mock.patch.object(gpu, "CALL_BYTES", call_bytes),
        mock.patch("semshare_kernels.tiles.launch._MIN_PART_BLOCKS", part_blocks),
        mock.patch("semshare_kernels.tiles.launch._TILES_A_UNIT", 1000 // part_blocks),
    ):
        assert_right(case, plan_in_tiles(case))


TILE_DTYPES = [torch.float32, torch.float16]


@pytest.mark.parametrize("head_dim", [64, 80, 96, 128, 256])
@pytest.mark.parametrize(
    ("plan", "dtype"),
    [(plan_on_cpu, dtype) for dtype in LIMITS] + [(plan_in_tiles, dtype) for dtype in TILE_DTYPES],
)
def test_head_sizes_and_dtypes(plan: Any, dtype: torch.dtype, head_dim: int) -> None:
    case = tree_case(
        4, sequences=5, nodes=2, node_keys=60, head_dim=head_dim, heads=(2, 3), dtype=dtype
    )
    assert_right(case, plan(case))


@pytest.mark.parametrize("plan", [plan_on_cpu, plan_in_tiles])
@pytest.mark.parametrize("node_keys", [63, 65, 80])
@pytest.mark.parametrize("sequences", [1, 17, 33])
def test_odd_shapes(plan: Any, node_keys: int, sequences: int) -> None:
    case = tree_case(
        node_keys, sequences=sequences, nodes=1, node_keys=node_keys, heads=(1, 3), head_dim=64
    )
    assert_right(case, plan(case))


def test_a_long_node_of_many_sequences_is_read_once_and_a_short_one_by_each() -> None:
    case = tree_case(2, sequences=8, nodes=0, node_keys=1, heads=(3, 3), head_dim=64)
    own = len(case.tree.slots)
    for length, read in ((1000, 1000 + own), (3, 8 * 3 + own)):
        plan = plan_decode(
            case.q_pos + length,
            KeyTree(
                np.concatenate((np.arange(length) + 100, case.tree.slots)),
                np.concatenate((np.arange(length), case.tree.stored_at)),
                np.concatenate(([0], case.tree.node_start + length)),
                tuple(np.concatenate(([0], path + 1)) for path in case.tree.paths),
                tuple(np.concatenate(([0], shift)) for shift in case.tree.shifts),
            ),
            window=None,
            shape=case.shape,
        )
        assert isinstance(plan.tiles, CpuTiles)
        items = plan.tiles.program.items
        assert int((items.stop - items.start).sum()) == read


@pytest.mark.parametrize("kv_heads", [1, 3, 32])
@pytest.mark.parametrize("sequences", [1, 40])
def test_tasks_have_each_head_of_each_tile_once(sequences: int, kv_heads: int) -> None:
    case = tree_case(
        3, sequences=sequences, nodes=2, node_keys=900, heads=(kv_heads, 3), head_dim=16
    )
    plan = plan_on_cpu(case)
    assert isinstance(plan.tiles, CpuTiles)
    work, n_tiles = plan.tiles.work.arrays, len(plan.tiles.program.tile_rows)
    count = np.zeros((n_tiles, kv_heads), int)
    for tile, head, heads in zip(
        work["task_tile"], work["task_head"], work["task_heads"], strict=True
    ):
        count[tile, head : head + heads] += 1
    assert (count == 1).all()


def test_sharing_never_pays_for_one_reader_and_pays_more_for_more() -> None:
    shape = AttentionShape(9, 3, 64, torch.float32, CPU)
    readers = np.arange(1, 65)
    node = np.repeat(np.arange(64), readers)
    tree = KeyTree(np.arange(64 * 500), np.arange(64 * 500), 500 * np.arange(65), (), ())
    links = Links(np.zeros_like(node), node, np.zeros_like(node))
    pays = sharing_pays(tree, links, shape, call_bytes=300_000)
    assert not pays[0]
    assert pays[-1]
    assert (np.diff(pays.astype(int)) >= 0).all()
