"""Answers decoded step by step by themselves: what the model thought at each position, and for
how long.

The steps are those of `semshare.engine.scheduler`, repairs included. Who picks the tokens may be
another, so that runs under different policies are compared position by position, and nothing need
stay behind.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from semshare import Answer, Provenance, ReusePolicy, SemShare
from semshare.config import DEFAULT_NAMESPACE
from semshare.engine.continuation import Continuation
from semshare.engine.generation import Generation, Request
from semshare.engine.prompts import eos_ids
from semshare.engine.sampling import Picked, Sampler, SamplingParams
from semshare.engine.served import Served
from semshare.engine.stages import Stages
from semshare.engine.stopwatch import Stopwatch
from semshare.errors import PromptTooLong
from semshare.kv.sequence import KVSequence
from semshare.session import Session
from semshare.types import Prompt

_NEVER = -100.0  # a logit's bias; the most that may be asked for


@dataclass(frozen=True, slots=True, eq=False)
class ForcedAnswer:
    """An answer of n tokens, as it came.

    tokens:     `[n]`.
    logits:     `[n, vocab]` float32 that each of them could be picked from.
    seconds:    `[n]` of the steps that gave each of them; of the first, all before it too.
    provenance: of the prompt; `repaired_after` is the first position whose logits are exact.
    """

    tokens: list[int]
    logits: Tensor
    seconds: list[float]
    provenance: Provenance


def without_end(engine: SemShare) -> dict[int, float]:
    """A `logit_bias` with which no answer ends before its last allowed token."""
    return dict.fromkeys(eos_ids(engine.model.hf_model, engine.tokenizer), _NEVER)


def decode_forced(
    engine: SemShare,
    prompt: Prompt,
    *,
    tokens: Sequence[int] | None,
    n: int,
    policy: ReusePolicy,
    namespace: str = DEFAULT_NAMESPACE,
    leaves_nothing: bool = False,
) -> ForcedAnswer:
    """Answer one prompt with given tokens. Nobody else is served meanwhile.

    Args:
        engine: the model, its pool and its donors.
        prompt: text, chat messages or token ids.
        tokens: `[n]` the answer; None: the greedy one that does not end before n tokens.
        n: tokens of the answer.
        policy, namespace: as for `SemShare.stream`.
        leaves_nothing: no later prompt begins with its KV, even where it is exact.

    Raises:
        PromptTooLong: prompt and answer don't fit the model's context.
        PoolExhausted: no KV slots, and nothing left to evict.

    """
    watch = Stopwatch()
    sampler = _Recorder(SamplingParams(logit_bias=without_end(engine)), tokens)
    seconds = [0.0]

    def took(step_s: float) -> None:
        seconds[-1] += step_s
        if len(sampler.logits) == len(seconds):
            seconds.append(0.0)

    stages = _Stages(engine.session, sampler, leaves_nothing=leaves_nothing)
    generation = _answered_alone(engine, prompt, n, policy, namespace, stages, watch, took)
    seconds[0] = watch.timings().ttft_s
    picked = generation.continuations[0].tokens
    return ForcedAnswer(
        picked, torch.stack(sampler.logits), seconds[: len(picked)], generation.prompt.provenance
    )


def answer_alone(
    engine: SemShare, prompt: Prompt, *, max_tokens: int, policy: ReusePolicy, namespace: str
) -> Answer:
    """A greedy answer that leaves no KV behind. Nobody else is served meanwhile.

    Args:
        engine: the model, its pool and its donors.
        prompt: text, chat messages or token ids.
        max_tokens, policy, namespace: as for `SemShare.stream`.

    Raises:
        PromptTooLong: prompt and answer don't fit the model's context.
        PoolExhausted: no KV slots, and nothing left to evict.

    """
    stages = _Stages(engine.session, None, leaves_nothing=True)
    generation = _answered_alone(
        engine, prompt, max_tokens, policy, namespace, stages, Stopwatch(), lambda _: None
    )
    (answer,) = (delta.answer for delta in generation.outbox if delta.answer is not None)
    return answer


def _answered_alone(
    engine: SemShare,
    prompt: Prompt,
    max_tokens: int,
    policy: ReusePolicy,
    namespace: str,
    stages: Stages,
    watch: Stopwatch,
    took: Callable[[float], None],
) -> Generation:
    """One request run to its end by a scheduler of its own; `took` gets each step's seconds."""
    session = engine.session
    ids = session.encoder.prompt_ids(prompt)
    if len(ids) + max_tokens > engine.max_context:
        raise PromptTooLong(len(ids) + max_tokens, engine.max_context)
    with session.lock, torch.inference_mode():
        scheduler = session.new_scheduler(stages)
        generation = scheduler.submit(Request(ids, policy, namespace, max_tokens), watch)
        while not generation.ended:
            before = watch.elapsed_s
            scheduler.step()
            took(watch.elapsed_s - before)
    if generation.error is not None:
        raise generation.error
    return generation


class _Recorder(Sampler):
    """Picks given tokens, or greedily where there are none, and keeps the logits of each."""

    def __init__(self, params: SamplingParams, tokens: Sequence[int] | None) -> None:
        super().__init__(params)
        self._tokens = tokens
        self.logits: list[Tensor] = []  # [vocab] float32 each

    def pick(self, logits: Tensor) -> Picked:
        """The next given token."""
        self.logits.append(logits.clone())
        if self._tokens is None:
            return super().pick(logits)
        return Picked(self._tokens[len(self.logits) - 1], None)


class _Stages:
    """A session's stages (`semshare.engine.stages`), but for who picks the tokens, if `sampler` is
    given, and what is kept.
    """

    def __init__(self, session: Session, sampler: Sampler | None, *, leaves_nothing: bool) -> None:
        self._session = session
        self._sampler = sampler
        self._leaves_nothing = leaves_nothing
        self.prefilled = session.prefilled
        self.exact_plan = session.exact_plan
        self.repaired = session.repaired
        self.answer = session.answer

    def begin(self, request: Request, watch: Stopwatch, *, in_full_if_short: bool) -> Served:
        """The session's, forgotten from the start if nothing is to stay."""
        served = self._session.begin(request, watch, in_full_if_short=in_full_if_short)
        served.forgotten = self._leaves_nothing
        return served

    def continuation(
        self, generation: Generation, index: int, sequence: KVSequence
    ) -> Continuation:
        """The session's, with the sampler."""
        one = self._session.continuation(generation, index, sequence)
        if self._sampler is not None:
            one.sampler = self._sampler
        return one
