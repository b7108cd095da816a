"""Metrics for Prometheus, in a registry of their own, with names in the ecosystem's style.

Every sample with a label `tenant` is that tenant's; its values are the tenants of the settings, so
their number is bounded. All others are the process's, and for operators only.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, Metric, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from semshare.types import Divergence
from semshare_service.finished import METHODS, Finished
from semshare_service.observed import Answered
from semshare_service.pool_watch import PoolSnapshot
from semshare_service.shadow import ShadowCounts
from semshare_service.storage_metrics import storage_families
from semshare_service.tenants import Tenant
from semshare_service.worker import WorkerStatus

_PREFIX = "semshare:"
_TENANT = ("tenant",)
_LATENCY = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_PER_TOKEN = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
_SHARES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
_NATS = (0.0001, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3)
_REUSED = ("prefix", "span", "fuzzy")


class Metrics:
    """All that is counted since the start. Its methods are called on the event loop."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._queries = self._counter("prefix_cache_queries", "prompt tokens looked up")
        self._hits = self._counter("prefix_cache_hits", "prompt tokens of exact cached prefixes")
        self._reused = self._counter(
            "reused_tokens", "prompt tokens reused, by source: prefix, span, fuzzy", "source"
        )
        self._prompt_tokens = self._counter("prompt_tokens", "prompt tokens of answered requests")
        self._generated = self._counter("generation_tokens", "answer tokens of all choices")
        self._success = self._counter(
            "request_success", "answered requests: stop, length, deadline", "finished_reason"
        )
        self._fallbacks = self._counter(
            "fallbacks", "prompts computed in full because this stage of reuse failed", "reason"
        )
        self._compute = self._histogram(
            "compute_fraction", "share of a prompt's (token, layer) pairs computed", _SHARES
        )
        self._ttft = self._histogram(
            "time_to_first_token_seconds", "from arrival, queue included", _LATENCY
        )
        self._per_token = self._histogram(
            "time_per_output_token_seconds", "decode of a request, by token step", _PER_TOKEN
        )
        self._latency = self._histogram(
            "e2e_request_latency_seconds", "from arrival to the answer's end", _LATENCY
        )
        self._queued = self._histogram("request_queue_time_seconds", "wait for a turn", _LATENCY)
        self._divergence = self._histogram(
            "measured_divergence", "KL of reuse against full prefill, nats a token", _NATS, "mode"
        )
        self._http = Counter(
            f"{_PREFIX}http_requests",
            "HTTP requests; 499: the client left first",
            ("route", "method", "status"),
            registry=self._registry,
        )

    def observe_answer(self, event: Answered) -> None:
        """A `Service.listeners` entry: count one answer."""
        answer, tenant = event.answer, event.tenant.name
        counts, timings = answer.provenance.counts, answer.timings
        self._queries.labels(tenant).inc(answer.prompt_tokens)
        self._hits.labels(tenant).inc(counts["prefix"])
        for source in _REUSED:
            self._reused.labels(tenant, source).inc(counts[source])
        self._prompt_tokens.labels(tenant).inc(answer.prompt_tokens)
        self._generated.labels(tenant).inc(answer.completion_tokens)
        self._success.labels(tenant, answer.finish_reason).inc()
        if answer.provenance.fallback is not None:
            stage = answer.provenance.fallback.partition(":")[0]
            self._fallbacks.labels(tenant, stage).inc()
        self._compute.labels(tenant).observe(answer.provenance.compute_fraction)
        ttft_s = event.queue_s + timings.ttft_s
        self._ttft.labels(tenant).observe(ttft_s)
        # Choices are decoded side by side, so the longest one tells the number of steps; the
        # first token comes with the prefill.
        steps = max(len(one.token_ids) for one in answer.choices) - 1
        if steps > 0:
            self._per_token.labels(tenant).observe(timings.decode_s / steps)
        self._latency.labels(tenant).observe(ttft_s + timings.decode_s)
        self._queued.labels(tenant).observe(event.queue_s)

    def observe_request(self, finished: Finished) -> None:
        """Count one HTTP request."""
        method = finished.method if finished.method in METHODS else "other"
        self._http.labels(finished.route, method, str(finished.status)).inc()

    def observe_divergence(self, tenant: Tenant, mode: str, divergence: Divergence) -> None:
        """A `Shadow.on_divergence` entry: count one measurement. Any thread may call it."""
        self._divergence.labels(tenant.name, mode).observe(divergence.kl)

    def exposition(
        self,
        worker: WorkerStatus,
        pool: PoolSnapshot | None,
        shadow: ShadowCounts,
        *,
        tenant: str | None,
    ) -> bytes:
        """Prometheus' text form, 0.0.4. A `tenant` sees its own samples only; None sees all."""
        families = self._registry.collect()
        if tenant is None:
            return generate_latest(_Families([*families, *_present(worker, pool, shadow)]))
        return generate_latest(_Families(_of_tenant(families, tenant)))

    def _counter(self, name: str, help_: str, *labels: str) -> Counter:
        return Counter(_PREFIX + name, help_, (*_TENANT, *labels), registry=self._registry)

    def _histogram(
        self, name: str, help_: str, buckets: tuple[float, ...], *labels: str
    ) -> Histogram:
        return Histogram(
            _PREFIX + name,
            help_,
            (*_TENANT, *labels),
            buckets=buckets,
            registry=self._registry,
        )


class _Families:
    """Collected already, in the form `generate_latest` takes."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        """The families."""
        return self._families


def _of_tenant(families: Iterable[Metric], tenant: str) -> Iterator[Metric]:
    for family in families:
        samples = [one for one in family.samples if one.labels.get("tenant") == tenant]
        if samples:
            own = Metric(family.name, family.documentation, family.type)
            own.samples = samples
            yield own


def _present(
    worker: WorkerStatus, told: PoolSnapshot | None, shadow: ShadowCounts
) -> Iterator[Metric]:
    """How the process stands now, and how old what it says of the engine is."""
    yield _gauge("num_requests_running", "operations that run on the engine", worker.serving)
    yield _gauge("num_requests_waiting", "operations that wait for a turn", worker.waiting)
    samples = CounterMetricFamily(
        f"{_PREFIX}shadow_samples", "answers drawn for shadow verification", labels=["outcome"]
    )
    steps = CounterMetricFamily(
        f"{_PREFIX}mode_steps", "changes of the reuse mode in force", labels=["direction"]
    )
    for outcome in ("measured", "unchanged", "dropped", "failed"):
        samples.add_metric([outcome], getattr(shadow, outcome))
    steps.add_metric(["down"], shadow.steps_down)
    steps.add_metric(["up"], shadow.steps_up)
    yield from (samples, steps)
    if told is None:
        return
    use = told.use
    pool = GaugeMetricFamily(f"{_PREFIX}kv_pool_bytes", "KV by state: used, free", labels=["state"])
    pool.add_metric(["used"], use.used_bytes)
    pool.add_metric(["free"], use.free_bytes)
    yield pool
    yield _gauge("donors", "donors kept", sum(one.donors for one in use.namespaces.values()))
    evicted = CounterMetricFamily(f"{_PREFIX}donors_evicted", "donors dropped for others' KV")
    evicted.add_metric([], use.donors_evicted)
    yield evicted
    yield _gauge("engine_stats_age_seconds", "age of kv_pool_bytes and donors", told.age_s)
    if use.storage is not None:
        yield from storage_families(use.storage)


def _gauge(name: str, help_: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(_PREFIX + name, help_, value=value)
