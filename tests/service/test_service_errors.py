"""The error table: every error has an HTTP form, and the client gets the same class back."""

from __future__ import annotations

from typing import Any

import pytest

from semshare import errors as library
from semshare_service import errors as service
from semshare_service.errors import KINDS, error_body, error_from_reply, error_kind

EXAMPLES: list[tuple[library.SemShareError, int, str]] = [
    (library.InvalidRequest("m"), 400, "invalid_request"),
    (library.InvalidPolicy("m"), 400, "invalid_policy"),
    (library.PromptTooLong(9000, 8192), 400, "context_length_exceeded"),
    (library.NotFound("m"), 404, "not_found"),
    (library.PoolExhausted(30, 20, 100), 503, "pool_exhausted"),
    (library.ModelNotAvailable("m"), 503, "model_not_available"),
    (library.UnsupportedModel("m"), 503, "unsupported_model"),
    (library.PromptOverLimit("m"), 413, "prompt_over_limit"),
    (library.QuotaExceeded("m"), 429, "quota_exceeded"),
    (service.InvalidKey("m"), 401, "invalid_api_key"),
    (service.PermissionDenied("m"), 403, "permission_denied"),
    (service.ConcurrencyExceeded("m", retry_after_s=1.0), 429, "concurrency_exceeded"),
    (service.InvalidParameter("m", "a.b"), 400, "invalid_parameter"),
    (service.BodyTooLarge("m"), 413, "body_too_large"),
    (service.UnsupportedMediaType("m"), 415, "unsupported_media_type"),
    (library.KVMismatch("m"), 422, "kv_mismatch"),
    (service.TooManyHandles("m", retry_after_s=9.0), 429, "too_many_handles"),
    (service.NotAcceptable("m"), 406, "not_acceptable"),
    (service.UnknownModel("m"), 404, "model_not_found"),
    (service.QueueFull("m", retry_after_s=3.0), 429, "queue_full"),
    (service.RequestTimedOut("m"), 504, "timeout"),
    (service.ServiceUnavailable("m"), 503, "unavailable"),
    (service.NotOffered("m"), 404, "not_offered"),
    (library.BenchmarkRefused("m"), 500, "internal_error"),
    (library.SemShareError("m"), 500, "internal_error"),
]


def reply_of(error: library.SemShareError) -> dict[str, Any]:
    kind = error_kind(error)
    param = getattr(error, "param", None) or kind.param
    return error_body(str(error), type_=kind.type, code=kind.code, param=param)


@pytest.mark.parametrize(("error", "status", "code"), EXAMPLES)
def test_status_and_code(error: library.SemShareError, status: int, code: str) -> None:
    kind = error_kind(error)
    assert (kind.status, kind.code) == (status, code)


@pytest.mark.parametrize("error", [error for error, _, _ in EXAMPLES])
def test_the_client_raises_the_same(error: library.SemShareError) -> None:
    kind = error_kind(error)
    delay = getattr(error, "retry_after_s", None)
    raised = error_from_reply(kind.status, reply_of(error), retry_after_s=delay)
    expected = service.ServiceError if kind.code == "internal_error" else type(error)
    assert type(raised) is expected
    assert str(raised) == str(error)
    for name in ("tokens", "limit", "param", "retry_after_s"):
        assert getattr(raised, name, None) == getattr(error, name, None)
    if isinstance(raised, service.ServiceError):
        assert raised.status == kind.status


def test_subclasses_stand_before_their_bases() -> None:
    for index, kind in enumerate(KINDS):
        assert not any(
            issubclass(later.exception, kind.exception) for later in KINDS[index + 1 :]
        ), kind


def test_codes_are_unique() -> None:
    assert len({kind.code for kind in KINDS}) == len(KINDS)


@pytest.mark.parametrize(
    ("code", "status", "expected"),
    [
        ("context_length_exceeded", 400, library.InvalidRequest),
        ("pool_exhausted", 503, service.ServiceError),
        ("of_the_future", 418, service.ServiceError),
    ],
)
def test_a_service_of_another_version(code: str, status: int, expected: type) -> None:
    body = error_body("the 1 worded 2 otherwise 3", type_="t", code=code)
    raised = error_from_reply(status, body)
    assert type(raised) is expected
    assert str(raised) == "the 1 worded 2 otherwise 3"


@pytest.mark.parametrize("body", [None, [], {}, {"error": "text"}, "text"])
def test_what_is_not_the_services_form(body: object) -> None:
    raised = error_from_reply(502, body)
    assert type(raised) is service.ServiceError
    assert raised.status == 502
