"""When measured divergence steps reuse down."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from semshare import Divergence, Provenance, ReusePolicy
from semshare.config import ReuseMode
from semshare.planning.monitor import (
    CLEAN_BEFORE_UP,
    REMEMBERED,
    DivergenceMonitor,
    is_stepped_down,
)


def observe(monitor: DivergenceMonitor, mode: ReuseMode, kl: float, namespace: str = "n") -> bool:
    nothing = np.zeros(1, np.int32)
    provenance = Provenance(
        source=np.zeros(1, np.uint8),
        donors=(),
        donor=nothing,
        donor_position=nothing,
        compute_fraction=1.0,
        exact=False,
        mode=mode,
    )
    return monitor.observe(namespace, provenance, Divergence(kl=kl, top1=1.0, tokens=1))


def mode(monitor: DivergenceMonitor, limit: float | None, start: ReuseMode = "semantic") -> str:
    return monitor.mode_for(ReusePolicy(mode=start, max_divergence=limit), "n")


def test_steps_down_one_mode_at_a_time_to_what_is_lossless() -> None:
    monitor = DivergenceMonitor()
    assert mode(monitor, 0.0) == "semantic"
    observe(monitor, "semantic", 0.5)
    assert mode(monitor, 0.4) == "span"
    assert mode(monitor, 0.5) == "semantic"  # at the bound is not above it
    assert mode(monitor, None) == "semantic"
    observe(monitor, "span", 0.45)
    assert mode(monitor, 0.4) == "prefix"
    assert mode(monitor, 0.47) == "span"
    assert mode(monitor, 0.0, "prefix") == "prefix"
    assert mode(monitor, 0.0, "off") == "off"


def test_the_mean_of_the_latest_steps_down() -> None:
    assert not is_stepped_down([0.0, 1.0], bound=0.5)  # the mean is at the bound
    assert is_stepped_down([0.0, 1.0], bound=0.49)
    # The seventeenth measurement from the end no longer counts, the sixteenth does.
    assert not is_stepped_down([0.0, *[1.0] * 8, *[0.0] * 8], bound=0.5)
    assert is_stepped_down([0.0, *[1.0] * 9, *[0.0] * 7], bound=0.5)


def test_eight_in_a_row_within_the_bound_step_up() -> None:
    assert is_stepped_down([1.0, *[0.5] * 7], bound=0.5)
    assert not is_stepped_down([1.0, *[0.5] * 8], bound=0.5)
    assert is_stepped_down([1.0, *[0.5] * 7, 0.6, *[0.5] * 7], bound=0.5)
    assert not is_stepped_down([1.0, *[0.5] * 7, 0.6, *[0.5] * 8], bound=0.5)


def test_what_was_before_the_clean_ones_is_forgotten() -> None:
    # With the 100 the mean of 9 would be 11; of the clean eight and 4.5 it is 0.5.
    assert not is_stepped_down([100.0, *[0.0] * 8, 4.5], bound=0.5)
    assert is_stepped_down([100.0, *[0.0] * 8, 4.6], bound=0.5)


def test_a_divergence_that_is_not_a_number_is_above_every_bound() -> None:
    assert is_stepped_down([math.nan], bound=1e9)
    assert is_stepped_down([1.0, *[0.0] * 7, math.nan, *[0.0] * 7], bound=0.5)
    assert not is_stepped_down([math.nan, *[0.0] * 8], bound=0.5)


def reference(measured: list[float], bound: float) -> bool:
    """The rule, told in stretches: up from `start` on, then down until eight clean ones end."""
    start, at = 0, 0
    while True:
        ends = range(at, len(measured))
        parts = ((end, measured[max(start, end - 15) : end + 1]) for end in ends)
        down = next((end for end, part in parts if sum(part) > bound * len(part)), None)
        if down is None:
            return False
        runs = range(down + 8, len(measured))
        up = next((end for end in runs if max(measured[end - 7 : end + 1]) <= bound), None)
        if up is None:
            return True
        start, at = up - 7, up + 1


# Eighths, so that sums and means are exact.
EIGHTHS = st.integers(0, 24).map(lambda eighths: eighths / 8)
# Clean ones come in runs, or nothing would ever step up.
MEASURED = st.lists(
    st.one_of(st.lists(EIGHTHS, max_size=3), st.lists(st.just(0.125), min_size=5, max_size=12)),
    max_size=10,
).map(lambda parts: [divergence for part in parts for divergence in part])


@given(MEASURED, EIGHTHS)
def test_steps_as_the_reference_does(measured: list[float], bound: float) -> None:
    assert is_stepped_down(measured, bound) == reference(measured, bound)


@given(MEASURED, EIGHTHS)
def test_a_step_down_lasts_and_ends(measured: list[float], bound: float) -> None:
    states = [is_stepped_down(measured[:end], bound) for end in range(len(measured) + 1)]
    steps = [end for end in range(1, len(states)) if states[end] != states[end - 1]]
    for down, up in zip(steps[::2], steps[1::2], strict=False):
        assert up - down >= CLEAN_BEFORE_UP
    assert not is_stepped_down([*measured, *[bound] * CLEAN_BEFORE_UP], bound) or not states[-1]


@given(MEASURED, MEASURED, EIGHTHS)
def test_only_the_latest_are_remembered(
    old: list[float], measured: list[float], bound: float
) -> None:
    monitor = DivergenceMonitor()
    for divergence in [*old, *measured]:
        observe(monitor, "semantic", divergence)
    seen = [*old, *measured][-REMEMBERED:]
    expected = is_stepped_down(seen, bound, cut=len(seen) == REMEMBERED)
    assert mode(monitor, bound) == ("span" if expected else "semantic")


def test_what_is_no_longer_remembered_does_not_make_it_flap() -> None:
    monitor = DivergenceMonitor()
    for divergence in [*[0.0] * 16, *[*[0.0] * 7, 0.3] * 12]:  # any 16 have a mean of 0.0375
        observe(monitor, "semantic", divergence)
        assert mode(monitor, 0.1) == "semantic"


def test_the_default_bound_is_of_policies_without_one() -> None:
    monitor = DivergenceMonitor(default_bound=0.5)
    observe(monitor, "semantic", 0.75)
    assert mode(monitor, None) == "span"
    assert mode(monitor, 1.0) == "semantic"
    assert mode(monitor, math.inf) == "semantic"
    assert monitor.bound_of(ReusePolicy()) == 0.5
    assert monitor.bound_of(ReusePolicy(max_divergence=0.0)) == 0.0
    assert monitor.bound_of(ReusePolicy(max_divergence=math.inf)) is None


def test_namespaces_are_apart_and_reset_alone() -> None:
    monitor = DivergenceMonitor()
    observe(monitor, "semantic", 1.0, namespace="other")
    assert mode(monitor, 0.1) == "semantic"
    observe(monitor, "semantic", 1.0)
    monitor.reset("n")
    assert mode(monitor, 0.1) == "semantic"
    assert monitor.mode_for(ReusePolicy(max_divergence=0.1), "other") == "span"
