"""When measured divergence steps reuse down."""

from __future__ import annotations

import numpy as np

from semshare import Divergence, Provenance, ReusePolicy
from semshare.config import ReuseMode
from semshare.planning.monitor import DivergenceMonitor


def observe(monitor: DivergenceMonitor, mode: ReuseMode, kl: float, namespace: str = "n") -> None:
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
    monitor.observe(namespace, provenance, Divergence(kl=kl, top1=1.0, tokens=1))


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


def test_the_mean_of_the_latest_counts() -> None:
    monitor = DivergenceMonitor()
    observe(monitor, "semantic", 1.0)
    observe(monitor, "semantic", 0.0)
    assert mode(monitor, 0.5) == "semantic"
    assert mode(monitor, 0.49) == "span"
    for _ in range(16):
        observe(monitor, "semantic", 0.1)
    assert mode(monitor, 0.11) == "semantic"


def test_namespaces_are_apart_and_reset_alone() -> None:
    monitor = DivergenceMonitor()
    observe(monitor, "semantic", 1.0, namespace="other")
    assert mode(monitor, 0.1) == "semantic"
    observe(monitor, "semantic", 1.0)
    monitor.reset("n")
    assert mode(monitor, 0.1) == "semantic"
    assert monitor.mode_for(ReusePolicy(max_divergence=0.1), "other") == "span"
