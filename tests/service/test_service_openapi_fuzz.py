"""Requests made from `/openapi.json`: what comes back is what it says, whatever they hold, and what
it rules out is refused.

Seeded, and few an operation: enough to see the description and the routes drift apart.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeAlias

import msgpack
import pytest
import schemathesis
from described import DOCUMENT
from hypothesis import HealthCheck, Phase, given, reject, seed, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.specs.openapi import checks as openapi_checks
from service_helpers import running, url_of
from whole_engine import WholeEngine

from semshare_service.auth import hash_key
from semshare_service.description.operations import OPERATIONS
from semshare_service.kv_wire import CONTENT_TYPE

Check: TypeAlias = Callable[..., bool | None]

KEY = "a key"
TENANTS = {"acme": {"keys": [hash_key(KEY)], "operator": True}}
SCHEMA = schemathesis.openapi.from_dict(DOCUMENT)
CHECKS = [
    openapi_checks.status_code_conformance,
    openapi_checks.content_type_conformance,
    openapi_checks.response_headers_conformance,
    openapi_checks.response_schema_conformance,
]


@schemathesis.serializer("application/msgpack")
def as_msgpack(_: schemathesis.SerializationContext, value: Any) -> bytes:
    try:
        packed: bytes = msgpack.packb(value)
    except OverflowError:  # a number of more than 64 bits, which JSON alone can write
        reject()
    return packed


@schemathesis.deserializer("application/msgpack")
def from_msgpack(_: schemathesis.DeserializationContext, response: schemathesis.Response) -> Any:
    return msgpack.unpackb(response.content)


@schemathesis.serializer(CONTENT_TYPE)
def as_it_is(_: schemathesis.SerializationContext, value: Any) -> bytes:
    return bytes(value)


schemathesis.openapi.media_type(CONTENT_TYPE, st.binary(max_size=64))

# Those of whose requests something can be wrong that the document knows of.
CHECKED = [route for route, row in OPERATIONS.items() if row.body or row.query]


async def ask(route: tuple[str, str], mode: GenerationMode, *checks: Check) -> None:
    """Make requests of a route's, right or wrong as `mode` says, and hold each answer to checks."""
    method, path = route
    async with running(WholeEngine(), tenants=TENANTS) as client:
        url = url_of(client)

        @seed(0)
        @settings(
            max_examples=5 if mode is GenerationMode.POSITIVE else 15,
            deadline=None,
            database=None,
            phases=[Phase.explicit, Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=SCHEMA[path][method].as_strategy(generation_mode=mode))
        def requests(case: schemathesis.Case) -> None:
            response = case.call(base_url=url, headers={"X-API-Key": KEY})
            assert response.status_code < 500, response.text  # described, but nothing is wrong
            case.validate_response(response, checks=[*CHECKS, *checks])

        await asyncio.to_thread(requests)


@pytest.mark.parametrize("route", OPERATIONS, ids=" ".join)
async def test_answers_are_what_the_description_says(route: tuple[str, str]) -> None:
    await ask(route, GenerationMode.POSITIVE)


@pytest.mark.parametrize("route", CHECKED, ids=" ".join)
async def test_what_the_description_rules_out_is_refused(route: tuple[str, str]) -> None:
    await ask(route, GenerationMode.NEGATIVE, openapi_checks.negative_data_rejection)
