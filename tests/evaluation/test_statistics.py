import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from semshare import InvalidRequest
from semshare.evaluation.statistics import estimate, paired_difference, ratio_of_means

VALUES = st.lists(st.floats(-100, 100), min_size=2, max_size=12)


def test_an_interval_of_two_values_ends_at_them() -> None:
    # Half of all resamples are (a, b) in some order, a quarter each (a, a) and (b, b).
    found = estimate([1.0, 3.0])
    assert (found.mean, found.low, found.high, found.n) == (2.0, 1.0, 3.0, 2)


def test_one_value_has_no_interval() -> None:
    found = estimate([5.0])
    assert (found.mean, found.low, found.high) == (5.0, None, None)


@given(VALUES)
def test_the_interval_is_within_the_values_and_holds_no_order(values: list[float]) -> None:
    found = estimate(values)
    assert found.low is not None
    assert found.high is not None
    slack = 1e-9 * max(map(abs, values), default=0.0)
    assert min(values) - slack <= found.low <= found.high <= max(values) + slack
    other = estimate(values[::-1])
    assert (other.low, other.high) == (found.low, found.high)
    assert math.isclose(other.mean, found.mean, abs_tol=1e-9)


def test_the_interval_is_that_of_the_normal_distribution_where_values_are_many() -> None:
    values = np.random.default_rng(0).normal(10.0, 2.0, 400).tolist()
    found = estimate(values)
    assert found.low is not None
    assert found.high is not None
    half = 1.96 * float(np.std(values)) / math.sqrt(400)
    assert found.high - found.low == pytest.approx(2 * half, rel=0.1)


def test_pairs_take_out_what_examples_share() -> None:
    found = paired_difference([1.0, 101.0, 201.0], [0.0, 100.0, 200.0])
    assert (found.mean, found.low, found.high) == (1.0, 1.0, 1.0)
    with pytest.raises(InvalidRequest, match="1 values and 2 others"):
        paired_difference([1.0], [1.0, 2.0])


def test_a_ratio_is_of_the_means_and_not_the_mean_of_ratios() -> None:
    found = ratio_of_means([1.0, 9.0], [2.0, 10.0])
    assert found is not None
    assert found.mean == pytest.approx(10 / 12)
    assert (found.low, found.high) == (pytest.approx(0.5), pytest.approx(0.9))
    assert ratio_of_means([1.0, 1.0], [1.0, -1.0]) is None
    assert ratio_of_means([1.0, 1.0], [1.0, -2.0]) is None


def test_nothing_has_no_mean() -> None:
    with pytest.raises(InvalidRequest, match="no values"):
        estimate([])
