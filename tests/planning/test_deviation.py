"""The deviation schedule and its choice of rows, by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from properties import examples

from semshare.planning.deviation import keep_most_deviating, schedule_of, shrinking_schedule
from semshare.types import DeviationSchedule


def positions(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


@examples(100)
@given(st.integers(1, 40), st.integers(1, 32), st.integers(1, 60))
def test_schedules_start_full_only_shrink_and_spend_the_budget(
    n: int, n_layers: int, budget: int
) -> None:
    schedule = shrinking_schedule(np.arange(n, dtype=np.int32), n_layers, budget)
    assert len(schedule.keep) == n_layers
    assert schedule.keep[0] == n
    assert all(a >= b > 0 for a, b in zip(schedule.keep, schedule.keep[1:], strict=False))
    if n_layers > 2 and 1.5 * budget <= n:
        assert budget <= np.mean(schedule.keep[1:]) < budget + 1


def test_a_schedule_by_hand() -> None:
    schedule = shrinking_schedule(np.arange(50, dtype=np.int32), 6, 10)
    assert schedule.keep == (50, 15, 13, 10, 8, 5)  # 15, 12.5, 10, 7.5, 5 rounded up


def test_any_sizes_make_a_schedule_rounded_up_and_never_more_than_there_are() -> None:
    candidates = np.array([3, 4, 8, 9, 11], np.int32)
    schedule = schedule_of(candidates, np.array([7.0, 2.1, 2.0, 0.0]))
    assert schedule.keep == (5, 5, 3, 2, 0)
    np.testing.assert_array_equal(schedule.candidates, candidates)


# Rows at 3, 5, 6, 8; those at 5, 6 and 8 are candidates.
SCHEDULE = DeviationSchedule((3, 2, 1, 0), np.array([5, 6, 8], np.int32))


def kept(layer: int, key: list[float], value: list[float]) -> list[int] | None:
    """Rows kept where the computed key and value differ from zero by these amounts."""
    computed_key = torch.zeros(4, 2, 3)
    computed_key[:, 1, 2] = torch.tensor(key)
    computed_value = torch.zeros(4, 2, 3)
    computed_value[:, 0, 0] = torch.tensor(value)
    reused = torch.zeros(4, 2, 3)
    rows = keep_most_deviating(
        SCHEDULE, layer, positions(3, 5, 6, 8), computed_key, computed_value, reused, reused
    )
    return None if rows is None else rows.tolist()


def test_the_most_deviating_candidates_stay_with_all_other_rows() -> None:
    assert kept(1, [0, 1, 5, 3], [0, 0, 0, 0]) == [0, 2, 3]
    assert kept(2, [0, 1, 5, 3], [0, 0, 0, 0]) == [0, 2]
    assert kept(3, [0, 1, 5, 3], [0, 0, 0, 0]) == [0]


def test_keys_and_values_both_count_by_their_squares() -> None:
    assert kept(2, [0, 3, 0, -4], [0, 3, 0, 0]) == [0, 1]  # 9 + 9 against 16


def test_rows_that_are_no_candidates_take_no_place() -> None:
    assert kept(1, [100, 1, 5, 3], [100, 0, 0, 0]) == [0, 2, 3]


def test_none_where_all_may_stay() -> None:
    assert kept(0, [0, 1, 5, 3], [0, 0, 0, 0]) is None


def test_bfloat16_differences_are_taken_in_float32() -> None:
    key = torch.tensor([256.0, 257.0], dtype=torch.float32)[:, None, None].bfloat16()
    zero = torch.zeros(2, 1, 1, dtype=torch.bfloat16)
    schedule = DeviationSchedule((1,), np.array([0, 1], np.int32))
    # As bfloat16 the squares 65,536 and 66,049 would be the same number.
    rows = keep_most_deviating(schedule, 0, positions(0, 1), key + 2, zero, zero + 2, zero)
    assert rows is not None
    assert len(rows) == 1


def test_unknown_layers_are_refused() -> None:
    with pytest.raises(IndexError):
        kept(4, [0, 1, 5, 3], [0, 0, 0, 0])
