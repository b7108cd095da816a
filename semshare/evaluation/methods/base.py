"""What every method of the evaluation is given, and what it gives back."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from semshare import Provenance, ReusePolicy, SemShare, Timings
from semshare.engine.generation import Request
from semshare.engine.served import Planned
from semshare.engine.stopwatch import Stopwatch
from semshare.errors import PromptTooLong
from semshare.evaluation.material import Example
from semshare.planning.deviation import schedule_of
from semshare.planning.planner import Draft
from semshare.session import Planning, Session
from semshare.types import Ids, Prompt, ReusePlan, TokenSource

# `Planning` but for the session, which a method learns with the engine.
SessionPlanning = Callable[[Session, Ids, ReusePolicy, str, Stopwatch], Planned]
# Makes another plan of what the library found and would do.
Change = Callable[[Session, Draft, ReusePlan], ReusePlan]


@dataclass(frozen=True, slots=True)
class Task:
    """What a method is to do with an example whose donors have been remembered.

    namespace:    where the donors are.
    continuation: `[n_cont]` ids whose probabilities are asked for, at least one.
    max_tokens:   most tokens of its own greedy answer.
    """

    namespace: str
    continuation: list[int]
    max_tokens: int


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """What a method made of one example.

    logits:       `[n_cont, vocab]` float32: each row is what the token of `continuation` could be
                  picked from, all before it given.
    token_ids:    its own greedy answer, without the end token.
    text:         of that.
    provenance:   where the prompt's KV came from.
    timings:      `ttft_s` from the text to the first token, everything on the way counted;
                  `decode_s` of the answer's other tokens.
    kv_bytes:     KV of the prompt that a decode step reads, all layers.
    own_kv_bytes: KV that the request holds by itself, not shared with a donor.
    """

    logits: Tensor
    token_ids: list[int]
    text: str
    provenance: Provenance
    timings: Timings
    kv_bytes: int
    own_kv_bytes: int


class Method(Protocol):
    """One way to serve a prompt, named as the evaluation's tables name it."""

    @property
    def name(self) -> str:
        """As `--methods` takes it."""
        ...

    @property
    def about(self) -> str:
        """One line, with the paper it comes from."""
        ...

    def applies(self, example: Example) -> bool:
        """Whether the example has what it needs; a control may want a prompt that not all have."""
        ...

    def run(self, engine: SemShare, example: Example, task: Task) -> Outcome:
        """Serve the example's target. Donors stay as they are, so that the next finds the same."""
        ...


class ForEveryExample:
    """A method that any example has all that it needs for."""

    __slots__ = ()

    def applies(self, example: Example) -> bool:
        """To every example."""
        del example
        return True


@dataclass(frozen=True, slots=True)
class PolicyMethod(ForEveryExample):
    """A method that is a reuse policy, and perhaps another way to make the plan.

    Args:
        name, about: see `Method`.
        policy: of each request.
        planning: makes the plan in the session's place; `Session.plan` if None.

    """

    name: str
    about: str
    policy: ReusePolicy
    planning: SessionPlanning | None = None

    def run(self, engine: SemShare, example: Example, task: Task) -> Outcome:
        """Serve the target under the policy."""
        planning = self.planning and partial(self.planning, engine.session)
        return serve(engine, example.target, self.policy, task, planning)


def changed(change: Change) -> SessionPlanning:
    """The session's own stages up to the plan, which `change` then replaces.

    Other than in `Session.plan` an error is raised: a method that can't plan has no figures.
    """

    def planning(
        session: Session, ids: Ids, policy: ReusePolicy, namespace: str, watch: Stopwatch
    ) -> Planned:
        draft = session.draft(ids, policy, namespace, watch)
        with watch.measure("plan"):
            plan = change(session, draft, session.planner.finish(draft))
        return Planned(plan, policy.mode, draft.found.prefix_owners)

    return planning


def recomputed_by_deviation(plan: ReusePlan, shares: NDArray[np.float64]) -> ReusePlan:
    """A plan whose reused tokens, but for an exact prefix, all run in the first layer.

    Args:
        plan: what is reused.
        shares: `[layers − 1]` of them that go on in each layer after it, those whose KV deviates
            most.

    """
    candidates = np.flatnonzero(plan.source > TokenSource.PREFIX).astype(np.int32)
    if len(candidates) == 0:
        return plan
    return replace(plan, deviation=schedule_of(candidates, shares * len(candidates)))


def serve(
    engine: SemShare,
    prompt: Prompt,
    policy: ReusePolicy,
    task: Task,
    planning: Planning | None = None,
) -> Outcome:
    """One prefill of a prompt, a continuation scored after it and a greedy answer given.

    Args:
        engine: the model, its pool and its donors.
        prompt: what is served.
        policy: says what may be reused.
        task: see `Task`.
        planning: makes the plan in the session's place; `Session.plan` if None.

    Raises:
        PoolExhausted: no KV slots, and nothing left to evict.
        PromptTooLong: the prompt leaves no room in the model's context.

    """
    session, watch = engine.session, Stopwatch()
    ids = session.encoder.prompt_ids(prompt)
    continuation = np.asarray(task.continuation, dtype=np.int32)
    room = max(len(continuation), task.max_tokens)
    if len(ids) + room > engine.max_context:
        raise PromptTooLong(len(ids) + room, engine.max_context)
    request = Request(ids, policy, task.namespace, max_tokens=room)
    with session.outside.served(request, watch, planning=planning, leaves_nothing=True) as served:
        watch.first_token()
        sequence, provenance = served.sequence, served.provenance
        kept = round(provenance.retained * len(ids))
        own = kept if sequence.retained is not None else len(sequence.own[0])
        with session.lock, torch.inference_mode():
            scored = sequence.fork(room=len(continuation))
            try:
                logits = session.outside.score(scored, served.logits, continuation)
            finally:
                scored.release()
        started = time.perf_counter()
        answer = session.outside.greedy(served, task.max_tokens)
        decode_s = time.perf_counter() - started
        return Outcome(
            logits=logits,
            token_ids=answer.tokens,
            text=answer.text.text,
            provenance=provenance,
            timings=replace(watch.timings(), decode_s=decode_s),
            kv_bytes=kept * session.pool.bytes_per_slot,
            own_kv_bytes=own * session.pool.bytes_per_slot,
        )
