"""Rows of a run that was never made."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from semshare.evaluation.rows import Row

ROW = Row(
    dataset="pairs",
    scenario="paraphrase",
    length=1600,
    example="a",
    method="full",
    seed=0,
    tokens=1000,
    compute_fraction=1.0,
    hit_rate=0.0,
    fallback=None,
    ttft_s=2.0,
    lookup_s=0.0,
    plan_s=0.0,
    load_s=0.0,
    prefill_s=2.0,
    decode_s=0.01,
    build_s=3.0,
    kv_bytes=46_000_000,
    own_kv_bytes=46_000_000,
    kl=0.0,
    top1=1.0,
    kl_by_position=[0.0, 0.0],
    log_likelihood=-1.0,
    rouge_l_own=1.0,
    answer="An <b>answer</b> & more",
    sources=[("fresh", 1000)],
)


def row(method: str, example: str = "a", **changes: Any) -> Row:
    """A row of full prefill's, but for what is given."""
    return replace(ROW, method=method, example=example, **changes)


SETTING = {
    "runs": [{"datasets": ["pairs"], "split": "test", "seed": 0, "limit": 2}],
    "split": "test",
    "seed": 0,
    "methods": {"full": "everything is computed"},
    "model": "tiny",
    "dtype": "float32",
    "machine": {"cpu": "a CPU", "cores": 2, "threads": 2, "amx": False, "gpu": None, "system": "x"},
    "versions": {"python": "3", "torch": "2", "transformers": "5", "semshare": "0"},
}
