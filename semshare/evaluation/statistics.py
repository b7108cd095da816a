"""Means with paired bootstrap intervals (Efron, 1979): 95 %, by percentiles of 2,000 resamples.

Values are sorted before they are resampled, so that an interval does not depend on the order in
which examples were measured.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from semshare.errors import InvalidRequest

RESAMPLES = 2000
_PERCENTILES = (2.5, 97.5)

_Statistic: TypeAlias = Callable[[NDArray[np.float64]], NDArray[np.float64]]  # of columns' means


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean of n values; `low` and `high` bound its 95 % interval, None for one value."""

    mean: float
    low: float | None
    high: float | None
    n: int


def estimate(values: Sequence[float], *, seed: int = 0) -> Estimate:
    """The mean of some values, one an example.

    Raises:
        InvalidRequest: no values.

    """
    found = np.sort(np.asarray(values, dtype=np.float64))
    return _estimate(found[:, None], lambda means: means[..., 0], seed)


def paired_difference(
    values: Sequence[float], others: Sequence[float], *, seed: int = 0
) -> Estimate:
    """The mean of value − other, where both are of the same example.

    Raises:
        InvalidRequest: no values, or not as many of both.

    """
    _require_pairs(values, others)
    return estimate([a - b for a, b in zip(values, others, strict=True)], seed=seed)


def ratio_of_means(
    numerators: Sequence[float], denominators: Sequence[float], *, seed: int = 0
) -> Estimate | None:
    """Σ numerators / Σ denominators, examples resampled with both of theirs; PGR is one.

    None where the denominators add up to nothing or less: then more is not better any more.

    Raises:
        InvalidRequest: no values, or not as many of both.

    """
    _require_pairs(numerators, denominators)
    pairs = np.asarray(sorted(zip(numerators, denominators, strict=True)), dtype=np.float64)
    if len(pairs) and pairs[:, 1].mean() < 1e-9:
        return None
    return _estimate(pairs, lambda means: means[..., 0] / means[..., 1], seed)


def _estimate(values: NDArray[np.float64], statistic: _Statistic, seed: int) -> Estimate:
    n = len(values)
    if n == 0:
        raise InvalidRequest("there are no values to average")
    mean = float(statistic(values.mean(axis=0)))
    if n == 1:
        return Estimate(mean, None, None, 1)
    drawn = np.random.default_rng(seed).integers(n, size=(RESAMPLES, n))
    low, high = np.percentile(statistic(values[drawn].mean(axis=1)), _PERCENTILES)
    return Estimate(mean, float(low), float(high), n)


def _require_pairs(values: Sequence[float], others: Sequence[float]) -> None:
    if len(values) != len(others):
        raise InvalidRequest(f"{len(values)} values and {len(others)} others: they come in pairs")
