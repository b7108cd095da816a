"""The bodies of answers, as `/openapi.json` describes them; docstrings are its texts.

The routes write these as plain maps (`replies`): validating what we made ourselves would cost every
request. Tests hold real answers to them instead, and let through no field that is missing here.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel

from semshare.config import ReuseMode
from semshare.types import RememberState
from semshare_service.worker import WorkerState

Source = Literal["fresh", "prefix", "span", "fuzzy"]
FreshReasonName = Literal["unmatched", "fact", "edge", "selected", "head", "stored"]


class ErrorDetail(BaseModel):
    """What went wrong.

    message: for people: the value, the limit and the way out.
    type:    OpenAI's coarser kind of error.
    param:   the field that is wrong, with dots between levels, if it is one.
    code:    for programs; each has one status.
    """

    message: str
    type: str
    param: str | None
    code: str


class Error(BaseModel):
    """The one form of every error.

    error: what went wrong.
    """

    error: ErrorDetail


class Queue(BaseModel):
    """Requests that wait for the model.

    waiting: how many do, without those that run.
    limit:   as many as may.
    running: whether the model computes, prompts that are to become donors included.
    """

    waiting: int
    limit: int
    running: bool


class Health(BaseModel):
    """The process lives.

    status:  it does.
    version: of the package.
    """

    status: Literal["ok"]
    version: str


class Readiness(BaseModel):
    """How the model and its queue stand.

    status:      only `ready` comes with status 200.
    model:       its name; null before it is loaded.
    max_context: tokens, prompt and answer together; null before it is loaded.
    queue:       who waits for it.
    reason:      why it could not be loaded.
    """

    status: WorkerState
    model: str | None
    max_context: int | None
    queue: Queue
    reason: str | None


class Model(BaseModel):
    """A model that is served.

    id:            its name.
    object:        what this is.
    created:       when the service started, in seconds since the epoch.
    owned_by:      `semshare`.
    max_model_len: tokens, prompt and answer together.
    """

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_model_len: int


class ModelList(BaseModel):
    """The one model, as a list.

    object: what this is.
    data:   of one element.
    """

    object: Literal["list"]
    data: list[Model]


class Donor(BaseModel):
    """A donor: a prompt whose KV is kept. Times are seconds since the epoch.

    object:    what this is.
    id:        its name in this namespace.
    namespace: where requests find it.
    tokens:    of its prompt.
    bytes:     of its KV; pages that it shares are counted in full.
    pinned:    never evicted.
    created:   when it was put.
    last_used: when a request last reused some of it.
    expires:   from then on no request finds it; null: it stays.
    published: requests of all tenants find it.
    """

    object: Literal["donor"]
    id: str
    namespace: str
    tokens: int
    bytes: int
    pinned: bool
    created: float
    last_used: float
    expires: float | None
    published: bool


class DonorWithText(Donor):
    """A donor and what it holds.

    text: of its prompt, special tokens included.
    """

    text: str


class DonorPage(BaseModel):
    """Some donors.

    object:   what this is.
    data:     oldest first.
    has_more: whether others come `after` the last one's id.
    """

    object: Literal["list"]
    data: list[Donor]
    has_more: bool


class DeletedDonor(BaseModel):
    """A donor that is no more.

    id:      as it was.
    object:  what this is.
    deleted: always true.
    """

    id: str
    object: Literal["donor"]
    deleted: Literal[True]


class TokenCounts(BaseModel):
    """Prompt tokens by where their KV came from.

    fresh:  computed.
    prefix: the same tokens at the same place, without loss.
    span:   the same text elsewhere in a donor.
    fuzzy:  similar tokens of a similar donor.
    """

    fresh: int
    prefix: int
    span: int
    fuzzy: int


class TokenRun(BaseModel):
    """Consecutive prompt tokens with one source.

    start:       the first one's position in the prompt.
    end:         the position after the last one.
    source:      where their KV came from.
    donor:       the id of the donor; null where there is none.
    donor_start: the first one's position in the donor; null where there is none.
    reason:      why they would be computed; null where they are reused, and for answered requests.
    """

    start: int
    end: int
    source: Source
    donor: str | None
    donor_start: int | None
    reason: FreshReasonName | None


class PromptPiece(TokenRun):
    """A run of tokens with its text.

    text:       a character of several tokens stands in the piece where it ends.
    donor_text: the donor's at these positions; null where there is none, or it has gone meanwhile.
    """

    text: str
    donor_text: str | None


class Match(BaseModel):
    """The reuse plan of a prompt.

    object:           what this is.
    prompt_tokens:    how many it has.
    exact:            whether the plan uses no approximate KV.
    compute_fraction: share of its (token, layer) pairs that would be computed.
    tokens:           by source.
    spans:            every token's source, as runs.
    """

    object: Literal["match"]
    prompt_tokens: int
    exact: bool
    compute_fraction: float
    tokens: TokenCounts
    spans: list[TokenRun]


class Inspection(Match):
    """A reuse plan with the prompt's text.

    pieces: the same runs, to read.
    """

    pieces: list[PromptPiece]


class Reuse(BaseModel):
    """Where the prompt's KV came from.

    mode:             the one in force, after any step down.
    exact:            whether no approximate KV was used, and none dropped.
    fallback:         the stage of reuse that failed, so that all was computed, and how; or null.
    retained:         share of the prompt's (token, layer) pairs that the answer saw.
    repaired_after:   answer tokens given when all KV had been made exact; null if it was not.
    compute_fraction: share of the prompt's (token, layer) pairs that were computed.
    tokens:           of the prompt, by source.
    spans:            every prompt token's source, as runs.
    """

    mode: ReuseMode
    exact: bool
    fallback: str | None
    retained: float
    repaired_after: int | None
    compute_fraction: float
    tokens: TokenCounts
    spans: list[TokenRun]


class AnswerTimings(BaseModel):
    """Seconds.

    queue_s:    until its turn.
    tokenize_s: text to token ids.
    lookup_s:   looking for donors, and aligning the prompt with them.
    plan_s:     choosing what to reuse.
    load_s:     gathering reused KV and moving it to its positions.
    prefill_s:  computing the rest of the prompt.
    ttft_s:     from its turn to the first token, all of the above but `queue_s` included.
    decode_s:   the tokens after the first.
    """

    queue_s: float
    tokenize_s: float
    lookup_s: float
    plan_s: float
    load_s: float
    prefill_s: float
    ttft_s: float
    decode_s: float


class AnswerExtension(Reuse):
    """The `semshare` field of an answer.

    remembered: whether the prompt became a donor; `pending`: it is computed in full once idle.
    donor:      the one that it became.
    timings:    what took how long.
    """

    remembered: RememberState
    donor: Donor | None
    timings: AnswerTimings


class Prefilled(BaseModel):
    """A prompt whose KV is held.

    object:        what this is.
    handle:        its name.
    prompt_tokens: how many it has.
    expires:       when it goes, in seconds since the epoch.
    semshare:      where its KV came from.
    """

    object: Literal["prefill"]
    handle: str
    prompt_tokens: int
    expires: float
    semshare: Reuse


class DroppedHandle(BaseModel):
    """A handle that is no more.

    handle:  as it was.
    object:  what this is.
    deleted: always true.
    """

    handle: str
    object: Literal["prefill"]
    deleted: Literal[True]
