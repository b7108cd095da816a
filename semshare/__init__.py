"""semshare: semantic KV-cache reuse for large language models."""

from typing import TYPE_CHECKING, Any

from semshare.config import EngineConfig, ReusePolicy, StorageConfig
from semshare.errors import (
    BenchmarkRefused,
    BlobCorrupt,
    BlobForeign,
    DeadlineExceeded,
    GivenUp,
    InvalidPolicy,
    InvalidRequest,
    KVMismatch,
    ModelNotAvailable,
    NotFound,
    NotStored,
    PoolExhausted,
    PromptOverLimit,
    PromptTooLong,
    QuotaExceeded,
    SemShareError,
    StepFailed,
    StorageError,
    StoreLocked,
    TierFull,
    TierUnavailable,
    UnsupportedModel,
)
from semshare.types import (
    Answer,
    ChatMessage,
    Choice,
    Divergence,
    DonorInfo,
    FreshReason,
    ModeDivergence,
    Provenance,
    ReusePlan,
    Score,
    TextDelta,
    Timings,
    TokenLogprob,
    TokenSource,
    Verification,
)

if TYPE_CHECKING:
    from semshare.api import SemShare

__version__ = "0.1.0"

__all__ = [
    "Answer",
    "BenchmarkRefused",
    "BlobCorrupt",
    "BlobForeign",
    "ChatMessage",
    "Choice",
    "DeadlineExceeded",
    "Divergence",
    "DonorInfo",
    "EngineConfig",
    "FreshReason",
    "GivenUp",
    "InvalidPolicy",
    "InvalidRequest",
    "KVMismatch",
    "ModeDivergence",
    "ModelNotAvailable",
    "NotFound",
    "NotStored",
    "PoolExhausted",
    "PromptOverLimit",
    "PromptTooLong",
    "Provenance",
    "QuotaExceeded",
    "ReusePlan",
    "ReusePolicy",
    "Score",
    "SemShare",
    "SemShareError",
    "StepFailed",
    "StorageConfig",
    "StorageError",
    "StoreLocked",
    "TextDelta",
    "TierFull",
    "TierUnavailable",
    "Timings",
    "TokenLogprob",
    "TokenSource",
    "UnsupportedModel",
    "Verification",
    "__version__",
]


def __getattr__(name: str) -> Any:
    # The engine imports torch, transformers and FAISS; clients and `--help` need none of them.
    if name == "SemShare":
        from semshare.api import SemShare  # noqa: PLC0415 - the point of this function

        return SemShare
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
