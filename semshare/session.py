"""The path of a prompt from text to an answer with its provenance.

    text → tokenize → find donors → align → guard → plan → prefill → decode → answer
                              (what lies below the pool is fetched)

`stream` lets stored KV come (`load_stored`), submits the request and runs steps until its answer
is there; the scheduler calls back at each station: `begin` (find donors → align → guard → plan,
with the slots that it takes), `prefilled`, `continuation` for each answer, `answer` at its end. Up
to the plan no layer runs; from the plan on nothing is decided. Whatever fails on the way to a mixed
prefill, the prompt is computed in full.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Sequence
from functools import partial
from typing import Any
from weakref import WeakSet

import numpy as np
import torch

from semshare.config import EngineConfig, ReusePolicy, StorageConfig
from semshare.donors.embedders import Embedder, ModelEmbedder, SentenceEmbedder
from semshare.donors.library import DonorLibrary
from semshare.donors.token_lsh import TokenLSH
from semshare.donors.traits import LazyTraits
from semshare.engine.adapter import ModelAdapter
from semshare.engine.admission import Admission
from semshare.engine.continuation import Continuation
from semshare.engine.executor import Executor
from semshare.engine.failures import log_failure
from semshare.engine.fair_lock import FairLock
from semshare.engine.first_look import query_attention
from semshare.engine.generation import Generation, Request
from semshare.engine.keeper import Keeper
from semshare.engine.openmp import let_go_of_threads
from semshare.engine.outside_steps import OutsideSteps
from semshare.engine.prompts import PromptEncoder, TokenTexts, eos_ids
from semshare.engine.rows import AttentionRecord
from semshare.engine.sampling import Sampler
from semshare.engine.scheduler import Scheduler
from semshare.engine.served import Planned, Served
from semshare.engine.stages import Stages
from semshare.engine.stopwatch import Stopwatch
from semshare.engine.storage import DonorStorage
from semshare.engine.storage_setup import open_tiers
from semshare.engine.text import TextAssembler
from semshare.errors import GivenUp, PoolExhausted
from semshare.kv.arrival import Arrival
from semshare.kv.compressed import CompressedView
from semshare.kv.pool import KVPool
from semshare.kv.sequence import KVSequence
from semshare.planning.monitor import DivergenceMonitor
from semshare.planning.plan import full_plan
from semshare.planning.planner import Draft, Planner
from semshare.planning.retention import Retention
from semshare.types import (
    Answer,
    DonorInfo,
    Ids,
    Prompt,
    RememberState,
    ReusePlan,
    TextDelta,
)

# Makes the plan of a prompt, as `Session.plan` does: ids, policy, namespace and clock.
Planning = Callable[[Ids, ReusePolicy, str, Stopwatch], Planned]


class Session:
    """One model, its pool of KV and its donors, and what happens to a prompt.

    `lock` is held for each step and for every look at the donors. There is no thread of its own:
    whoever waits for a piece of an answer computes a step, for all requests.

    Args:
        hf_model: a transformers causal LM of a supported family.
        tokenizer: its tokenizer.
        config: settings for the engine's life.
        embedder: makes the prompt vectors, in place of the one that `config` names.
        now: the time in seconds since the epoch, by which donors expire.

    """

    def __init__(
        self,
        hf_model: torch.nn.Module,
        tokenizer: Any,
        config: EngineConfig,
        embedder: Embedder | None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.config = config
        self.model = ModelAdapter(hf_model)
        self.pool = KVPool(
            n_layers=self.model.n_layers,
            n_kv_heads=self.model.n_kv_heads,
            head_dim=self.model.head_dim,
            dtype=self.model.dtype,
            device=self.model.device,
            budget_bytes=config.kv_budget_bytes,
            page_size=config.page_size,
        )
        self.lsh = TokenLSH(self.model.embedding_weight)
        self.token_texts = TokenTexts(tokenizer)
        if embedder is None and config.embedder == "sentence":
            embedder = SentenceEmbedder(tokenizer.decode)
        compressed = CompressedView(self.pool) if config.donor_format == "int8" else None
        self.library = DonorLibrary(
            self.pool,
            embedder or ModelEmbedder(self.model.embedding_weight),
            partial(LazyTraits, lsh=self.lsh, texts=self.token_texts),
            compressed,
            now=now,
        )
        self.planner = Planner(
            self.library, self.pool, self.lsh, self.token_texts, config, self.model.n_layers
        )
        self.executor = Executor(self.model, self.pool, compressed)
        self.monitor = DivergenceMonitor(config.max_divergence)
        self.encoder = PromptEncoder(tokenizer, self.model.vocab_size, self.model.max_context)
        self.eos = eos_ids(hf_model, tokenizer)
        self.keeper = Keeper(self.library)
        self.counters: Counter[str] = Counter()
        self._serving: WeakSet[Served] = WeakSet()  # whose KV may be kept yet
        self.lock = FairLock(on_release=let_go_of_threads)
        self.scheduler = self.new_scheduler(self)
        self.outside = OutsideSteps(self)
        self.storage = self._open_storage(config.storage, compressed)
        let_go_of_threads()  # that loading the model has made

    def _open_storage(
        self, config: StorageConfig | None, compressed: CompressedView | None
    ) -> DonorStorage | None:
        """What lies below the pool, its donors already to be found."""
        if config is None:
            return None
        storage = DonorStorage(
            self.library,
            self.pool,
            compressed,
            self.lock,
            open_tiers(self.model, self.config, config),
            load_timeout_s=config.load_timeout_s,
        )
        storage.restore()
        return storage

    def new_scheduler(self, stages: Stages) -> Scheduler:
        """A scheduler over this session's pool that calls `stages` back."""
        return Scheduler(
            self.executor,
            stages,
            Admission(self.cached_tokens, self.pool.page_size),
            prefill_rows=self.config.prefill_rows,
            repair_rows=self.config.repair_rows,
            max_answers=self.config.max_answers,
        )

    def begin(
        self,
        request: Request,
        watch: Stopwatch,
        *,
        in_full_if_short: bool = True,
        planning: Planning | None = None,
    ) -> Served:
        """From ids to a plan, with the slots that it takes. Nothing is computed yet.

        Args:
            request: the prompt, and whose donors may be used how.
            watch: counts the stages.
            in_full_if_short: see `Served`.
            planning: makes the plan in place of `plan`.

        Raises:
            PoolExhausted: no KV slots, and nothing left to evict.

        """
        served = Served(
            self.executor,
            (planning or self.plan)(request.ids, request.policy, request.namespace, watch),
            request.namespace,
            watch,
            room=request.room,
            in_full_if_short=in_full_if_short,
            on_fallback=lambda stage: self.counters.update([f"fallback:{stage}"]),
            retention=Retention.of(request.policy),
        )
        self._serving.add(served)
        return served

    def prompt_ids(self, prompt: Prompt, namespace: str) -> Ids:
        """Token ids `[n]` of a prompt that requests of a namespace may send.

        Raises:
            PromptTooLong: longer than the model's context.
            PromptOverLimit: longer than the namespace's limit.
            InvalidRequest: empty, or an id outside the vocabulary.

        """
        ids = self.encoder.prompt_ids(prompt)
        self.keeper.limits_of(namespace).check_prompt(len(ids))
        return ids

    def plan(self, ids: Ids, policy: ReusePolicy, namespace: str, watch: Stopwatch) -> Planned:
        """Find donors → align → guard → plan; what fails on the way is computed in full."""
        mode = self.monitor.mode_for(policy, namespace)
        if mode == "off":
            return Planned(full_plan(ids), mode)
        self.pool.settle()
        arrivals = tuple(self.pool.arrivals)
        try:
            draft = self.draft(ids, policy.with_mode(mode), namespace, watch)
            attention, looked = query_attention(self.executor, self.planner, draft, watch, arrivals)
            with watch.measure("plan"):
                plan = self.planner.finish(draft, query_attention=attention)
            owners = draft.found.prefix_owners
            return Planned(plan, mode, owners, looked, arrivals=arrivals)
        except Exception as error:  # reuse may cost speed, never an answer
            self.counters[f"fallback:{watch.stage}"] += 1
            log_failure(f"{watch.stage} failed, the prompt is computed in full", error)
            return Planned(full_plan(ids), mode, fallback=f"{watch.stage}: {type(error).__name__}")

    def load_stored(self, requests: Sequence[tuple[Request, Stopwatch]]) -> None:
        """Let what the prompts' plans would reuse from below the pool come into it.

        The plans are made once more when the requests' turn has come, over what the pool has by
        then. If nobody else is served, layers are computed as they arrive; otherwise the requests
        wait here, where nobody waits with them. Whatever fails costs reuse, never a request.
        """
        storage = self.storage
        if storage is None or not self.library.residency.has_any_below:
            return
        try:
            coming: list[tuple[Stopwatch, list[Arrival]]] = []
            with self.lock, torch.inference_mode():
                for request, watch in requests:
                    namespace = request.namespace
                    plan = self.plan_with_stored(request.ids, request.policy, namespace, watch)
                    arrivals = storage.begin_loading(plan, namespace, within_s=request.spare_s)
                    coming.append((watch, arrivals))
                others = len(requests) > 1 or bool(self.scheduler.active)
            for watch, arrivals in coming:
                with watch.measure("fetch"):
                    storage.wait(arrivals, whole=others)
        except Exception as error:
            self.counters["fallback:fetch"] += 1
            log_failure("donors could not be loaded, prompts are computed without", error)

    def plan_with_stored(
        self, ids: Ids, policy: ReusePolicy, namespace: str, watch: Stopwatch
    ) -> ReusePlan:
        """What would be reused if all donors were in the pool. Runs no model, and loads nothing.

        The tokens that the `query_attention` selection would add to the fresh ones are not in it,
        because choosing them takes a pass of the model.
        """
        mode = self.monitor.mode_for(policy, namespace)
        if mode == "off":
            return full_plan(ids)
        draft = self.draft(ids, policy.with_mode(mode), namespace, watch)
        with watch.measure("plan"):
            return self.planner.finish(draft, with_stored=True)

    def draft(self, ids: Ids, policy: ReusePolicy, namespace: str, watch: Stopwatch) -> Draft:
        """Find donors → align → guard. Touches no model."""
        with watch.measure("find_donors"):
            found = self.planner.find_donors(ids, policy, namespace)
        with watch.measure("align"):
            alignment = self.planner.align(ids, found)
        with watch.measure("guard"):
            unsafe = self.planner.guard(ids, alignment, found, policy)
        return Draft(ids, policy, found, alignment, unsafe)

    def prefilled(self, served: Served) -> None:
        """A prompt's KV is there: others may begin with it, if it is exact.

        From then on its own answers see what the policy retains.
        """
        self._serving.add(served)  # one that joined another's prompt was not begun here
        for source, tokens in served.provenance.counts.items():
            self.counters[f"tokens:{source}"] += tokens
        self.library.touch(served.namespace, served.planned.donors)
        self._cache(served, served.ids, served.sequence)
        try:
            served.retain()
        except PoolExhausted:
            self.counters["retention_skipped"] += 1  # it takes more room than it was asked to

    def cached_tokens(self, ids: Ids, namespace: str) -> int:
        """Tokens of the longest exact prefix that is cached."""
        spaces = self.library.readable(namespace)
        found = (space.prefixes.match(ids, limit=len(ids) - 1).tokens for space in spaces)
        return max(found, default=0)

    def exact_plan(self, ids: Ids, namespace: str) -> ReusePlan:
        """A plan that reuses exact prefixes only."""
        self.pool.settle()
        plan = self.planner.finish(
            self.draft(ids, ReusePolicy(mode="prefix"), namespace, Stopwatch())
        )
        return full_plan(ids) if self.pool.arriving(plan.slots[plan.slots >= 0]) else plan

    # ------------------------------------------------------- what is asked for

    def stream(self, request: Request, watch: Stopwatch) -> Generator[TextDelta]:
        """Pieces of the answers as they come, the last with the whole; closing it frees all."""
        self.load_stored([(request, watch)])
        yield from self._pieces(self._submit(request, watch))

    def answers(self, requests: Sequence[tuple[Request, Stopwatch]]) -> list[Answer]:
        """Whole answers of requests that come together."""
        generations: list[Generation] = []
        self.load_stored(requests)
        try:
            with self.lock:
                generations += [self._submit(*request) for request in requests]
            last = [deque(self._pieces(one), maxlen=1).pop().answer for one in generations]
        finally:
            self._drop(generations)
        return [answer for answer in last if answer is not None]

    def _submit(self, request: Request, watch: Stopwatch) -> Generation:
        with self.lock:
            self.counters["requests"] += 1
            return self.scheduler.submit(request, watch)

    def _pieces(self, generation: Generation) -> Generator[TextDelta]:
        """Run steps, for all requests, until this one has ended or is given up."""
        given_up = generation.request.given_up
        try:
            while True:
                has_ended = generation.ended  # asked first: what comes before the end is there
                while generation.outbox:
                    yield generation.outbox.popleft()
                if has_ended:
                    break
                with self.lock, torch.inference_mode():
                    if given_up is not None and given_up():
                        raise GivenUp
                    if not generation.outbox and not generation.ended:
                        self.scheduler.step()
            if generation.error is not None:
                raise generation.error
        finally:
            self._drop([generation])

    def _drop(self, generations: Sequence[Generation]) -> None:
        with self.lock:
            for generation in generations:
                if not generation.ended:
                    self.scheduler.cancel(generation)

    def continuation(
        self, generation: Generation, index: int, sequence: KVSequence
    ) -> Continuation:
        """A new answer of a prefilled prompt."""
        request = generation.request
        policy = request.policy
        may_be_kept = generation.prompt.exact or policy.repair != "off"
        keeps_history = policy.remember and may_be_kept and index == 0
        return Continuation(
            sequence,
            Sampler(request.sampling.for_continuation(index)),
            TextAssembler(self.encoder.decode, request.stop),
            self.eos,
            request.max_tokens,
            emit=generation.outbox.append,
            index=index,
            record=AttentionRecord() if keeps_history else None,
        )

    def repaired(self, served: Served, sequence: KVSequence) -> None:
        """A mixed prompt has been computed exactly meanwhile: others may begin with that."""
        self._cache(served, served.ids, sequence)

    def answer(self, generation: Generation) -> Answer:
        """The whole answer; what may be kept of its KV is kept."""
        request, served, first = generation.request, generation.prompt, generation.continuations[0]
        sequence, computed = served.sequence, served.ids
        if generation.repair is not None:
            sequence = generation.repair.sequence
        elif request.n == 1 and served.plan.is_exact:
            answered = np.asarray(first.tokens[: first.computed], dtype=np.int32)
            sequence, computed = first.sequence, np.concatenate((served.ids, answered))
        remembered, donor = self.keep(served, computed, sequence, request.policy, first.record)
        choices = tuple(one.choice for one in generation.continuations)
        return Answer(
            text=choices[0].text,
            token_ids=choices[0].token_ids,
            prompt_tokens=len(request.ids),
            finish_reason=choices[0].finish_reason,
            choices=choices,
            provenance=served.provenance,
            timings=generation.watch.timings(),
            remembered=remembered,
            donor=donor,
        )

    def keep(
        self,
        served: Served,
        computed: Ids,
        sequence: KVSequence,
        policy: ReusePolicy,
        record: AttentionRecord | None = None,
    ) -> tuple[RememberState, DonorInfo | None]:
        """Let exact KV stay. The answer is there already; failing here must not take it away.

        Args:
            served: the request.
            computed: the tokens whose KV is in `sequence`, the prompt first.
            sequence: exact if the request is.
            policy: says whether to remember the prompt.
            record: the attention that the answer's tokens paid.

        """
        try:
            if served.forgotten or served.preempted or not served.prefilled:
                return "no", None
            self._cache(served, computed, sequence)
            return self.keeper.remember_target(served, sequence, policy, record)
        except Exception as error:
            self.counters["not_kept"] += 1
            log_failure("an answered prompt could not be kept", error)
            return "no", None

    def _cache(self, served: Served, computed: Ids, sequence: KVSequence) -> None:
        if not served.forgotten:
            self.keeper.cache_prefix(served, computed, sequence)

    def no_longer_served(self, served: Served) -> None:
        """A prompt that was begun here has ended; nothing of it may be kept from now on."""
        self._serving.discard(served)

    def forget(self, namespace: str, donor_id: str) -> None:
        """Drop a donor, and wait until no tier that answers has it any more.

        Raises:
            NotFound: no such donor in this namespace.

        """
        with self.lock:
            self.library.remove(namespace, donor_id)
        if self.storage is not None:
            self.storage.wait_for_removal(donor_id)

    def close(self, timeout_s: float) -> None:
        """Write donors that are not in the tiers yet, as far as this time allows; close these."""
        if self.storage is not None:
            self.storage.close(timeout_s)

    def forget_all(self, namespace: str | None) -> None:
        """Drop all that is kept of a namespace's prompts, or of all; what is served now too."""
        with self.lock:
            for name in [namespace] if namespace is not None else self.library.names:
                self.library.clear(name)
            self.keeper.drop_all_pending(namespace)
            self.monitor.reset(namespace)
            for served in self._serving:
                served.forgotten |= namespace in (None, served.namespace)
