"""Mixed attention, on the CPU and in Triton's interpreter, against dense attention."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from attention_cases import LIMITS, MixedCase, as_with_amx, in_torch, largest_error, mixed_case
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray
from properties import examples

from semshare_kernels import attention_mass, mixed_attention, native, plan_mixed
from semshare_kernels.key_table import rows_at
from semshare_kernels.mixed import MixedPlan, gpu, mass, reference
from semshare_kernels.mixed import plan as plan_module
from semshare_kernels.mixed.cpu import WholePrompt
from semshare_kernels.rotary import rotated
from semshare_kernels.tiles import cpu as tiles

cases = st.builds(
    mixed_case,
    st.integers(0, 2**32 - 1),
    n=st.one_of(st.integers(1, 12), st.integers(13, 90)),
    query_share=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    runs=st.integers(1, 5),
    scattered=st.booleans(),
    heads=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    head_dim=st.sampled_from([16, 62, 64]),
    window=st.one_of(st.none(), st.integers(1, 120)),
    rope=st.booleans(),
    partial=st.booleans(),
)


@contextmanager
def cut_small(rows: int = 8, part_keys: int = 20) -> Iterator[None]:
    """Small tiles and parts, so that small cases have many of each."""
    with (
        mock.patch.object(native, "MAX_ROWS", rows),
        mock.patch.object(tiles, "TORCH_ROWS", rows),
        mock.patch.object(tiles, "TORCH_KEYS", part_keys),
        mock.patch.object(tiles, "MIN_PART_KEYS", part_keys),
        mock.patch.object(plan_module, "MIN_KEYS_A_SHIFT", 8),
        mock.patch.object(mass, "PART_KEYS", part_keys),
    ):
        yield


def plan_on_cpu(case: MixedCase) -> MixedPlan:
    return plan_mixed(case.q_pos, case.keys_of, window=case.window, shape=case.shape)


def plan_in_tiles(case: MixedCase) -> MixedPlan:
    return gpu.plan_for_gpu(case.q_pos, case.keys_of, case.window, case.shape)


def assert_right(case: MixedCase, plan: MixedPlan) -> None:
    out, lse = mixed_attention(
        plan,
        case.queries(plan.shifts).contiguous(),
        case.keys,
        case.values,
        case.scale,
        case.turn(plan.turned_shifts),
    )
    upright = case.queries(np.zeros(1, np.int64))[0]
    rotation = case.turn(case.keys_of.shifts)
    expected = reference.mixed_attention(
        case.q_pos, case.keys_of, upright, case.keys, case.values, case.scale, case.window, rotation
    )
    assert out.dtype == case.shape.dtype
    assert lse.dtype == torch.float32
    limit = LIMITS[case.shape.dtype]
    assert largest_error(out, expected[0]) <= limit
    assert largest_error(lse, expected[1]) <= 2 * limit


@pytest.mark.parametrize("run_by", [nullcontext, in_torch, as_with_amx])
@examples(150)
@given(case=cases, rows=st.sampled_from([1, 3, 8, 64]), part_keys=st.sampled_from([1, 3, 20, 1000]))
def test_cpu_equals_dense_attention_over_the_gathered_sequence(
    run_by: Callable[[], AbstractContextManager[None]], case: MixedCase, rows: int, part_keys: int
) -> None:
    with run_by(), cut_small(rows, part_keys):
        assert_right(case, plan_on_cpu(case))


@examples(25)
@given(cases, st.sampled_from([1, 2, 1000]))
def test_triton_equals_dense_attention_over_the_gathered_sequence(
    case: MixedCase, part_blocks: int
) -> None:
    with (
        mock.patch("semshare_kernels.tiles.launch._MIN_PART_BLOCKS", part_blocks),
        mock.patch.object(plan_module, "MIN_KEYS_A_SHIFT", 8),
        mock.patch("semshare_kernels.tiles.launch._TILES_A_UNIT", 1000 // part_blocks),
    ):
        assert_right(case, plan_in_tiles(case))


@pytest.mark.parametrize("plan", [plan_on_cpu, plan_in_tiles])
@pytest.mark.parametrize("head_dim", [64, 80, 96, 128, 256])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_head_sizes_and_dtypes(plan: Any, head_dim: int, dtype: torch.dtype) -> None:
    if plan is plan_in_tiles and dtype == torch.bfloat16:
        pytest.skip("Triton's interpreter does not multiply bfloat16")
    case = mixed_case(
        3, n=70, head_dim=head_dim, heads=(2, 3), window=50, dtype=dtype, query_share=0.2
    )
    assert_right(case, plan(case))


@pytest.mark.parametrize("plan", [plan_on_cpu, plan_in_tiles])
@pytest.mark.parametrize("n", [1, 63, 64, 65, 80])
@pytest.mark.parametrize("changes", [{"query_share": 1.0}, {"query_share": 0.0}, {"runs": 9}])
@pytest.mark.parametrize("group", [1, 3, 7])
def test_odd_shapes(plan: Any, n: int, changes: dict[str, Any], group: int) -> None:
    case = mixed_case(n, n=n, heads=(1, group), scattered=group == 3, **changes)
    assert_right(case, plan(case))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("part_blocks", [1, 3])
def test_tiles_cut_inside_a_block_of_keys_see_no_keys_past_the_cut(
    part_blocks: int, seed: int
) -> None:
    """Items of two segments end anywhere, so that a part of a tile ends inside a block of keys."""
    case = mixed_case(seed, n=400, query_share=0.0, runs=3, heads=(1, 1))  # one query sees them
    with (
        mock.patch("semshare_kernels.tiles.launch._MIN_PART_BLOCKS", part_blocks),
        mock.patch("semshare_kernels.tiles.launch._TILES_A_UNIT", 1000),
    ):
        plan = plan_in_tiles(case)
    items, block = plan.tiles.program.items, plan.tiles.config.block_n
    assert ((items.stop - items.start) % block > 0).any()
    assert_right(case, plan)


def test_a_group_that_no_tile_holds_is_refused() -> None:
    case = mixed_case(1, n=5, heads=(1, 40), head_dim=128)
    with pytest.raises(ValueError, match="40 query heads share a KV head"):
        plan_in_tiles(case)


@pytest.mark.parametrize("plan", [plan_on_cpu, plan_in_tiles])
def test_a_row_whose_first_keys_are_all_hidden_is_right(plan: Any) -> None:
    """The window of the last rows lies past many whole blocks of keys."""
    case = mixed_case(5, n=200, query_share=0.4, window=9, runs=2)
    assert_right(case, plan(case))


@pytest.mark.parametrize("plan_for", [plan_on_cpu, plan_in_tiles])
@examples(40)
@given(case=cases)
def test_each_visible_pair_is_in_exactly_one_tile(plan_for: Any, case: MixedCase) -> None:
    with cut_small():
        plan = plan_for(case)
    assume(not isinstance(plan.tiles, WholePrompt))
    table, program, n_q = plan.by_shift.table, plan.tiles.program, len(case.q_pos)
    count = np.zeros((n_q, len(table)), dtype=int)
    seen = reference.visible(
        torch.from_numpy(case.q_pos), torch.from_numpy(table.positions), case.window
    ).numpy()
    for tile, rows in enumerate(program.tile_rows):
        for item in range(program.tile_items[tile], program.tile_items[tile + 1]):
            start, stop = program.items.start[item], program.items.stop[item]
            first = program.items.query[item] % n_q
            part = seen[first : first + rows, start:stop]
            assert case.window is not None or part.any(), "an item nobody sees"
            assert part[:, : max(program.items.seen[item] - start, 0)].all()
            count[first : first + rows, start:stop] += part
    np.testing.assert_array_equal(count, seen.astype(int))


@pytest.mark.parametrize("plan", [plan_on_cpu, plan_in_tiles])
@examples(40)
@given(case=cases, scores=st.sampled_from([100, 1 << 26]), data=st.data())
def test_attention_mass_is_the_sum_of_probabilities(
    plan: Any, case: MixedCase, scores: int, data: st.DataObject
) -> None:
    n_q, heads, _ = case.query.shape
    first_query = data.draw(st.integers(0, n_q - 1))
    with cut_small(), mock.patch.object(mass, "MAX_SCORES", scores):
        cut = plan(case)
        queries, turn = case.queries(cut.shifts).contiguous(), case.turn(cut.turned_shifts)
        _, lse = mixed_attention(cut, queries, case.keys, case.values, case.scale, turn)
        got = attention_mass(
            cut, queries, case.keys, lse, case.scale, turn, first_query=first_query
        )
    counted = (n_q - first_query) * heads
    assert float(got.sum()) == pytest.approx(counted, rel=1e-4)
    table = case.keys_of
    key = case.keys[torch.from_numpy(table.slots)].float()
    rotation = case.turn(table.shifts)
    key = key if rotation is None else rotated(key, rotation)
    key = key.repeat_interleave(case.shape.group, dim=1)
    query = case.queries(np.zeros(1, np.int64))[0].float()
    logits = torch.einsum("qhd,khd->qhk", query, key) * case.scale
    visible = reference.visible(
        torch.from_numpy(case.q_pos), torch.from_numpy(table.positions), case.window
    )
    logits = logits.masked_fill(~visible[:, None], -torch.inf)
    expected = torch.softmax(logits, dim=-1)[first_query:].sum(dim=(0, 1))
    assert largest_error(got, expected) <= 1e-5 * counted


@pytest.mark.parametrize("scattered", [False, True])
def test_no_temporary_of_torch_is_as_large_as_the_gathered_sequence(scattered: bool) -> None:
    case = mixed_case(1, n=5000, query_share=0.02, runs=60, heads=(1, 1), scattered=scattered)
    gathered = []

    def noted(pool: torch.Tensor, slots: NDArray[np.int64]) -> torch.Tensor:
        rows = rows_at(pool, slots)
        if rows.untyped_storage().data_ptr() != pool.untyped_storage().data_ptr():
            gathered.append(len(slots))
        return rows

    with in_torch(), mock.patch.object(tiles, "rows_at", noted):
        assert_right(case, plan_on_cpu(case))
    assert gathered
    assert max(gathered) <= tiles.TORCH_KEYS < len(case.keys_of) / 4


@pytest.mark.parametrize("window", [None, 300, 299])
def test_a_prompt_of_which_nothing_is_reused_is_one_call(window: int | None) -> None:
    case = mixed_case(2, n=300, query_share=1.0, runs=1, window=window)
    plan = plan_on_cpu(case)
    reach = case.q_pos[-1] - case.q_pos[0]
    assert isinstance(plan.tiles, WholePrompt) == (window is None or reach < window)
    assert_right(case, plan)


@pytest.mark.parametrize("run_by", [nullcontext, in_torch])
def test_a_pool_may_have_more_elements_than_32_bits_count(
    run_by: Callable[[], AbstractContextManager[None]],
) -> None:
    case = mixed_case(1, n=40, heads=(1, 2), head_dim=64, dtype=torch.bfloat16)
    moved_by = 2**31 // 64 + 10  # slots; memory that nobody touches costs nothing
    pools = []
    for small in (case.keys, case.values):
        large = torch.empty((moved_by + len(small), 1, 64), dtype=small.dtype)
        large[moved_by:] = small
        pools.append(large)
    table = replace(case.keys_of, slots=case.keys_of.slots + moved_by)
    with run_by():
        far = replace(case, keys_of=table, keys=pools[0], values=pools[1])
        assert_right(far, plan_on_cpu(far))
