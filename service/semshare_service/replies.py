"""Bodies of responses: plain maps and lists that JSON and msgpack can both carry."""

from __future__ import annotations

import time
import uuid
from dataclasses import asdict
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from semshare.types import Answer, DonorInfo, FreshReason, Provenance, ReusePlan, TokenSource

Body: TypeAlias = dict[str, Any]


def completion_body(answer: Answer, *, model: str, queue_s: float) -> Body:
    """OpenAI's text completion with the `semshare` extension."""
    head = {"id": f"cmpl-{uuid.uuid4().hex}", "object": "text_completion", "model": model}
    return head | _generation(answer, {"text": answer.text}, queue_s)


def chat_body(answer: Answer, *, model: str, queue_s: float) -> Body:
    """OpenAI's chat completion with the `semshare` extension."""
    message = {"role": "assistant", "content": answer.text, "refusal": None}
    head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "object": "chat.completion", "model": model}
    return head | _generation(answer, {"message": message}, queue_s)


def _generation(answer: Answer, content: Body, queue_s: float) -> Body:
    completion_tokens = len(answer.token_ids)
    choice = {"index": 0, **content, "logprobs": None, "finish_reason": answer.finish_reason}
    return {
        "created": int(time.time()),
        "choices": [choice],
        "usage": {
            "prompt_tokens": answer.prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": answer.prompt_tokens + completion_tokens,
            # Only what was reused without loss is a cached token in OpenAI's sense.
            "prompt_tokens_details": {"cached_tokens": answer.provenance.counts["prefix"]},
        },
        "semshare": {
            **provenance_body(answer.provenance),
            "remembered": answer.remembered,
            "donor": None if answer.donor is None else donor_body(answer.donor),
            "timings": {"queue_s": queue_s, **asdict(answer.timings)},
        },
    }


def provenance_body(provenance: Provenance) -> Body:
    """Where the prompt's tokens came from."""
    return {
        "mode": provenance.mode,
        "exact": bool(provenance.exact),
        "fallback": provenance.fallback,
        "compute_fraction": float(provenance.compute_fraction),
        "tokens": provenance.counts,
        "spans": token_runs(
            provenance.source, provenance.donor, provenance.donor_position, provenance.donors
        ),
    }


def match_body(plan: ReusePlan) -> Body:
    """A reuse plan, and what share of the prompt's computation it would leave."""
    return {
        "object": "match",
        "prompt_tokens": len(plan.ids),
        "exact": plan.is_exact,
        "compute_fraction": plan.compute_fraction,
        "tokens": plan.counts,
        "spans": token_runs(plan.source, plan.donor, plan.position, plan.donors, plan.reasons),
    }


def token_runs(
    source: NDArray[np.uint8],
    donor: NDArray[np.int32],
    position: NDArray[np.int32],
    donors: tuple[str, ...],
    reasons: NDArray[np.uint8] | None = None,
) -> list[Body]:
    """The per-token arrays, all [n], as runs of consecutive tokens, without loss.

    A run ends where the source, the donor or the reason changes, or where the donor's position
    does not go on by one. `start` to `end` is half-open.
    """
    if len(source) == 0:
        return []
    ends = (source[1:] != source[:-1]) | (donor[1:] != donor[:-1])
    ends |= (position[1:] < 0) != (position[:-1] < 0)
    ends |= (position[1:] >= 0) & (np.diff(position) != 1)
    if reasons is not None:
        ends |= reasons[1:] != reasons[:-1]
    starts = [0, *(np.flatnonzero(ends) + 1).tolist()]
    runs = []
    for start, end in zip(starts, [*starts[1:], len(source)], strict=True):
        has_donor, has_position = donor[start] >= 0, position[start] >= 0
        reason = FreshReason.REUSED if reasons is None else FreshReason(int(reasons[start]))
        runs.append(
            {
                "start": start,
                "end": end,
                "source": TokenSource(int(source[start])).name.lower(),
                "donor": donors[donor[start]] if has_donor else None,
                "donor_start": int(position[start]) if has_position else None,
                "reason": None if reason is FreshReason.REUSED else reason.name.lower(),
            }
        )
    return runs


def donor_body(donor: DonorInfo) -> Body:
    """A donor as `PUT /v1/donors` answers it."""
    return {"object": "donor", **asdict(donor)}


def list_body(items: list[Body]) -> Body:
    """OpenAI's list form."""
    return {"object": "list", "data": items}
