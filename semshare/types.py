"""What the stages hand to each other, and what the caller gets back. All of it is frozen.

n is the number of tokens of the target prompt throughout.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING, Literal, TypeAlias, TypedDict

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

    from semshare.config import ReuseMode, ReusePolicy

Ids: TypeAlias = NDArray[np.int32]  # token ids, [n]
Positions: TypeAlias = NDArray[np.int32]
Slots: TypeAlias = NDArray[np.int64]  # indices into the KV pool, or `STORED`
Mask: TypeAlias = NDArray[np.bool_]
Scores: TypeAlias = NDArray[np.float32]

Pages: TypeAlias = NDArray[np.int64]  # numbers of pages of the KV pool

STORED = -2  # in place of a slot: the token's KV lies in a tier below the pool


class ChatMessage(TypedDict):
    """One message of a chat, in OpenAI's form."""

    role: str
    content: str


Prompt: TypeAlias = str | Sequence[ChatMessage] | Sequence[int] | NDArray[np.integer]
# "deadline": the request's `deadline_s` ended the answer; OpenAI's form has no word for it.
FinishReason: TypeAlias = Literal["stop", "length", "deadline"]
RememberState: TypeAlias = Literal["no", "pending", "done"]


class GenerateOptions(TypedDict, total=False):
    """Keyword arguments of `SemShare.generate`, `generate_many` and `stream`.

    max_tokens: most tokens of the answer, 64 by default; the context's end and a full pool stop it
                too.
    policy:     how to reuse other prompts' KV; the measured defaults if None.
    namespace:  whose donors may be used, `default` by default.
    stop:       the answer ends before this string, or the first of these.
    n:          answers, 1 by default. They share the prompt's KV; with a seed each draws from one
                of its own.
    deadline_s: seconds from the call after which the answer ends where it is; never if None.
    given_up:   asked between two steps, in the caller's thread, with the engine's lock held; once
                it returns true all that the request holds is freed and `GivenUp` is raised.
    temperature, top_p, top_k, seed, min_p, logit_bias, logprobs: see
                `semshare.engine.sampling.SamplingParams`; greedy by default.
    """

    max_tokens: int
    policy: ReusePolicy | None
    namespace: str
    temperature: float
    top_p: float
    top_k: int
    seed: int | None
    stop: str | Sequence[str] | None
    n: int
    min_p: float
    logit_bias: Mapping[int, float] | None
    logprobs: int | None
    deadline_s: float | None
    given_up: Callable[[], bool] | None


class TokenSource(IntEnum):
    """Where one target token's KV comes from."""

    FRESH = 0  # computed for this request
    PREFIX = 1  # same ids at the same positions from the start: exact
    SPAN = 2  # same id, after a different context or at another position
    FUZZY = 3  # another id with a similar meaning


@dataclass(frozen=True, slots=True)
class DonorInfo:
    """A donor as the caller sees it."""

    id: str
    namespace: str
    tokens: int
    bytes: int  # KV bytes it would hold alone; shared pages are counted in full
    pinned: bool = False
    created: float = 0.0  # seconds since the epoch, as all times here
    last_used: float = 0.0
    expires: float | None = None  # no request finds it from then on; None: it stays
    published: bool = False  # requests of every namespace find it


@dataclass(frozen=True, slots=True)
class Alignment:
    """For every target token, the donor token that stands for it, if any.

    `donor` indexes `donors`; −1 where nothing matched. `position` is the position in that donor.
    `in_order` marks identical ids matched as text, one after the other in both prompts; other
    identical ids were found by code, somewhere near.
    """

    source: NDArray[np.uint8]  # [n] TokenSource
    donor: NDArray[np.int32]  # [n]
    position: Positions  # [n]
    in_order: Mask  # [n]
    donors: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class DeviationSchedule:
    """Per-layer recompute by KV deviation, the executor's only dynamic row choice.

    Layer l computes keys and values of the candidate rows that are left, and keeps the `keep[l]` of
    them whose keys and values differ most from the reused ones (squared L2), a set that only
    shrinks with depth (CacheBlend, arXiv 2405.16444; SemShareKV, 2509.24832).
    """

    keep: tuple[int, ...]  # [layers] candidate rows that go on from each layer
    candidates: Positions  # rows that may be chosen


@dataclass(frozen=True, slots=True)
class ReusePlan:
    """All that execution needs to know. Made without a model; executing it decides nothing.

    Where KV lies below the pool, slots are `STORED`: such a plan says what is to be loaded
    (`semshare.engine.storage`), and is not executed.
    """

    ids: Ids  # [n]
    source: NDArray[np.uint8]  # [n] TokenSource
    donor: NDArray[np.int32]  # [n] index into `donors`, −1 for fresh and for prefixes of no donor
    position: Positions  # [n] position in the donor, −1 for fresh
    # [n] pool slot of the reused KV (virtual: compressed, see `KVPool`), −1 for fresh
    slots: Slots
    donors: tuple[str, ...]
    reasons: NDArray[np.uint8]  # [n] `FreshReason` of fresh tokens, 0 for reused ones
    deviation: DeviationSchedule | None = None

    @property
    def fresh_rows(self) -> Positions:
        """Positions computed in every layer, ascending."""
        return np.flatnonzero(self.source == TokenSource.FRESH).astype(np.int32)

    @property
    def rows_to_run(self) -> NDArray[np.int64]:
        """Positions the first layer runs on, ascending: fresh rows and deviation candidates."""
        run = self.source == TokenSource.FRESH
        if self.deviation is not None:
            run[self.deviation.candidates] = True
        return np.flatnonzero(run)

    @property
    def compute_fraction(self) -> float:
        """Share of all (token, layer) pairs it computes.

        A row that a layer drops, which cost its projections, is not counted in that layer.
        """
        fresh = np.count_nonzero(self.source == TokenSource.FRESH)
        candidates = 0.0 if self.deviation is None else float(np.mean(self.deviation.keep))
        return float(fresh + candidates) / max(len(self.ids), 1)

    @property
    def is_exact(self) -> bool:
        """True where every reused token is a prefix hit, so nothing is approximate."""
        return bool(np.all(self.source <= TokenSource.PREFIX))

    @property
    def counts(self) -> dict[str, int]:
        """Tokens by source: `{"fresh": …, "prefix": …, "span": …, "fuzzy": …}`."""
        return count_sources(self.source)


class FreshReason(IntEnum):
    """Why a token is computed rather than reused."""

    REUSED = 0
    UNMATCHED = 1  # no donor token stands for it
    FACT = 2  # the guard: a fact whose id or neighbours differ
    EDGE = 3  # one of the first tokens, or of the question at the end
    SELECTED = 4  # chosen by the selection policy
    HEAD = 5  # at the beginning of a long reused run, where the old context still shows
    STORED = 6  # a donor has it in a tier below the pool, from which it was not loaded


def count_sources(source: NDArray[np.uint8]) -> dict[str, int]:
    """Tokens by `TokenSource`, lower-case names, every source present."""
    counts = np.bincount(source, minlength=len(TokenSource))
    return {member.name.lower(): int(counts[member]) for member in TokenSource}


@dataclass(frozen=True, slots=True)
class Provenance:
    """Which KV the answer was made from."""

    source: NDArray[np.uint8]  # [n] TokenSource
    donors: tuple[str, ...]
    donor: NDArray[np.int32]  # [n] index into `donors`, −1 for none
    donor_position: Positions  # [n] position in the donor, −1 for none
    compute_fraction: float  # (token, layer) pairs computed / n × layers, counted as they ran
    exact: bool  # no approximate KV was used, and none was dropped
    mode: str  # the mode that was in force, after any step-down
    fallback: str | None = None  # why the request was computed in full after all, if it was
    repaired_after: int | None = None  # answer tokens given when all KV had been made exact
    retained: float = 1.0  # share of the prompt's (token, layer) pairs that the answers see

    @property
    def counts(self) -> dict[str, int]:
        """Tokens by source: `{"fresh": …, "prefix": …, "span": …, "fuzzy": …}`."""
        return count_sources(self.source)

    @property
    def reused(self) -> int:
        """Prompt tokens that were not computed."""
        return int(np.count_nonzero(self.source))


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds. `ttft_s` runs from the call to the first token and includes the ones before it."""

    tokenize_s: float = 0.0
    lookup_s: float = 0.0  # prefix tree, span index, prompt index, alignment
    plan_s: float = 0.0  # guard, selection, plan
    load_s: float = 0.0  # waiting for KV below the pool, gathering and re-aligning it
    prefill_s: float = 0.0
    ttft_s: float = 0.0
    decode_s: float = 0.0


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """How likely the model found a token and the likeliest others, in natural logarithms.

    Of the model's own distribution, before bias, temperature and truncation. `top` holds (token id,
    log-probability), the likeliest first, and the token itself only where it is one of them.
    """

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class Choice:
    """One continuation of a prompt."""

    text: str
    token_ids: list[int]
    finish_reason: FinishReason
    logprobs: tuple[TokenLogprob, ...]  # one for each of `token_ids`; empty where not asked for


@dataclass(frozen=True, slots=True)
class Answer:
    """The continuations of a prompt, with where they came from.

    `text`, `token_ids` and `finish_reason` are those of the first of `choices`.
    """

    text: str
    token_ids: list[int]
    prompt_tokens: int
    finish_reason: FinishReason
    provenance: Provenance
    timings: Timings
    choices: tuple[Choice, ...]
    remembered: RememberState = "no"  # `pending`: after `SemShare.complete_pending()`
    donor: DonorInfo | None = None  # set once `remembered` is "done"

    @property
    def completion_tokens(self) -> int:
        """Tokens of all choices."""
        return sum(len(choice.token_ids) for choice in self.choices)


@dataclass(frozen=True, slots=True)
class TextDelta:
    """One piece of a streamed answer; the last one carries the whole `answer`."""

    text: str
    token_ids: list[int] = field(default_factory=list)
    answer: Answer | None = None
    index: int = 0  # of the continuation it belongs to
    logprobs: tuple[TokenLogprob, ...] = ()  # one for each of `token_ids`, where asked for


@dataclass(frozen=True, slots=True)
class Score:
    """Teacher-forced scores of a continuation."""

    token_ids: list[int]  # [n_cont]
    logprobs: torch.Tensor  # [n_cont] float32, natural log
    logits: torch.Tensor  # [n_cont, vocab] float32
    provenance: Provenance
    timings: Timings


@dataclass(frozen=True, slots=True)
class Divergence:
    """How far reuse was from the same model's full prefill, over teacher-forced tokens."""

    kl: float  # mean KL(full ‖ reuse), nats a token
    top1: float  # share of tokens with the same most likely token
    tokens: int


@dataclass(frozen=True, slots=True)
class NamespaceUse:
    """What one namespace keeps in the KV pool, in bytes of whole pages."""

    donors: int
    donor_bytes: int  # a page that several donors share counts once
    prefix_bytes: int  # cached prefixes, without the pages that donors hold


@dataclass(frozen=True, slots=True)
class TierUse:
    """What one tier below the pool holds, in bytes, and what it has done."""

    name: str  # `host`, `disk` or `redis`
    used_bytes: int | None  # None: a server that does not answer
    budget_bytes: int
    counts: Mapping[str, int]  # since the start, see `semshare.kv.tiers.tier.Tier.counts`


@dataclass(frozen=True, slots=True)
class StorageUse:
    """What lies below the KV pool."""

    tiers: tuple[TierUse, ...]  # the fastest first
    waiting: int  # jobs behind requests that are not done yet
    # Since the start, by event, or by event and tier or error as `event:which`.
    counters: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class PoolUse:
    """Who holds the KV pool, in bytes of whole pages.

    Used and free add up to the pool's budget. Namespaces may share pages of published donors.
    """

    namespaces: Mapping[str, NamespaceUse]
    running_bytes: int  # held by requests alone
    used_bytes: int  # held by anybody; what several namespaces hold counts once
    free_bytes: int
    donors_evicted: int  # since the start
    storage: StorageUse | None = None


@dataclass(frozen=True, slots=True)
class ModeDivergence:
    """What one mode of reuse did to an answered prompt."""

    mode: ReuseMode
    divergence: Divergence
    counts: bool  # approximate KV was used, so that it says something about the mode


@dataclass(frozen=True, slots=True)
class Verification:
    """What a policy's reuse did to one answered prompt, and what follows from it."""

    by_mode: tuple[ModeDivergence, ...]  # the policy's own mode, then those it steps down to
    in_force: ReuseMode  # mode of the next request with this policy, in the same namespace
