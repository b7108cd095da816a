"""An engine without a model, which can be held inside a call, and made to fail."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import EllipsisType
from typing import Any

import numpy as np

from semshare.config import ReusePolicy
from semshare.engine.limits import LimitsOf, unlimited
from semshare.errors import GivenUp, NotFound, PromptTooLong
from semshare.types import (
    Answer,
    Choice,
    Divergence,
    DonorInfo,
    FinishReason,
    FreshReason,
    ModeDivergence,
    PoolUse,
    Prompt,
    Provenance,
    ReusePlan,
    StorageUse,
    TextDelta,
    Timings,
    TokenLogprob,
    TokenSource,
    Verification,
)

MAX_CONTEXT = 1024
BYTES_PER_TOKEN = 100
WORDS = ("one", " two", " three", " four")


@dataclass
class FakeEngine:
    """One token a character. The first four tokens of a prompt are a prefix hit, two are a span.

    hold:      while clear, every call waits in the worker's thread.
    hold_rest: while clear, streams wait after their first piece until they are given up.
    hold_idle: the same for the computing of pending prompts.
    entered:   released once for each call that has begun.
    error:     raised by every call.
    pending:   prompts that wait to become donors.
    storage:   what lies below the pool.
    closed:    times that `close` was given.
    """

    model_name: str = "fake"
    max_context: int = MAX_CONTEXT
    hold: threading.Event = field(default_factory=threading.Event)
    entered: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    hold_rest: threading.Event = field(default_factory=threading.Event)
    hold_idle: threading.Event = field(default_factory=threading.Event)
    error: Exception | None = None
    pending: int = 0
    pending_error: Exception | None = None
    calls: list[tuple[str, Any]] = field(default_factory=list)
    threads: set[str] = field(default_factory=set)
    given_up: int = 0
    kept: dict[tuple[str, str], DonorInfo] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    limits_of: LimitsOf = unlimited
    storage: StorageUse | None = None
    closed: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.hold.set()
        self.hold_rest.set()
        self.hold_idle.set()

    def _begin(self, name: str, argument: Any) -> None:
        self.threads.add(threading.current_thread().name)
        self.calls.append((name, argument))
        self.entered.release()
        assert self.hold.wait(timeout=60)
        if self.error is not None:
            raise self.error

    def _length(self, prompt: Prompt) -> int:
        if isinstance(prompt, (str, np.ndarray)) or isinstance(prompt[0], int):
            tokens = len(prompt)
        else:
            tokens = sum(len(message["content"]) for message in prompt)
        if tokens >= self.max_context:
            raise PromptTooLong(tokens, self.max_context)
        return tokens

    def limit(self, limits_of: LimitsOf) -> None:
        self.limits_of = limits_of

    def remember(
        self,
        prompt: Prompt,
        *,
        namespace: str = "default",
        pinned: bool = False,
        ttl_s: float | None = None,
        given_up: Callable[[], bool] | None = None,
    ) -> DonorInfo:
        self._begin("remember", prompt)
        if given_up is not None and given_up():
            self.given_up += 1
            raise GivenUp
        tokens = self._length(prompt)
        donor = DonorInfo(
            id=f"d{len(self.kept)}",
            namespace=namespace,
            tokens=tokens,
            bytes=tokens * BYTES_PER_TOKEN,
            pinned=pinned,
            expires=ttl_s,  # its clock stands at 0
        )
        self.kept[namespace, donor.id] = donor
        self.texts[donor.id] = prompt if isinstance(prompt, str) else repr(prompt)
        return donor

    def donor(self, donor_id: str, *, namespace: str = "default") -> DonorInfo:
        self._begin("donor", donor_id)
        return self._kept(donor_id, namespace)

    def donor_text(self, donor_id: str, *, namespace: str = "default") -> str:
        return self.texts[self._kept(donor_id, namespace).id]

    def update_donor(
        self,
        donor_id: str,
        *,
        namespace: str = "default",
        pinned: bool | None = None,
        ttl_s: float | EllipsisType | None = ...,
    ) -> DonorInfo:
        self._begin("update_donor", {"pinned": pinned, "ttl_s": ttl_s})
        donor = self._kept(donor_id, namespace)
        donor = replace(
            donor,
            pinned=donor.pinned if pinned is None else pinned,
            expires=donor.expires if isinstance(ttl_s, EllipsisType) else ttl_s,
        )
        self.kept[namespace, donor_id] = donor
        return donor

    def publish(self, donor_id: str, *, namespace: str = "default") -> DonorInfo:
        self._begin("publish", donor_id)
        donor = replace(self._kept(donor_id, namespace), published=True)
        self.kept[namespace, donor_id] = donor
        return donor

    def _kept(self, donor_id: str, namespace: str) -> DonorInfo:
        if (namespace, donor_id) not in self.kept:
            raise NotFound(f"no donor {donor_id!r} in namespace {namespace!r}")
        return self.kept[namespace, donor_id]

    def donors(self, *, namespace: str = "default") -> list[DonorInfo]:
        self._begin("donors", namespace)
        return [donor for (name, _), donor in self.kept.items() if name == namespace]

    def forget(self, donor_id: str, *, namespace: str = "default") -> None:
        self._begin("forget", donor_id)
        if self.kept.pop((namespace, donor_id), None) is None:
            raise NotFound(f"no donor {donor_id!r} in namespace {namespace!r}")

    def stream(
        self,
        prompt: Prompt,
        *,
        max_tokens: int = 64,
        policy: ReusePolicy | None = None,
        namespace: str = "default",
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
        min_p: float = 0.0,
        logit_bias: Mapping[int, float] | None = None,
        logprobs: int | None = None,
        seed: int | None = None,
        stop: Sequence[str] = (),
        n: int = 1,
        deadline_s: float | None = None,
        given_up: Callable[[], bool] = lambda: False,
    ) -> Iterator[TextDelta]:
        tokens = self._length(prompt)
        arguments = {
            "prompt": prompt,
            "max_tokens": max_tokens,
            "policy": policy,
            "namespace": namespace,
            "temperature": temperature,
            "top_p": top_p,
            "top_k": top_k,
            "min_p": min_p,
            "logit_bias": logit_bias,
            "logprobs": logprobs,
            "seed": seed,
            "stop": stop,
            "n": n,
            "deadline_s": deadline_s,
        }
        self._begin("stream", arguments)
        reason: FinishReason = "length" if max_tokens <= len(WORDS) else "stop"
        if deadline_s is not None:
            reason = "deadline"
        choices = tuple(_choice(index, max_tokens, reason, logprobs) for index in range(n))
        first = choices[0]
        answer = Answer(
            text=first.text,
            token_ids=first.token_ids,
            prompt_tokens=tokens,
            finish_reason=first.finish_reason,
            provenance=_provenance(tokens, policy),
            timings=Timings(tokenize_s=0.5, ttft_s=1.5),
            choices=choices,
        )
        try:
            for delta in _pieces(choices):
                if given_up():
                    raise GivenUp
                yield delta
                while not self.hold_rest.wait(timeout=0.01):
                    if given_up():
                        raise GivenUp
            yield TextDelta("", [], answer)
        except (GeneratorExit, GivenUp):
            self.given_up += 1
            raise

    def token_bytes(self, token_id: int) -> bytes:
        self.threads.add(threading.current_thread().name)
        return WORDS[token_id].encode()

    def plan(
        self, prompt: Prompt, *, policy: ReusePolicy | None = None, namespace: str = "default"
    ) -> ReusePlan:
        self._begin("plan", {"prompt": prompt, "policy": policy, "namespace": namespace})
        tokens = self._length(prompt)
        source, donor, position = _mapping(tokens)
        reasons = np.where(source == 0, FreshReason.UNMATCHED, FreshReason.REUSED)
        reasons[-1] = FreshReason.EDGE
        return ReusePlan(
            ids=np.zeros(tokens, np.int32),
            source=source,
            donor=donor,
            position=position,
            slots=position.astype(np.int64),
            donors=("d0",),
            reasons=reasons.astype(np.uint8),
        )

    def pool_use(self) -> PoolUse:
        assert self.hold.wait(timeout=60)
        return PoolUse({}, 300, 300, 700, donors_evicted=2, storage=self.storage)

    def close(self, timeout_s: float = 30.0) -> None:
        self.closed.append(timeout_s)

    def complete_pending(self, *, limit: int | None = None) -> list[DonorInfo]:
        if not self.pending:
            return []
        self._begin("complete_pending", limit)
        assert self.hold_idle.wait(timeout=60)
        if self.pending_error is not None:
            raise self.pending_error
        finished = self.pending if limit is None else min(limit, self.pending)
        self.pending -= finished
        return [DonorInfo("d", "default", 1, BYTES_PER_TOKEN)] * finished

    def verify_answer(
        self,
        prompt: Prompt,
        answer: Sequence[int],
        *,
        policy: ReusePolicy | None = None,
        namespace: str = "default",
        between: Callable[[], None] = lambda: None,
    ) -> Verification:
        arguments = {"prompt": prompt, "answer": answer, "policy": policy, "namespace": namespace}
        self._begin("verify_answer", arguments)
        between()
        mode = (policy or ReusePolicy()).mode
        return Verification((ModeDivergence(mode, Divergence(0.1, 1.0, len(answer)), True),), mode)


def _pieces(choices: Sequence[Choice]) -> Iterator[TextDelta]:
    """A token of each choice, then the next of each."""
    longest = max(len(choice.token_ids) for choice in choices)
    for at in range(longest):
        for index, choice in enumerate(choices):
            for token in choice.token_ids[at : at + 1]:
                yield TextDelta(
                    WORDS[token], [token], index=index, logprobs=choice.logprobs[at : at + 1]
                )


def _choice(index: int, max_tokens: int, reason: FinishReason, logprobs: int | None) -> Choice:
    """The words from number `index` on; each second likeliest, after the next one."""
    ids = list(range(len(WORDS)))[index % len(WORDS) :][:max_tokens]
    told: list[TokenLogprob] = []
    if logprobs is not None:
        for token in ids:
            likeliest = ((token + 1) % len(WORDS), -0.5), (token, -1.25)
            told.append(TokenLogprob(token, -1.25, likeliest[:logprobs]))
    return Choice("".join(WORDS[token] for token in ids), ids, reason, tuple(told))


def _mapping(tokens: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    index = np.arange(tokens)
    prefix, span = index < 4, (index == 6) | (index == 7)
    source = np.select([prefix, span], [TokenSource.PREFIX, TokenSource.SPAN], TokenSource.FRESH)
    donor = np.where(prefix | span, 0, -1)
    position = np.select([prefix, span], [index, index + 14], -1)
    return source.astype(np.uint8), donor.astype(np.int32), position.astype(np.int32)


def _provenance(tokens: int, policy: ReusePolicy | None) -> Provenance:
    source, donor, position = _mapping(tokens)
    return Provenance(
        source=source,
        donors=("d0",),
        donor=donor,
        donor_position=position,
        compute_fraction=0.25,
        exact=False,
        mode="semantic" if policy is None else policy.mode,
    )
