"""What a policy's reuse does to one answered prompt, against full prefill. No KV of it is kept."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch

from semshare.config import ReusePolicy
from semshare.engine.generation import Request
from semshare.engine.stopwatch import Stopwatch
from semshare.errors import PoolExhausted, PromptTooLong
from semshare.fidelity import kl, top1_agreement
from semshare.planning.monitor import modes_down_from
from semshare.session import Session
from semshare.types import Divergence, Ids, ModeDivergence, Provenance, Verification

_FULL = ReusePolicy(mode="off")


def verification(
    session: Session,
    ids: Ids,
    answer: Ids,
    policy: ReusePolicy,
    namespace: str,
    between: Callable[[], None],
) -> Verification:
    """Score an answer after a full prefill and after the policy's, and tell the monitor.

    The policy's own mode is scored even where reuse is stepped down at present, so that it can
    step up again; where it is above the bound, the mode it steps down to is scored too.

    Args:
        session: whose donors are used, and whose monitor learns of it.
        ids: `[n]` of the prompt.
        answer: `[m]`, at least one. The first `EngineConfig.prefill_rows` of them are scored, so
            that scoring is one piece of work like those of the prefill.
        policy: to be measured.
        namespace: whose donors may be used.
        between: called without the lock after each piece of work, which computes at most
            `EngineConfig.prefill_rows` rows. What it raises ends the verification.

    Raises:
        PromptTooLong: prompt and answer are longer than the context.
        PoolExhausted: no KV slots beside those of donors, of which none goes to measure.

    """
    answer = answer[: session.config.prefill_rows]
    if len(ids) + len(answer) > session.model.max_context:
        raise PromptTooLong(len(ids) + len(answer), session.model.max_context)
    exact, _ = _logits(session, ids, answer, _FULL, namespace, between)
    bound = session.monitor.bound_of(policy)
    scored: list[ModeDivergence] = []
    for mode in modes_down_from(policy.mode):
        # Without a bound, since that would put another mode in its place.
        used = replace(policy, mode=mode, max_divergence=math.inf, remember=False)
        reused, provenance = _logits(session, ids, answer, used, namespace, between)
        divergence = Divergence(
            kl=kl(exact, reused), top1=top1_agreement(exact, reused), tokens=len(answer)
        )
        with session.lock:
            counts = session.monitor.observe(namespace, provenance, divergence)
        scored.append(ModeDivergence(mode, divergence, counts))
        if bound is None or divergence.kl <= bound:
            break
    with session.lock:
        in_force = session.monitor.mode_for(policy, namespace)
    return Verification(tuple(scored), in_force)


def _logits(
    session: Session,
    ids: Ids,
    answer: Ids,
    policy: ReusePolicy,
    namespace: str,
    between: Callable[[], None],
) -> tuple[torch.Tensor, Provenance]:
    """Logits `[m, vocab]` float32 that each of the answer's tokens could be picked from."""
    request = Request(ids, policy, namespace, len(answer))
    with session.lock:
        pool = session.pool
        wanted = pool.pages_for(len(ids) + len(answer))
        spare = session.library.spare_pages
        if wanted > spare:
            raise PoolExhausted(wanted * pool.page_size, spare * pool.page_size, pool.n_slots)
    with session.outside.served(
        request, Stopwatch(), leaves_nothing=True, between=between
    ) as served:
        with session.lock, torch.inference_mode():
            logits = session.outside.score(served.sequence, served.logits, answer)
        between()
        return logits, served.provenance
