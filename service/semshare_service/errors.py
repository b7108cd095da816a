"""Errors of the service, and the one table that maps the whole tree to HTTP and back.

SemShareError
├── InvalidRequest
│   ├── InvalidParameter      one named field of the request is wrong, unknown or not offered
│   ├── BodyTooLarge          the body is larger than max_body_bytes or max_kv_body_bytes
│   ├── BodyTooSlow           the body did not arrive within read_timeout_s
│   ├── UnsupportedMediaType  the body is neither JSON nor msgpack
│   └── NotAcceptable         the client accepts neither JSON nor msgpack
├── NotFound
│   ├── UnknownModel          the request names a model that is not the one loaded
│   └── NotOffered            a part of OpenAI's interface that this service does not have
└── ServiceError              the service answered with an error no other class stands for
    ├── InvalidKey            no API key, or one that is not known
    ├── PermissionDenied      the key is not an operator's, or the host's name not this machine's
    ├── ConcurrencyExceeded   as many requests of the tenant are running as may
    ├── TooManyHandles        a tenant holds as many prefilled prompts as it may
    ├── QueueFull             the queue of waiting requests is full: come back later
    ├── RequestTimedOut       the request took longer than request_timeout_s
    └── ServiceUnavailable    the model is not ready, the service is stopping or can't be reached
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from semshare.errors import (
    DeadlineExceeded,
    InvalidPolicy,
    InvalidRequest,
    KVMismatch,
    ModelNotAvailable,
    NotFound,
    PoolExhausted,
    PromptOverLimit,
    PromptTooLong,
    QuotaExceeded,
    SemShareError,
    StepFailed,
    UnsupportedModel,
)


class InvalidParameter(InvalidRequest):
    """`param` names the field that is wrong, with dots between levels."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class BodyTooLarge(InvalidRequest):
    """The request's body is larger than the service takes."""


class BodyTooSlow(InvalidRequest):
    """The request's body took longer to arrive than the service waits."""


class UnsupportedMediaType(InvalidRequest):
    """The request's body is neither JSON nor msgpack."""


class NotAcceptable(InvalidRequest):
    """The `Accept` header excludes both JSON and msgpack."""


class UnknownModel(NotFound):
    """The request names a model that this service does not serve."""


class NotOffered(NotFound):
    """A part of OpenAI's interface that this service does not have."""


class ServiceError(SemShareError):
    """The service answered with an error. `status` is the HTTP status, 0 where none came back.

    `retry_after_s` is the number of seconds after which another try makes sense, if known.
    """

    def __init__(
        self, message: str, *, status: int = 0, retry_after_s: float | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after_s = retry_after_s


class InvalidKey(ServiceError):
    """The request has no API key, or one that is not known."""


class PermissionDenied(ServiceError):
    """The key is not an operator's; or, without keys, the request is for another host's name."""


class ConcurrencyExceeded(ServiceError):
    """As many requests of this tenant are running as it may have."""


class TooManyHandles(ServiceError):
    """A tenant holds as many prefilled prompts as it may."""


class QueueFull(ServiceError):
    """As many requests are waiting as the service lets wait."""


class RequestTimedOut(ServiceError):
    """The request took longer than the service gives one."""


class ServiceUnavailable(ServiceError):
    """The service can't be reached, or its model can't answer now."""


@dataclass(frozen=True, slots=True)
class ErrorKind:
    """How one class of error looks in HTTP."""

    exception: type[SemShareError]
    status: int
    code: str
    type: str
    param: str | None = None


_CALLER = "invalid_request_error"
_MISSING = "not_found_error"
_BUSY = "rate_limit_error"
_SERVER = "server_error"

# Subclasses stand before their bases: the first match wins.
KINDS: tuple[ErrorKind, ...] = (
    ErrorKind(PromptTooLong, 400, "context_length_exceeded", _CALLER),
    ErrorKind(PromptOverLimit, 413, "prompt_over_limit", _CALLER),
    ErrorKind(InvalidPolicy, 400, "invalid_policy", _CALLER, param="semshare"),
    ErrorKind(KVMismatch, 422, "kv_mismatch", _CALLER),
    ErrorKind(BodyTooLarge, 413, "body_too_large", _CALLER),
    ErrorKind(BodyTooSlow, 408, "body_too_slow", _CALLER),
    ErrorKind(UnsupportedMediaType, 415, "unsupported_media_type", _CALLER),
    ErrorKind(NotAcceptable, 406, "not_acceptable", _CALLER),
    ErrorKind(InvalidParameter, 400, "invalid_parameter", _CALLER),
    ErrorKind(InvalidRequest, 400, "invalid_request", _CALLER),
    ErrorKind(UnknownModel, 404, "model_not_found", _MISSING, param="model"),
    ErrorKind(NotOffered, 404, "not_offered", _MISSING),
    ErrorKind(NotFound, 404, "not_found", _MISSING),
    ErrorKind(PoolExhausted, 503, "pool_exhausted", _SERVER),
    ErrorKind(QuotaExceeded, 429, "quota_exceeded", _BUSY),
    ErrorKind(DeadlineExceeded, 504, "deadline_exceeded", _SERVER, param="deadline_s"),
    ErrorKind(StepFailed, 503, "step_failed", _SERVER),
    ErrorKind(ModelNotAvailable, 503, "model_not_available", _SERVER),
    ErrorKind(UnsupportedModel, 503, "unsupported_model", _SERVER),
    ErrorKind(InvalidKey, 401, "invalid_api_key", "authentication_error"),
    ErrorKind(PermissionDenied, 403, "permission_denied", "permission_error"),
    ErrorKind(ConcurrencyExceeded, 429, "concurrency_exceeded", _BUSY),
    ErrorKind(TooManyHandles, 429, "too_many_handles", _BUSY),
    ErrorKind(QueueFull, 429, "queue_full", _BUSY),
    ErrorKind(RequestTimedOut, 504, "timeout", _SERVER),
    ErrorKind(ServiceUnavailable, 503, "unavailable", _SERVER),
    ErrorKind(SemShareError, 500, "internal_error", _SERVER),
)
_KIND_BY_CODE = {kind.code: kind for kind in KINDS}


def error_kind(error: SemShareError) -> ErrorKind:
    """The table's row for `error`."""
    return next(kind for kind in KINDS if isinstance(error, kind.exception))


def error_body(
    message: str, *, type_: str, code: str, param: str | None = None
) -> dict[str, dict[str, str | None]]:
    """The one form every error of the service has; it is OpenAI's."""
    return {"error": {"message": message, "type": type_, "param": param, "code": code}}


def error_from_reply(
    status: int, body: object, *, retry_after_s: float | None = None
) -> SemShareError:
    """The exception that `body`, an error the service answered with, stands for.

    The class follows from the code; what is not the service's own form (a proxy's error page,
    say) is a plain `ServiceError`.
    """
    error = body.get("error") if isinstance(body, Mapping) else None
    if not isinstance(error, Mapping):
        return ServiceError(
            f"HTTP {status} without semshare's error form: is this the address of a semshare "
            "service, with nothing in between?",
            status=status,
            retry_after_s=retry_after_s,
        )
    message = str(error.get("message"))
    kind = _KIND_BY_CODE.get(str(error.get("code")))
    if kind is None or kind.exception is SemShareError:
        return ServiceError(message, status=status, retry_after_s=retry_after_s)
    if issubclass(kind.exception, ServiceError):
        return kind.exception(message, status=status, retry_after_s=retry_after_s)
    if kind.exception is InvalidParameter:
        param = error.get("param")
        return InvalidParameter(message, None if param is None else str(param))
    if kind.exception in _NUMBERS_IN_MESSAGE:
        return _from_numbers(kind.exception, message, status)
    return kind.exception(message)


# These are made from numbers, which their messages carry.
_NUMBERS_IN_MESSAGE: Mapping[type[SemShareError], int] = {PromptTooLong: 2, PoolExhausted: 3}


def _from_numbers(exception: type[Any], message: str, status: int) -> SemShareError:
    numbers = [int(digits) for digits in re.findall(r"\d+", message)]
    arguments = numbers[: _NUMBERS_IN_MESSAGE[exception]]
    if len(arguments) == _NUMBERS_IN_MESSAGE[exception]:
        error: SemShareError = exception(*arguments)
        if str(error) == message:
            return error
    # A service of another version words it otherwise: the base class still tells the truth.
    return InvalidRequest(message) if status < 500 else ServiceError(message, status=status)
