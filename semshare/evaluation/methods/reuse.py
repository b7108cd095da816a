"""Methods that are reuse policies of this library: full prefill, exact prefixes, and ours."""

from __future__ import annotations

from semshare import ReusePolicy
from semshare.evaluation.methods.base import PolicyMethod

FULL = PolicyMethod("full", "everything is computed", ReusePolicy(mode="off"))
PREFIX = PolicyMethod(
    "prefix", "exact prefixes only, as vLLM and SGLang do", ReusePolicy(mode="prefix")
)
SEMSHARE = PolicyMethod("semshare", "this library's defaults", ReusePolicy())
