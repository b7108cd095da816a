"""Bodies of responses: plain maps and lists that JSON and msgpack can both carry."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
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
    Timings,
    TokenLogprob,
    TokenSource,
)
from semshare_service.logprobs import TextOffsets, TokenBytes, chat_logprobs, completion_logprobs

Body: TypeAlias = dict[str, Any]


@dataclass(frozen=True, slots=True)
class AnswerForm:
    """How one of OpenAI's two routes words an answer.

    route:         `completions` or `chat`.
    id_prefix:     of the answer's id.
    object:        of a whole answer.
    chunk_object:  of a streamed one's chunks.
    content:       a whole choice's text, as fields of the choice.
    delta:         the same of a piece of it, and whether that is the choice's first.
    logprobs:      the choice's log-probabilities.
    """

    route: str
    id_prefix: str
    object: str
    chunk_object: str
    content: Callable[[str], Body]
    delta: Callable[[str, bool], Body]
    logprobs: Callable[[Sequence[TokenLogprob], TokenBytes, TextOffsets], Body]

    def new_id(self) -> str:
        """The id of one answer."""
        return f"{self.id_prefix}-{uuid.uuid4().hex}"


def _chat_delta(text: str, is_first: bool) -> Body:
    return {"delta": {"role": "assistant", "content": text} if is_first else {"content": text}}


COMPLETION = AnswerForm(
    route="completions",
    id_prefix="cmpl",
    object="text_completion",
    chunk_object="text_completion",
    content=lambda text: {"text": text},
    delta=lambda text, _: {"text": text},
    logprobs=completion_logprobs,
)
CHAT = AnswerForm(
    route="chat",
    id_prefix="chatcmpl",
    object="chat.completion",
    chunk_object="chat.completion.chunk",
    content=lambda text: {"message": {"role": "assistant", "content": text, "refusal": None}},
    delta=_chat_delta,
    logprobs=chat_logprobs,
)


def answer_body(
    answer: Answer, choices: list[Body], form: AnswerForm, *, model: str, queue_s: float
) -> Body:
    """A whole answer in OpenAI's form with the `semshare` extension; `choices` as below."""
    return {
        "id": form.new_id(),
        "object": form.object,
        "model": model,
        "created": int(time.time()),
        "choices": choices,
        "usage": usage_body(answer),
        "semshare": extension_body(answer, queue_s),
    }


def choice_bodies(answer: Answer, form: AnswerForm, token_bytes: TokenBytes) -> list[Body]:
    """The choices of a whole answer. Many log-probabilities take a while: not for the event loop.

    `token_bytes` holds all tokens that they tell of.
    """
    return [
        _choice(index, choice, form, token_bytes) for index, choice in enumerate(answer.choices)
    ]


def _choice(index: int, choice: Choice, form: AnswerForm, token_bytes: TokenBytes) -> Body:
    logprobs = None
    if choice.logprobs:
        logprobs = form.logprobs(choice.logprobs, token_bytes, TextOffsets())
    return {
        "index": index,
        **form.content(choice.text),
        "logprobs": logprobs,
        "finish_reason": openai_finish_reason(choice.finish_reason),
    }


def openai_finish_reason(reason: FinishReason) -> str:
    """`reason` in OpenAI's words: an answer that its deadline cut short is `length`."""
    return "length" if reason == "deadline" else reason


def usage_body(answer: Answer) -> Body:
    """Tokens of the prompt and of all choices, in OpenAI's form."""
    return {
        "prompt_tokens": answer.prompt_tokens,
        "completion_tokens": answer.completion_tokens,
        "total_tokens": answer.prompt_tokens + answer.completion_tokens,
        # Only what was reused without loss is a cached token in OpenAI's sense.
        "prompt_tokens_details": {"cached_tokens": answer.provenance.counts["prefix"]},
    }


def extension_body(answer: Answer, queue_s: float) -> Body:
    """The `semshare` field of an answer that waited `queue_s` seconds for its turn."""
    return {
        **provenance_body(answer.provenance),
        "remembered": answer.remembered,
        "donor": None if answer.donor is None else donor_body(answer.donor),
        "timings": {
            "queue_s": queue_s,
            **{name: getattr(answer.timings, name) for name in Timings.__slots__},
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
    starts = np.concatenate(([0], np.flatnonzero(ends) + 1))
    why = np.full(len(starts), FreshReason.REUSED) if reasons is None else reasons[starts]
    return [
        {
            "start": start,
            "end": end,
            "source": TokenSource(kind).name.lower(),
            "donor": None if of < 0 else donors[of],
            "donor_start": None if at < 0 else at,
            "reason": None if reason == FreshReason.REUSED else FreshReason(reason).name.lower(),
        }
        for start, end, kind, of, at, reason in zip(
            *(starts.tolist(), [*starts[1:].tolist(), len(source)]),
            *(array.tolist() for array in (source[starts], donor[starts], position[starts], why)),
            strict=True,
        )
    ]


def donor_body(donor: DonorInfo) -> Body:
    """A donor as `PUT /v1/donors` answers it."""
    return {"object": "donor", **asdict(donor)}


def list_body(items: list[Body]) -> Body:
    """OpenAI's list form."""
    return {"object": "list", "data": items}
