"""The path of a prompt from text to an answer with its provenance.

    text → tokenize → find donors → align → guard → plan → prefill → decode → answer

`Session.serve` reads like that line. Up to the plan no layer runs; from the plan on nothing is
decided. Whatever fails on the way to a mixed prefill, the prompt is computed in full.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from semshare.config import EngineConfig, ReusePolicy
from semshare.donors.embedders import Embedder, ModelEmbedder, SentenceEmbedder
from semshare.donors.library import DonorLibrary
from semshare.donors.token_lsh import TokenLSH
from semshare.engine.adapter import ModelAdapter
from semshare.engine.decode import Decoding
from semshare.engine.executor import AttentionRecord, Executor
from semshare.engine.failures import log_failure
from semshare.engine.keeper import Keeper
from semshare.engine.prefill import prefill
from semshare.engine.prompts import PromptEncoder, TokenTexts, eos_ids
from semshare.engine.sampling import Sampler, SamplingParams
from semshare.engine.served import Served, Stopwatch, provenance_of
from semshare.engine.text import TextAssembler
from semshare.kv.pool import KVPool
from semshare.planning.monitor import DivergenceMonitor
from semshare.planning.plan import full_plan
from semshare.planning.planner import Draft, Planner
from semshare.types import Answer, Choice, DonorInfo, Ids, RememberState, Scores, TextDelta


class Session:
    """One model, its pool of KV and its donors, and what happens to a prompt.

    `lock` is held for each prefill and each decode step, and for every look at the donors.

    Args:
        hf_model: a transformers causal LM of a supported family.
        tokenizer: its tokenizer.
        config: settings for the engine's life.
        embedder: makes the prompt vectors, in place of the one that `config` names.

    """

    def __init__(
        self,
        hf_model: torch.nn.Module,
        tokenizer: Any,
        config: EngineConfig,
        embedder: Embedder | None,
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
        lsh = TokenLSH(self.model.embedding_weight)
        if embedder is None and config.embedder == "sentence":
            embedder = SentenceEmbedder(tokenizer.decode)
        self.library = DonorLibrary(
            self.pool, embedder or ModelEmbedder(self.model.embedding_weight)
        )
        self.token_texts = TokenTexts(tokenizer)
        self.planner = Planner(
            self.library, self.pool, lsh, self.token_texts, config, self.model.n_layers
        )
        self.executor = Executor(self.model, self.pool)
        self.monitor = DivergenceMonitor()
        self.encoder = PromptEncoder(tokenizer, self.model.vocab_size, self.model.max_context)
        self.eos = eos_ids(hf_model, tokenizer)
        self.keeper = Keeper(self.library, lsh, self.token_texts)
        self.counters: Counter[str] = Counter()
        self._serving: list[Served] = []  # prefilled and not ended
        self.lock = threading.RLock()

    def serve(
        self,
        ids: Ids,
        policy: ReusePolicy,
        namespace: str,
        room: int,
        watch: Stopwatch | None = None,
    ) -> Served:
        """From ids to a prefilled sequence and the logits of its last token.

        Args:
            ids: `[n]` of the prompt.
            policy: the request's.
            namespace: whose donors may be used.
            room: most tokens of the answer.
            watch: counts the stages.

        Raises:
            PoolExhausted: no KV slots, and nothing left to evict.

        """
        watch = watch or Stopwatch()
        mode = self.monitor.mode_for(policy, namespace)
        policy = policy.with_mode(mode)
        self.counters["requests"] += 1
        fallback = None
        run = None
        first_look = 0
        if mode != "off":
            try:
                draft = self.draft(ids, policy, namespace, watch)
                attention, first_look = self._query_attention(draft, watch)
                with watch.measure("plan"):
                    plan = self.planner.finish(draft, query_attention=attention)
                run = prefill(self.executor, plan, watch, room=room)
                self.library.touch(namespace, {*plan.donors, *draft.found.prefix_owners})
            except Exception as error:  # reuse may cost speed, never an answer
                fallback = f"{watch.stage}: {type(error).__name__}"
                self.counters[f"fallback:{watch.stage}"] += 1
                log_failure(f"{watch.stage} failed, the prompt is computed in full", error)
        if run is None:
            run = prefill(self.executor, full_plan(ids), watch, room=room)
        served = Served(
            plan=run.plan,
            sequence=run.sequence,
            logits=run.logits,
            provenance=provenance_of(
                run, first_look + run.rows_computed, self.model.n_layers, mode, fallback
            ),
            namespace=namespace,
        )
        self._serving.append(served)
        for source, tokens in served.provenance.counts.items():
            self.counters[f"tokens:{source}"] += tokens
        return served

    def draft(self, ids: Ids, policy: ReusePolicy, namespace: str, watch: Stopwatch) -> Draft:
        """Find donors → align → guard. Touches no model."""
        with watch.measure("find_donors"):
            found = self.planner.find_donors(ids, policy, namespace)
        with watch.measure("align"):
            alignment = self.planner.align(ids, found)
        with watch.measure("guard"):
            unsafe = self.planner.guard(ids, alignment, found, policy)
        return Draft(ids, policy, found, alignment, unsafe)

    def _query_attention(self, draft: Draft, watch: Stopwatch) -> tuple[Scores | None, int]:
        """One pass of the question over the donors' KV, for the policy that asks for it.

        Returns the attention `[n]` each token got, and the (row, layer) pairs that ran.
        """
        with watch.measure("plan"):
            plan = self.planner.question_plan(draft)
        if plan is None:
            return None, 0
        record = AttentionRecord(first_position=len(draft.ids) - draft.policy.tail_tokens)
        run = prefill(self.executor, plan, watch, room=0, record=record)
        run.sequence.release()
        return record.upto(len(draft.ids)), run.rows_computed

    def answer(
        self,
        ids: Ids,
        decoding: Decoding,
        policy: ReusePolicy,
        namespace: str,
        watch: Stopwatch,
    ) -> Generator[TextDelta]:
        """Serve, decode, and keep what may be kept."""
        with self.lock, torch.inference_mode():
            served = self.serve(ids, policy, namespace, decoding.max_tokens, watch)
        try:
            if policy.remember and served.provenance.exact:
                decoding.record = AttentionRecord()
            yield from decoding.run(served, self.lock, watch)
            computed = np.concatenate((ids, np.asarray(decoding.tokens[:-1], dtype=np.int32)))
            remembered, donor = self.keep(served, computed, policy, namespace, decoding.record)
        finally:
            self.end(served)
        choice = Choice(
            decoding.text.text,
            decoding.tokens,
            decoding.finish_reason,
            tuple(decoding.logprobs),
        )
        answer = Answer(
            text=choice.text,
            token_ids=choice.token_ids,
            prompt_tokens=len(ids),
            finish_reason=choice.finish_reason,
            choices=(choice,),
            provenance=served.provenance,
            timings=watch.timings(),
            remembered=remembered,
            donor=donor,
        )
        yield TextDelta("", [], answer)

    def keep(
        self,
        served: Served,
        computed: Ids,
        policy: ReusePolicy,
        namespace: str,
        record: AttentionRecord | None = None,
    ) -> tuple[RememberState, DonorInfo | None]:
        """Let exact KV stay. The answer is there already; failing here must not take it away."""
        try:
            with self.lock, torch.inference_mode():
                if served.forgotten:
                    return "no", None
                self.keeper.cache_prefix(served, computed, namespace)
                return self.keeper.remember_target(served, policy, namespace, record)
        except Exception as error:
            self.counters["not_kept"] += 1
            log_failure("an answered prompt could not be kept", error)
            return "no", None

    @contextmanager
    def computed(self, ids: Ids, namespace: str) -> Iterator[tuple[Served, Scores]]:
        """A prompt computed in full, and the attention that its first answer paid to it.

        Its KV is held until the block ends.
        """
        policy = ReusePolicy(mode="prefix")
        with self.lock, torch.inference_mode():
            served = self.serve(ids, policy, namespace, room=self.config.history_tokens)
        try:
            yield served, self._first_history(served)
        finally:
            self.end(served)

    def _first_history(self, served: Served) -> Scores:
        """Attention that a greedy answer pays to each prompt token, `[n]`."""
        record = AttentionRecord()
        room = self.model.max_context - served.sequence.length
        if self.config.history_tokens:
            decoding = Decoding(
                self.executor,
                Sampler(SamplingParams()),
                TextAssembler(self.encoder.decode, ()),
                self.eos,
                max_tokens=min(self.config.history_tokens, room) + 1,  # the last is not computed
                record=record,
            )
            for _ in decoding.run(served, self.lock, Stopwatch()):
                pass
        return record.upto(len(served.plan.ids))

    def forget_all(self, namespace: str | None) -> None:
        """Drop all that is kept of a namespace's prompts, or of all; what is served now too."""
        with self.lock:
            for name in [namespace] if namespace is not None else self.library.names:
                self.library.clear(name)
            self.keeper.drop_all_pending(namespace)
            self.monitor.reset(namespace)
            for served in self._serving:
                served.forgotten |= namespace in (None, served.namespace)

    def end(self, served: Served) -> None:
        """Give back what a request held."""
        with self.lock:
            served.sequence.release()
            if served in self._serving:
                self._serving.remove(served)
