"""The one error tree. Catch `SemShareError` to catch everything semshare raises on purpose.

SemShareError
├── InvalidRequest          the caller sent something that can never work
│   ├── InvalidPolicy       a ReusePolicy field out of range, or unknown
│   ├── PromptTooLong       prompt (+ answer) does not fit the model's context
│   ├── PromptOverLimit     the prompt has more tokens than its namespace may send
│   └── KVMismatch          KV from elsewhere that is not what this model computes
├── NotFound                a donor id that is not in this namespace
├── UnsupportedModel        a model family or RoPE variant the adapter can't run exactly
├── ModelNotAvailable       weights, tokenizer, a dataset or an optional package is missing
├── PoolExhausted           the KV byte budget is full of what is in use or pinned
├── QuotaExceeded           as many donors, or bytes of them, as the namespace may keep
├── DeadlineExceeded        a request's time was over before its first token
├── GivenUp                 a request whose `given_up` said so before its answer was complete
├── StepFailed              a step that computed several requests broke off
├── StorageError            something below the KV pool
│   ├── TierUnavailable     a disk or server that does not answer, or can't be written now
│   ├── TierFull            no room in a tier beside what is pinned
│   ├── NotStored           a donor, or a part of it, that a tier does not have
│   ├── BlobCorrupt         stored bytes that are not what was written
│   ├── BlobForeign         stored KV of another model, format version or layout
│   └── StoreLocked         another process works on the same folder
└── BenchmarkRefused        a benchmark whose correctness check failed, so no speed is reported

Every message names the value, the limit and the way out.
"""

from __future__ import annotations


class SemShareError(Exception):
    """Base of every error semshare raises on purpose."""


class InvalidRequest(SemShareError, ValueError):
    """The request can never succeed as sent."""


class InvalidPolicy(InvalidRequest):
    """A `ReusePolicy` field is unknown or out of its range."""


class KVMismatch(InvalidRequest):
    """KV that was brought from elsewhere is not what this model computes."""


class PromptTooLong(InvalidRequest):
    """The prompt leaves no room in the model's context window."""

    def __init__(self, tokens: int, limit: int) -> None:
        super().__init__(
            f"the prompt has {tokens} tokens; this model's context holds {limit}, one of which "
            f"the answer needs: shorten the prompt to at most {limit - 1} tokens"
        )
        self.tokens = tokens
        self.limit = limit

    def __reduce__(self) -> tuple[type[PromptTooLong], tuple[int, int]]:
        return type(self), (self.tokens, self.limit)  # errors cross processes, too


class PromptOverLimit(InvalidRequest):
    """The prompt has more tokens than requests of its namespace may have."""


class NotFound(SemShareError, LookupError):
    """No such donor in this namespace."""


class UnsupportedModel(SemShareError):
    """The model can't be run layer by layer with exact results."""


class ModelNotAvailable(SemShareError):
    """Model files, a dataset or an optional package are missing."""


class PoolExhausted(SemShareError):
    """The KV pool has no free or evictable slots left."""

    def __init__(self, wanted: int, free: int, total: int) -> None:
        super().__init__(
            f"{wanted} KV slots wanted, {free} of {total} free and nothing left to evict: "
            "raise kv_budget_bytes, unpin or forget donors, or shorten the prompt"
        )
        self._numbers = (wanted, free, total)

    def __reduce__(self) -> tuple[type[PoolExhausted], tuple[int, int, int]]:
        return type(self), self._numbers


class QuotaExceeded(SemShareError):
    """The namespace keeps as many donors, or as many bytes of them, as it may."""

    # Donors go when they expire or are deleted, which nobody can know better.
    retry_after_s = 60.0


class DeadlineExceeded(SemShareError, TimeoutError):
    """The request's time was over before its first token."""

    def __init__(self, waited_s: float) -> None:
        super().__init__(
            f"no token after {waited_s:.1f} s, when the request's deadline_s was over: allow more "
            "time, shorten the prompt, or send it when fewer requests wait"
        )
        self.waited_s = waited_s

    def __reduce__(self) -> tuple[type[DeadlineExceeded], tuple[float]]:
        return type(self), (self.waited_s,)


class GivenUp(SemShareError):
    """The request's own `given_up` said that nobody waits for its answer any more."""

    def __init__(self) -> None:
        super().__init__(
            "the request was given up before its answer was complete, because its given_up "
            "returned true: send it again if the answer is wanted after all"
        )


class StepFailed(SemShareError):
    """A step that computed several requests broke off in a way that none of them explains."""

    def __init__(self, cause: BaseException) -> None:
        super().__init__(
            f"a step that computed this request too broke off ({type(cause).__name__}; the log "
            "says where): send it again"
        )
        self._cause = cause

    def __reduce__(self) -> tuple[type[StepFailed], tuple[BaseException]]:
        return type(self), (self._cause,)


class StorageError(SemShareError):
    """Something below the KV pool went wrong; requests are computed without it."""


class TierUnavailable(StorageError):
    """A tier's disk or server does not answer in time, or can't be read or written now."""


class TierFull(StorageError):
    """A tier has no room for a donor beside what is pinned."""


class NotStored(StorageError, LookupError):
    """A tier does not have a donor, or a part of it."""


class BlobCorrupt(StorageError):
    """Stored bytes are not what was written: torn, truncated or flipped."""


class BlobForeign(StorageError):
    """Stored KV is of another model, format version or layout than this engine's."""


class StoreLocked(StorageError):
    """Another process works on the same folder."""


class BenchmarkRefused(SemShareError):
    """Correctness missed its bound, so the benchmark prints no speed."""
