"""What /metrics tells of the tiers below the KV pool."""

from __future__ import annotations

import re
from collections.abc import Iterator

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from semshare.types import StorageUse

_PREFIX = "semshare:"
_WHOLE = {  # of `StorageUse.counters`, by name of the metric
    "tier_loads": ("loads", "donors' parts brought back into the pool for requests"),
    "tier_loaded_tokens": ("loaded_tokens", "tokens whose KV they held"),
    "donors_demoted": ("donors_demoted", "donors that left the pool and stay in a tier"),
    "donors_promoted": ("donors_promoted", "donors read again that were put into faster tiers"),
    "donors_written": ("donors_written", "donors put into at least one tier"),
    "donors_unwritten": ("too_late", "donors gone before it was their turn to be written"),
}
_BY_TIER = {  # of the same, which end with the tier's name
    "tier_chunks_read": ("chunks_read", "chunks of donors' KV read, by tier"),
    "tier_full": ("full", "donors that a tier had no room for"),
    "tier_unavailable": ("unavailable", "calls that a tier did not answer"),
}
_OF_TIERS = {  # of `TierUse.counts`
    "tier_quarantined": ("quarantined", "donors whose stored KV turned out to be broken"),
    "tier_evictions": ("evictions", "donors dropped from a tier for others"),
    "tier_read_bytes": ("bytes_read", "stored KV read, by tier"),
    "tier_written_bytes": ("bytes_written", "stored KV written, by tier"),
}
# Of counters of loads that failed; others are told, by their error's class, once they occur.
_REASONS = {
    "loads_failed:TooLate": "timeout",
    "loads_failed:NotStored": "not_stored",
    "loads_failed:TierUnavailable": "tier_unavailable",
    "loads_without_room": "pool_exhausted",
}


def storage_families(use: StorageUse) -> Iterator[Metric]:
    """Of the process's storage as it stands, with zeros for what has not happened yet."""
    held = GaugeMetricFamily(
        f"{_PREFIX}tier_bytes",
        "donors below the pool by tier: used, and the budget",
        labels=["tier", "state"],
    )
    for tier in use.tiers:
        if tier.used_bytes is not None:
            held.add_metric([tier.name, "used"], tier.used_bytes)
        held.add_metric([tier.name, "budget"], tier.budget_bytes)
    yield held
    yield GaugeMetricFamily(
        f"{_PREFIX}storage_jobs_waiting",
        "writes behind requests that are not done yet",
        value=use.waiting,
    )
    for name, (counter, help_) in _WHOLE.items():
        whole = CounterMetricFamily(_PREFIX + name, help_)
        whole.add_metric([], use.counters.get(counter, 0))
        yield whole
    for name, (counter, help_) in _BY_TIER.items():
        by_tier = CounterMetricFamily(_PREFIX + name, help_, labels=["tier"])
        for tier in use.tiers:
            by_tier.add_metric([tier.name], use.counters.get(f"{counter}:{tier.name}", 0))
        yield by_tier
    for name, (counter, help_) in _OF_TIERS.items():
        of_tiers = CounterMetricFamily(_PREFIX + name, help_, labels=["tier"])
        for tier in use.tiers:
            of_tiers.add_metric([tier.name], tier.counts.get(counter, 0))
        yield of_tiers
    failures = CounterMetricFamily(
        f"{_PREFIX}tier_load_failures",
        "loads that failed, so that the request was computed, by reason",
        labels=["reason"],
    )
    for reason, n in _failures(use).items():
        failures.add_metric([reason], n)
    yield failures


def _failures(use: StorageUse) -> dict[str, int]:
    found = {reason: use.counters.get(name, 0) for name, reason in _REASONS.items()}
    for name in use.counters.keys() - _REASONS.keys():
        event, _, error = name.partition(":")
        if event == "loads_failed":
            found[re.sub(r"(?<!^)(?=[A-Z])", "_", error).lower()] = use.counters[name]
    return found
