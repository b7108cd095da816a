"""Methods that are reuse policies of this library: full prefill, exact prefixes, and ours."""

from __future__ import annotations

from semshare import ReusePolicy
from semshare.evaluation.methods.base import PolicyMethod

# Identical text alone, and nothing computed but what matches nothing and the last token.
IDENTICAL_TEXT = ReusePolicy(
    mode="span",
    recompute=0.0,
    selection="none",
    sink_tokens=0,
    tail_tokens=1,
    head_tokens=0,
    fact_guard=False,
)

FULL = PolicyMethod("full", "everything is computed", ReusePolicy(mode="off"))
PREFIX = PolicyMethod(
    "prefix", "exact prefixes only, as vLLM and SGLang do", ReusePolicy(mode="prefix")
)
ALIGN_ONLY = PolicyMethod(
    "align_only",
    "identical text at its new positions, nothing recomputed, as llama.cpp's --cache-reuse does",
    IDENTICAL_TEXT,
)
SEMSHARE = PolicyMethod("semshare", "this library's defaults", ReusePolicy())
