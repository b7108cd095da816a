"""The bodies of answers about the service's own past: statistics and recent requests."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

from semshare.config import ReuseMode
from semshare_service.description.answers import PromptPiece, Queue, TokenCounts


class RecentRequest(BaseModel):
    """An answered request, without its prompt.

    id:                its `X-Request-Id`.
    object:            what this is.
    route:             of the two in OpenAI's form.
    namespace:         whose donors it could use.
    ended:             in seconds since the epoch.
    prompt_tokens:     how many it had.
    completion_tokens: of all its answers.
    tokens:            of the prompt, by source.
    compute_fraction:  share of the prompt's (token, layer) pairs that were computed.
    mode:              the one in force, after any step down.
    exact:             whether no approximate KV was used, and none dropped.
    fallback:          the stage of reuse that failed, so that all was computed, and how; or null.
    ttft_s:            seconds from its turn to its first token.
    queue_s:           seconds until its turn.
    """

    id: str
    object: Literal["request"]
    route: Literal["completions", "chat"]
    namespace: str
    ended: float
    prompt_tokens: int
    completion_tokens: int
    tokens: TokenCounts
    compute_fraction: float
    mode: ReuseMode
    exact: bool
    fallback: str | None
    ttft_s: float
    queue_s: float


class RecentRequestList(BaseModel):
    """Answered requests.

    object: what this is.
    data:   newest first.
    """

    object: Literal["list"]
    data: list[RecentRequest]


class InspectedRequest(RecentRequest):
    """An answered request with its prompt's text.

    pieces: of the prompt.
    """

    pieces: list[PromptPiece]


class Activity(BaseModel):
    """Answered requests.

    requests: how many.
    tokens:   of their prompts, by source.
    """

    requests: int
    tokens: TokenCounts


class ActivityMinute(Activity):
    """Those of one minute of the clock.

    start: when it began, in seconds since the epoch.
    """

    start: int


class Windows(BaseModel):
    """Answered requests over three times that end now, in steps of 5 s.

    1m:  the last minute.
    10m: the last ten.
    all: since the start.
    """

    minute: Activity = Field(alias="1m")
    ten_minutes: Activity = Field(alias="10m")
    all: Activity


class FirstTokens(BaseModel):
    """Seconds to the first token, without the queue; null where there were no requests.

    requests:          how many are counted: of the last hour, at most 1,000.
    p50_s:             the median.
    p95_s:             the 95th percentile.
    prompt_tokens_p50: the prompts' median length.
    """

    requests: int
    p50_s: float | None
    p95_s: float | None
    prompt_tokens_p50: float | None


class FirstTokensByReuse(BaseModel):
    """Of two kinds of requests.

    reused:   those that reused KV.
    computed: those that computed everything.
    """

    reused: FirstTokens
    computed: FirstTokens


class Pool(BaseModel):
    """Bytes of the KV pool by who holds them. Null: other tenants' too, so not told.

    age_s:    seconds since the engine said so.
    donors:   the caller's.
    prefixes: cached prefixes of the caller's that are no donors.
    running:  requests that run.
    free:     nobody.
    """

    age_s: float
    donors: int
    prefixes: int
    running: int | None
    free: int | None


class StorageTier(BaseModel):
    """A place for donors below the KV pool.

    name:         which one.
    used_bytes:   what it holds; null where its server does not answer.
    budget_bytes: the most that it may hold.
    """

    name: Literal["host", "disk", "redis"]
    used_bytes: int | None
    budget_bytes: int


class Storage(BaseModel):
    """What lies below the KV pool.

    tiers:   the fastest first.
    waiting: donors and changes that are still to be written there.
    """

    tiers: list[StorageTier]
    waiting: int


class Stats(BaseModel):
    """What was reused of the caller's requests, how fast, and who holds the pool.

    object:    what this is.
    now:       seconds since the epoch.
    started:   when the service did, in seconds since the epoch.
    model:     its name; null before it is loaded.
    queue:     who waits for it.
    windows:   requests up to now.
    series:    the same for each of the last 60 minutes of the clock, oldest first.
    ttft:      how long first tokens took.
    fallbacks: requests computed in full after all, by reason, since the start.
    pool:      null until the engine has told it.
    donors:    how many the caller has; null until the engine has told it.
    evictions: donors evicted since the start; null until the engine has told it, and with API keys.
    storage:   for operators; null where nothing lies below the pool, until the engine has told it,
               and for other keys.
    """

    object: Literal["stats"]
    now: float
    started: int
    model: str | None
    queue: Queue
    windows: Windows
    series: list[ActivityMinute]
    ttft: FirstTokensByReuse
    fallbacks: dict[str, int]
    pool: Pool | None
    donors: int | None
    evictions: int | None
    storage: Storage | None
