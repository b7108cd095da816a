"""Settings of an engine and of one request. Both are validated once, when they are made."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, get_args

from semshare.errors import InvalidPolicy, InvalidRequest
from semshare.planning.retention import DECAY

DEFAULT_NAMESPACE = "default"  # of requests that name none

ReuseMode = Literal["off", "prefix", "span", "semantic"]
SelectionName = Literal[
    "none", "deviation", "first_k", "tail", "query_attention", "donor_history", "random"
]

RepairName = Literal["off", "idle", "eager"]
DonorFormat = Literal["full", "int8"]
Compression = Literal["none", "zstd"]
EvictionName = Literal["lru", "s3-fifo"]

MIN_DISK_BYTES = 2 << 20  # less leaves too little beside the tier's index
MAX_DECAY = 100.0  # the last layer keeps e⁻¹⁰⁰ of what the first does: nothing

REUSE_MODES: tuple[str, ...] = get_args(ReuseMode)
SELECTION_NAMES: tuple[str, ...] = get_args(SelectionName)
REPAIR_NAMES: tuple[str, ...] = get_args(RepairName)


@dataclass(frozen=True, slots=True)
class ReusePolicy:
    """How much of other prompts' KV one request may use.

    The defaults of `recompute`, `selection`, `only_unmatched`, `min_similarity` and `head_tokens`
    are measured (`docs/decisions.md`).

    mode:           `off` computes everything; `prefix` shares exact prefixes (lossless); `span`
                    also reuses identical text at any position; `semantic` also maps tokens onto
                    similar ones of a similar donor.
    recompute:      share, 0 to 1, of the tokens that `selection` may choose from that are
                    computed fresh, on top of those that have to be (facts, sinks, the tail, and
                    what matches nothing). 1 leaves no token approximate that could be chosen.
    selection:      which tokens the `recompute` budget is spent on.
    only_unmatched: `selection` may choose only tokens whose id the donor does not have; if
                    false, any reused token that is not an exact prefix.
    min_similarity: a donor whose prompt is less similar than this (0 to 1) is not used for
                    fuzzy matching.
    min_span:       runs of identical ids shorter than this (tokens; 8 is the least that is looked
                    for) are not found by themselves. In a similar donor single ids are reused.
    sink_tokens:    first tokens of the prompt that are exact or fresh, never approximate.
    tail_tokens:    last tokens of the prompt (the question) that are exact or fresh.
    head_tokens:    most tokens computed at the beginning of a reused run, where its KV leans most
                    on what the donor had before it: a sixteenth of the run, in runs of 32 or more.
    fact_guard:     tokens that carry facts (numbers, names, negations, units, code identifiers)
                    are reused only where the donor has them after the same token.
    max_divergence: KL in nats; reuse steps down (semantic → span → prefix) in this namespace
                    while the divergence that `SemShare.verify` measures is above it
                    (`semshare.planning.monitor` says when). None: `EngineConfig.max_divergence`.
    repair:         compute reused tokens exactly while the answer is decoded, so that the rest of
                    it no longer depends on other prompts: `eager` beside every step, `idle` only
                    while no other request is there, `off` never.
    remember:       keep the prompt as a donor once it has been computed in full.
    retention:      share, above 0 and at most 1, of the prompt's (token, layer) pairs whose KV is
                    kept once the prompt is computed; its answers don't see the rest. Below 1 they
                    are approximate, and can't be repaired; what is kept for other prompts is
                    exact as ever. `SemShare.verify` measures it with the rest of the policy, but
                    only reuse is stepped down by `max_divergence`.
    retention_decay: 0 lets all layers keep alike; above 0 they keep less the deeper they lie, as in
                    SemShareKV (arXiv 2509.24832): the last exp(−decay) of what the first keeps.
    seed:           for the `random` selection.
    """

    mode: ReuseMode = "semantic"
    recompute: float = 0.08
    selection: SelectionName = "donor_history"
    only_unmatched: bool = True
    min_similarity: float = 0.8
    min_span: int = 16
    sink_tokens: int = 4
    tail_tokens: int = 24
    head_tokens: int = 32
    fact_guard: bool = True
    max_divergence: float | None = None
    repair: RepairName = "off"
    remember: bool = False
    retention: float = 1.0
    retention_decay: float = DECAY
    seed: int = 0

    def __post_init__(self) -> None:
        _require_choice("mode", self.mode, REUSE_MODES)
        _require_choice("selection", self.selection, SELECTION_NAMES)
        _require_choice("repair", self.repair, REPAIR_NAMES)
        _require_range("recompute", self.recompute, 0.0, 1.0)
        _require_range("min_similarity", self.min_similarity, 0.0, 1.0)
        _require_range("min_span", self.min_span, 1, 1 << 20)
        _require_range("sink_tokens", self.sink_tokens, 0, 1 << 20)
        _require_range("tail_tokens", self.tail_tokens, 1, 1 << 20)
        _require_range("head_tokens", self.head_tokens, 0, 1 << 20)
        _require_range("seed", self.seed, 0, 2**63 - 1)
        if self.max_divergence is not None:
            _require_range("max_divergence", self.max_divergence, 0.0, math.inf)
        _require_range("retention", self.retention, 0.0, 1.0)
        _require_range("retention_decay", self.retention_decay, 0.0, MAX_DECAY)
        if self.retention == 0.0:
            raise InvalidPolicy("policy.retention is 0: it must be above 0, and 1 keeps everything")
        if self.retention < 1.0 and self.repair != "off":
            raise InvalidPolicy(
                f"policy.repair is {self.repair!r} and policy.retention {self.retention}: a repair "
                "would bring back what is dropped, so set repair to off or retention to 1"
            )
        for name in ("only_unmatched", "fact_guard", "remember"):
            value = getattr(self, name)
            if not isinstance(value, bool):
                raise InvalidPolicy(f"policy.{name} is {value!r}: it must be true or false")

    def with_mode(self, mode: ReuseMode) -> ReusePolicy:
        """This policy in another mode."""
        return self if mode == self.mode else replace(self, mode=mode)

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> ReusePolicy:
        """A policy from decoded JSON or msgpack; an unknown key is an `InvalidPolicy`."""
        known = [one.name for one in fields(cls)]
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise InvalidPolicy(
                f"unknown policy field {unknown[0]!r}: known are {', '.join(known)}"
            )
        return cls(**values)


@dataclass(frozen=True, slots=True)
class StorageConfig:
    """Where donors are kept below the KV pool, from the fastest tier to the slowest.

    Each tier is there once it is named: by its bytes, its path, its URL. Budgets are hard.

    host_bytes:     of process memory, where donors are that left the pool. 0: no such tier.
    disk_path:      folder, of one process at a time; donors in it survive a restart.
    disk_bytes:     most bytes in it.
    redis_url:      of a Redis or Valkey server, `redis://…` or `rediss://…` with TLS, or of a
                    cluster's nodes, `redis+cluster://host:port,host:port` (extra `redis`); all
                    processes with the same model share the donors in it.
    redis_bytes:    most bytes in it, of all processes together.
    eviction:       who goes when a tier is full: the least recently used, or by S3-FIFO (Yang et
                    al., SOSP 2023), which lets go of what is used once. Redis always does `lru`.
    donor_format:   `full` as computed, exact; `int8` in a quarter to a half of the bytes, and from
                    then on never an exact prefix.
    compression:    `zstd` for each chunk by itself: fewer bytes, slower to write and read.
    load_timeout_s: seconds that a request waits for its donors' KV at most; then it is computed.
    """

    host_bytes: int = 0
    disk_path: str | None = None
    disk_bytes: int = 64 << 30
    redis_url: str | None = field(default=None, repr=False)  # it may hold a password
    redis_bytes: int = 64 << 30
    eviction: EvictionName = "s3-fifo"
    donor_format: DonorFormat = "full"
    compression: Compression = "none"
    load_timeout_s: float = 2.0

    def __post_init__(self) -> None:
        _require_whole("storage.host_bytes", self.host_bytes, 0, 1 << 50)
        _require_whole("storage.disk_bytes", self.disk_bytes, MIN_DISK_BYTES, 1 << 60)
        _require_whole("storage.redis_bytes", self.redis_bytes, 1, 1 << 60)
        _require_name("storage.eviction", self.eviction, get_args(EvictionName))
        _require_name("storage.donor_format", self.donor_format, get_args(DonorFormat))
        _require_name("storage.compression", self.compression, get_args(Compression))
        if not 0 < self.load_timeout_s < math.inf:
            raise InvalidRequest(
                f"storage.load_timeout_s is {self.load_timeout_s!r}: it must be above 0, in seconds"
            )


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Settings of one engine; they hold for its life.

    kv_budget_bytes:   most bytes the KV pool may take; the pool's memory is touched as it fills.
    page_size:         slots a page; prefixes are shared in whole pages.
    history_tokens:    answer tokens decoded when a donor is remembered, whose attention to the
                       donor's tokens guides the `donor_history` selection. 0: none.
    max_donors_tried:  donors compared token by token with a target in `semantic` mode.
    prefill_rows:      most rows of new prompts that are computed in a step in which others are
                       answered. More of them: sooner first tokens, longer pauses of the others.
    repair_rows:       reused tokens that are computed exactly a step on average, in chunks of
                       `prefill_rows`, for policies that ask for `repair`.
    max_answers:       answers that are decoded at a time; other requests wait.
    embedder:          makes the prompt vectors by which similar donors are found: `model` pools the
                       model's own token embeddings; `sentence` runs all-MiniLM-L6-v2 (extra `st`),
                       which is slower and wants another `min_similarity`.
    donor_format:      how donors keep their KV: `full` as computed, shared with their exact prefix
                       and attended in place; `int8` in about half the bytes of 16-bit KV, a quarter
                       of float32's, decoded into slots of the request on each use. Then their
                       prompts stay exact prefixes only as long as nothing else wants the pages.
    max_divergence:    KL in nats, for policies that name none of their own. None: no bound.
    storage:           where donors are kept below the pool. None: nowhere, so that what the pool
                       has no room for is gone, and everything at the process's end.
    """

    kv_budget_bytes: int = 2 << 30
    page_size: int = 16
    history_tokens: int = 40
    max_donors_tried: int = 3
    prefill_rows: int = 256
    repair_rows: int = 24
    max_answers: int = 64
    embedder: Literal["model", "sentence"] = "model"
    donor_format: DonorFormat = "full"
    max_divergence: float | None = None
    storage: StorageConfig | None = None

    def __post_init__(self) -> None:
        for name, low, high in (
            ("kv_budget_bytes", 1, 1 << 50),
            ("page_size", 1, 4096),
            ("history_tokens", 0, 4096),
            ("max_donors_tried", 1, 64),
            ("prefill_rows", 1, 1 << 20),
            ("repair_rows", 1, 1 << 20),
            ("max_answers", 1, 4096),
        ):
            _require_whole(name, getattr(self, name), low, high)
        _require_name("embedder", self.embedder, ("model", "sentence"))
        _require_name("donor_format", self.donor_format, get_args(DonorFormat))
        stored = self.storage
        if stored is not None and (self.donor_format, stored.donor_format) == ("int8", "full"):
            raise InvalidRequest(
                "storage.donor_format is 'full' and donor_format 'int8': what the pool keeps in "
                "int8 can't be stored exactly, so set both to int8"
            )
        bound = self.max_divergence
        if bound is not None and not (type(bound) in (int, float) and bound >= 0):
            raise InvalidRequest(
                f"max_divergence is {bound!r}: it must be a number of at least 0, in nats, or None"
            )


def _require_whole(name: str, value: object, low: int, high: int) -> None:
    if type(value) is not int or not low <= value <= high:
        raise InvalidRequest(
            f"{name} is {value!r}: it must be a whole number between {low} and {high}"
        )


def _require_name(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise InvalidRequest(f"{name} is {value!r}: choose one of {', '.join(choices)}")


def _require_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise InvalidPolicy(f"policy.{name} is {value!r}: choose one of {', '.join(choices)}")


def _require_range(name: str, value: float, low: float, high: float) -> None:
    number = isinstance(value, int) if isinstance(low, int) else isinstance(value, (int, float))
    if isinstance(value, bool) or not number or not low <= value <= high:
        kind = "a whole number" if isinstance(low, int) else "a number"
        raise InvalidPolicy(f"policy.{name} is {value!r}: it must be {kind} from {low} to {high}")
