"""Bodies of responses: plain maps and lists that JSON and msgpack can both carry."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from semshare.types import (
    Answer,
    Choice,
    DonorInfo,
    FinishReason,
    FreshReason,
    Provenance,
    ReusePlan,
    TokenLogprob,
    TokenSource,
)
from semshare_service.logprobs import TokenBytes, chat_logprobs, completion_logprobs

Body: TypeAlias = dict[str, Any]


def completion_body(answer: Answer, *, model: str, queue_s: float, token_bytes: TokenBytes) -> Body:
    """OpenAI's text completion with the `semshare` extension.

    `token_bytes` holds all tokens that the answer's log-probabilities tell of.
    """
    head = {"id": f"cmpl-{uuid.uuid4().hex}", "object": "text_completion", "model": model}
    choices = [
        _choice(index, choice, {"text": choice.text}, completion_logprobs, token_bytes)
        for index, choice in enumerate(answer.choices)
    ]
    return head | _generation(answer, choices, queue_s)


def chat_body(answer: Answer, *, model: str, queue_s: float, token_bytes: TokenBytes) -> Body:
    """OpenAI's chat completion with the `semshare` extension.

    `token_bytes` holds all tokens that the answer's log-probabilities tell of.
    """
    head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "object": "chat.completion", "model": model}
    choices = [
        _choice(
            index,
            choice,
            {"message": {"role": "assistant", "content": choice.text, "refusal": None}},
            chat_logprobs,
            token_bytes,
        )
        for index, choice in enumerate(answer.choices)
    ]
    return head | _generation(answer, choices, queue_s)


def _choice(
    index: int,
    choice: Choice,
    content: Body,
    logprobs: Callable[[Sequence[TokenLogprob], TokenBytes], Body],
    token_bytes: TokenBytes,
) -> Body:
    return {
        "index": index,
        **content,
        "logprobs": logprobs(choice.logprobs, token_bytes) if choice.logprobs else None,
        "finish_reason": openai_finish_reason(choice.finish_reason),
    }


def openai_finish_reason(reason: FinishReason) -> str:
    """`reason` in OpenAI's words: an answer that its deadline cut short is `length`."""
    return "length" if reason == "deadline" else reason


def _generation(answer: Answer, choices: list[Body], queue_s: float) -> Body:
    completion_tokens = sum(len(choice.token_ids) for choice in answer.choices)
    return {
        "created": int(time.time()),
        "choices": choices,
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
        "retained": float(provenance.retained),
        "repaired_after": provenance.repaired_after,
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
