"""OpenTelemetry spans: one for each HTTP request, with the stages of its answer below it.

Only `app` imports this module, and only where `otlp_endpoint` is set: it needs the extra `otel`.
Spans are made once a request has ended, from the times that were measured anyway, so the engine
knows nothing of them. They hold no text of a prompt or an answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

from aiohttp import web
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue

from semshare_service.finished import METHODS, Finished
from semshare_service.observed import Answered

# At the stop up to four batches wait for a collector that may have gone before the service.
_EXPORT_TIMEOUT_S = 2.0
_TRACEPARENT = "traceparent"


def otlp_exporter(endpoint: str) -> SpanExporter:
    """Sends spans to `endpoint`, a URL with its path, as OTLP over HTTP in protobuf."""
    return OTLPSpanExporter(endpoint=endpoint, timeout=_EXPORT_TIMEOUT_S)


class Tracing:
    """Tells `exporter` of every request, from a thread of its own, in batches.

    The SDK's variables hold: `OTEL_TRACES_SAMPLER`, `OTEL_RESOURCE_ATTRIBUTES` and the rest. By
    default every request is sampled but those whose `traceparent` says that it is not.

    Args:
        exporter: called from the start of the application (`life`) to its end.

    """

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter = exporter
        self._provider = TracerProvider(
            resource=Resource.create({"service.name": "semshare"}),
            shutdown_on_exit=False,  # `life` does it
        )
        self._tracer = self._provider.get_tracer("semshare_service")
        self._propagator = TraceContextTextMapPropagator()

    async def life(self, _: web.Application) -> AsyncIterator[None]:
        """A `cleanup_ctx` entry: begins to export, and in the end sends what is left."""
        self._provider.add_span_processor(BatchSpanProcessor(self._exporter))
        yield
        await asyncio.to_thread(self._provider.shutdown)

    def observe_request(self, finished: Finished) -> None:
        """A listener of `finish_middleware`: the request's span and those below it."""
        known = finished.method in METHODS
        span = self._tracer.start_span(
            f"{finished.method if known else 'HTTP'} {finished.route}",
            context=self._parent(finished),
            kind=SpanKind.SERVER,
            attributes=_attributes(finished, finished.method if known else "_OTHER"),
            start_time=_ns(finished.ended - finished.seconds),
        )
        if span.is_recording() and finished.answered is not None:
            below = trace.set_span_in_context(span)
            for name, start, end in stages(finished.answered):
                stage = self._tracer.start_span(name, context=below, start_time=_ns(start))
                stage.end(_ns(end))
        if finished.status >= 500:
            span.set_status(StatusCode.ERROR)
        span.end(_ns(finished.ended))

    def _parent(self, finished: Finished) -> Context:
        """What the request's `traceparent` says; a new trace where it says nothing that counts."""
        carrier = {} if finished.traceparent is None else {_TRACEPARENT: finished.traceparent}
        return self._propagator.extract(carrier, Context())


def stages(event: Answered) -> Iterator[tuple[str, float, float]]:
    """Name, start and end (seconds since the epoch) of each stage that took time.

    They are counted back from the answer's end: decoding, before it the time to the first token,
    before that the queue. The stages before the first token stand one after the other; what is left
    between the last of them and the token was spent on steps for other requests. `find_donors` is
    the finding, aligning and ranking of donors; `plan` includes the guard.
    """
    timings = event.answer.timings
    first_token = event.ended - timings.decode_s
    start = first_token - timings.ttft_s
    if event.queue_s > 0:
        yield "queue", start - event.queue_s, start
    for name, seconds in (
        ("tokenize", timings.tokenize_s),
        ("find_donors", timings.lookup_s),
        ("plan", timings.plan_s),
        ("load", timings.load_s),
        ("prefill", timings.prefill_s),
    ):
        if seconds > 0:
            yield name, start, start + seconds
            start += seconds
    if timings.decode_s > 0:
        yield "decode", first_token, event.ended


def _attributes(finished: Finished, method: str) -> dict[str, AttributeValue]:
    attributes: dict[str, AttributeValue] = {
        "http.request.method": method,
        "http.route": finished.route,
        "http.response.status_code": finished.status,
        "semshare.request_id": finished.request_id,
        "semshare.tenant": finished.tenant,
    }
    if finished.status >= 500:
        attributes["error.type"] = str(finished.status)
    if finished.answered is not None:
        answer = finished.answered.answer
        for source, tokens in answer.provenance.counts.items():
            attributes[f"semshare.tokens.{source}"] = tokens
        attributes["semshare.mode"] = answer.provenance.mode
        attributes["gen_ai.usage.input_tokens"] = answer.prompt_tokens
        attributes["gen_ai.usage.output_tokens"] = answer.completion_tokens
    return attributes


def _ns(seconds: float) -> int:
    return round(seconds * 1e9)
