"""semshare: semantic KV-cache reuse for large language models."""

from semshare.config import EngineConfig, ReusePolicy
from semshare.errors import (
    BenchmarkRefused,
    InvalidPolicy,
    InvalidRequest,
    ModelNotAvailable,
    NotFound,
    PoolExhausted,
    PromptTooLong,
    SemShareError,
    UnsupportedModel,
)
from semshare.session import SemShare
from semshare.types import (
    Answer,
    ChatMessage,
    Divergence,
    DonorInfo,
    FreshReason,
    Provenance,
    ReusePlan,
    Score,
    TextDelta,
    Timings,
    TokenSource,
)

__version__ = "0.1.0"

__all__ = [
    "Answer",
    "BenchmarkRefused",
    "ChatMessage",
    "Divergence",
    "DonorInfo",
    "EngineConfig",
    "FreshReason",
    "InvalidPolicy",
    "InvalidRequest",
    "ModelNotAvailable",
    "NotFound",
    "PoolExhausted",
    "PromptTooLong",
    "Provenance",
    "ReusePlan",
    "ReusePolicy",
    "Score",
    "SemShare",
    "SemShareError",
    "TextDelta",
    "Timings",
    "TokenSource",
    "UnsupportedModel",
    "__version__",
]
