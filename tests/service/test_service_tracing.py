"""Spans of requests and their stages: when, below what, and never with text."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from fake_engine import FakeEngine
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from service_helpers import running

from semshare.errors import InvalidRequest
from semshare.types import Timings
from semshare_service.app import create_app
from semshare_service.finished import Finished
from semshare_service.observed import Answered
from semshare_service.settings import ServiceSettings
from semshare_service.tenants import Tenant
from semshare_service.tracing import Tracing, stages

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
MARKER = "xylophone"


def answered(**timings: float) -> Answered:
    """Ended 100 s after the epoch, having waited for 2 s."""
    (*_, last) = FakeEngine().stream(MARKER, max_tokens=2)
    assert last.answer is not None
    return Answered(
        request_id="my-id",
        route="completions",
        tenant=Tenant("acme"),
        namespace="default",
        prompt=MARKER,
        policy=None,
        answer=replace(last.answer, timings=Timings(**timings)),
        queue_s=2.0,
        ended=100.0,
    )


def finished(**fields: Any) -> Finished:
    return Finished(
        **{
            "request_id": "my-id",
            "method": "POST",
            "route": "/v1/completions",
            "status": 200,
            "tenant": "acme",
            "seconds": 20.0,
            "ended": 101.0,
            "answered": None,
            "traceparent": None,
            **fields,
        }
    )


async def exported(*requests: Finished) -> list[Any]:
    """The spans of `requests` in the order in which they ended."""
    exporter = InMemorySpanExporter()
    tracing = Tracing(exporter)
    life = tracing.life(web.Application())
    await anext(life)
    for request in requests:
        tracing.observe_request(request)
    with pytest.raises(StopAsyncIteration):
        await anext(life)
    return list(exporter.get_finished_spans())


def test_stages_are_counted_back_from_the_answers_end() -> None:
    event = answered(
        tokenize_s=0.5,
        lookup_s=1.0,
        plan_s=0.25,
        load_s=0.125,
        prefill_s=4.0,
        ttft_s=6.0,  # 0.125 s more than its parts: steps for others
        decode_s=3.0,
    )
    assert list(stages(event)) == [
        ("queue", 89.0, 91.0),
        ("tokenize", 91.0, 91.5),
        ("find_donors", 91.5, 92.5),
        ("plan", 92.5, 92.75),
        ("load", 92.75, 92.875),
        ("prefill", 92.875, 96.875),
        ("decode", 97.0, 100.0),
    ]


def test_a_stage_that_was_not_entered_has_no_span() -> None:
    event = replace(answered(prefill_s=1.0, ttft_s=1.0), queue_s=0.0)
    assert list(stages(event)) == [("prefill", 99.0, 100.0)]


async def test_a_request_is_a_server_span_above_its_stages() -> None:
    event = answered(prefill_s=1.0, ttft_s=1.0, decode_s=0.5)
    *below, span = await exported(finished(answered=event))
    assert (span.name, span.kind.name) == ("POST /v1/completions", "SERVER")
    assert (span.start_time, span.end_time) == (81_000_000_000, 101_000_000_000)
    assert span.parent is None
    assert dict(span.attributes) == {
        "http.request.method": "POST",
        "http.route": "/v1/completions",
        "http.response.status_code": 200,
        "semshare.request_id": "my-id",
        "semshare.tenant": "acme",
        "semshare.tokens.fresh": 3,  # of nine: four of a prefix, two of a span
        "semshare.tokens.prefix": 4,
        "semshare.tokens.span": 2,
        "semshare.tokens.fuzzy": 0,
        "semshare.mode": "semantic",
        "gen_ai.usage.input_tokens": 9,
        "gen_ai.usage.output_tokens": 2,
    }
    assert [one.name for one in below] == ["queue", "prefill", "decode"]
    assert {one.parent.span_id for one in below} == {span.context.span_id}
    assert {one.context.trace_id for one in below} == {span.context.trace_id}
    assert (below[1].start_time, below[1].end_time) == (98_500_000_000, 99_500_000_000)


async def test_a_clients_trace_goes_on() -> None:
    (span,) = await exported(finished(traceparent=f"00-{TRACE}-{SPAN}-01"))
    assert format(span.context.trace_id, "032x") == TRACE
    assert format(span.parent.span_id, "016x") == SPAN


async def test_a_trace_that_its_client_does_not_record_is_not_recorded_here() -> None:
    event = answered(prefill_s=1.0, ttft_s=1.0)
    assert not await exported(finished(traceparent=f"00-{TRACE}-{SPAN}-00", answered=event))


@pytest.mark.parametrize(
    "sent", ["", MARKER, f"00-{'0' * 32}-{SPAN}-01", f"ff-{TRACE}-{SPAN}-01", "0" * 100_000]
)
async def test_a_traceparent_that_is_none_begins_a_new_trace(sent: str) -> None:
    (span,) = await exported(finished(traceparent=sent))
    assert span.parent is None
    assert MARKER not in span.to_json()


async def test_faults_of_ours_are_errors_and_those_of_clients_are_not() -> None:
    ours, theirs = await exported(finished(status=500), finished(status=404))
    assert (ours.status.status_code.name, ours.attributes["error.type"]) == ("ERROR", "500")
    assert theirs.status.status_code.name == "UNSET"
    assert "error.type" not in theirs.attributes


async def test_a_method_of_the_clients_own_is_not_told() -> None:
    (span,) = await exported(finished(method=MARKER, route="unmatched", status=404))
    assert span.name == "HTTP unmatched"
    assert span.attributes["http.request.method"] == "_OTHER"
    assert MARKER not in span.to_json()


async def test_a_service_sends_its_spans_to_the_endpoint_by_the_time_it_has_stopped(
    engine: FakeEngine,
) -> None:
    received: list[bytes] = []

    async def collect(request: web.Request) -> web.Response:
        received.append(await request.read())
        return web.Response(content_type="application/x-protobuf")

    collector = web.Application()
    collector.router.add_post("/v1/traces", collect)
    async with TestServer(collector) as server:
        endpoint = str(server.make_url("/v1/traces"))
        async with running(engine, otlp_endpoint=endpoint) as client:
            headers = {"traceparent": f"00-{TRACE}-{SPAN}-01"}
            body = {"prompt": MARKER, "max_tokens": 2}
            async with client.post("/v1/completions", json=body, headers=headers) as response:
                assert response.status == 200
    assert MARKER.encode() not in b"".join(received)
    told = [ExportTraceServiceRequest.FromString(one) for one in received]
    resources = [resource for one in told for resource in one.resource_spans]
    spans = [
        span for resource in resources for scope in resource.scope_spans for span in scope.spans
    ]
    # The fake engine tells of half a second of tokenizing, and of no other stage.
    assert {span.name for span in spans} == {"POST /v1/completions", "queue", "tokenize"}
    assert {span.trace_id.hex() for span in spans} == {TRACE}
    names = [one.value.string_value for one in resources[0].resource.attributes]
    assert "semshare" in names


def test_without_the_extra_the_service_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "semshare_service.tracing")
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    settings = ServiceSettings(otlp_endpoint="http://127.0.0.1:1/v1/traces")
    with pytest.raises(InvalidRequest, match=re.escape("install `semshare[otel]`")):
        create_app(FakeEngine(), settings)
    create_app(FakeEngine(), ServiceSettings())


@pytest.mark.parametrize("endpoint", ["collector:4318", "http://collector:4318", "grpc://c/v1"])
def test_an_endpoint_is_a_url_with_its_path(endpoint: str) -> None:
    with pytest.raises(ValueError, match="otlp_endpoint"):
        ServiceSettings(otlp_endpoint=endpoint)
