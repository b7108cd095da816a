"""One example measured: speed with and without reuse, then fidelity of the very same plan."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, fields
from statistics import median

import numpy as np
import torch

from semshare import Answer, Provenance, ReusePolicy, Score, SemShare, Timings, fidelity
from semshare.evaluation import metrics
from semshare.evaluation.material import Example
from semshare.evaluation.progress import Step

FULL = ReusePolicy(mode="off")
EXACT = ReusePolicy(mode="prefix")
ANSWER_TOKENS = 40  # of the model's own full answer, where there is no gold text


@dataclass(frozen=True, slots=True)
class Fidelity:
    """Distance from full prefill over the tokens of one continuation."""

    kl: float  # mean nats a token
    top1: float
    max_logit_diff: float
    tokens: int


@dataclass(frozen=True, slots=True)
class TaskScores:
    """Mean log-likelihood a token of the gold text, nats."""

    full: float
    reuse: float
    no_context: float


@dataclass(frozen=True, slots=True)
class Measured:
    """All that one example gave. Seconds are medians over the repeats."""

    tokens: int
    build_s: float  # remembering all donors
    full_s: float
    reuse_s: float
    first_reuse_s: float  # before any cache of planning is warm
    stages: Timings  # of the reuse
    provenance: Provenance
    plans_stable: bool
    fidelity: Fidelity
    floor: Fidelity  # exact KV of the same prompt
    scores: TaskScores | None


def compare(full: Score, other: Score) -> Fidelity:
    """How far `other` is from `full`, two scores of one continuation."""
    return Fidelity(
        kl=fidelity.kl(full.logits, other.logits),
        top1=fidelity.top1_agreement(full.logits, other.logits),
        max_logit_diff=fidelity.max_logit_difference(full.logits, other.logits),
        tokens=len(full.token_ids),
    )


class Bench:
    """Measures examples on one engine, each in namespaces of its own that it empties again.

    Full prefill is `mode="off"` of the same engine: same code, same dtype.
    """

    def __init__(self, engine: SemShare, policy: ReusePolicy, *, repeats: int, note: Step) -> None:
        self._engine = engine
        self._policy = policy
        self._repeats = repeats
        self._note = note

    def warm_up(self, example: Example) -> None:
        """One untimed request of real size, so that memory is mapped and code is loaded."""
        self._note("warming up")
        self._engine.remember(example.donors[0], namespace="bench-warm-up")
        for policy in (FULL, self._policy):
            self._engine.generate(
                example.target, max_tokens=2, policy=policy, namespace="bench-warm-up"
            )
        self._engine.forget_all("bench-warm-up")

    def measure(self, example: Example) -> Measured:
        """Speed first, interleaved; then fidelity through `score` of the same path."""
        try:
            return self._measure(example)
        finally:
            for namespace in ("bench", "bench-floor"):
                self._engine.forget_all(namespace)

    def _measure(self, example: Example) -> Measured:
        self._note("remembering donors")
        build_s = self._remember(example)
        full: list[Answer] = []
        reuse: list[Answer] = []
        for repeat in range(self._repeats):
            self._note(f"repeat {repeat + 1} of {self._repeats}")
            # Taking turns at being first keeps a drifting clock rate out of the ratio.
            for is_full in (True, False) if repeat % 2 == 0 else (False, True):
                if is_full:
                    full.append(self._first_token(example, FULL, answer=not full))
                else:
                    reuse.append(self._first_token(example, self._policy))
                    self._restore(example, reuse[-1].provenance)

        self._note("fidelity")
        continuation = example.gold if example.gold is not None else full[0].token_ids
        exact = self._score(example, continuation, FULL)
        reused = self._score(example, continuation, self._policy)
        self._engine.remember(example.target, namespace="bench-floor")
        floor = self._score(example, continuation, EXACT, "bench-floor")
        provenances = [*(answer.provenance for answer in reuse), reused.provenance]
        return Measured(
            tokens=full[0].prompt_tokens,
            build_s=build_s,
            full_s=median(answer.timings.ttft_s for answer in full),
            reuse_s=median(answer.timings.ttft_s for answer in reuse),
            first_reuse_s=reuse[0].timings.ttft_s,
            stages=median_timings([answer.timings for answer in reuse]),
            provenance=reused.provenance,
            plans_stable=all(
                np.array_equal(provenances[0].source, other.source) for other in provenances
            ),
            fidelity=compare(exact, reused),
            floor=compare(exact, floor),
            scores=self._task_scores(example, exact, reused),
        )

    def plain_transformers_s(self, example: Example) -> float:
        """Seconds of transformers' own forward pass over the target's ids, last logits only."""
        ids = torch.from_numpy(self._engine.encode(example.target).astype(np.int64))[None]
        model = self._engine.model.hf_model
        ids = ids.to(model.device)
        with torch.inference_mode():
            started = time.perf_counter()
            logits = model(input_ids=ids, logits_to_keep=1, use_cache=True).logits
            logits.argmax(dim=-1).item()  # waits for a GPU
            return time.perf_counter() - started

    def _remember(self, example: Example) -> float:
        started = time.perf_counter()
        for donor in example.donors:
            self._engine.remember(donor, namespace="bench")
        return time.perf_counter() - started

    def _restore(self, example: Example, provenance: Provenance) -> None:
        """Undo what a request left behind: an exact one is a prefix hit for its own repeat."""
        if provenance.exact:
            self._engine.forget_all("bench")
            self._remember(example)

    def _first_token(
        self, example: Example, policy: ReusePolicy, *, answer: bool = False
    ) -> Answer:
        return self._engine.generate(
            example.target,
            max_tokens=ANSWER_TOKENS if answer and example.gold is None else 1,
            policy=policy,
            namespace="bench",
        )

    def _score(
        self,
        example: Example,
        continuation: str | Sequence[int],
        policy: ReusePolicy,
        namespace: str = "bench",
    ) -> Score:
        return self._engine.score(example.target, continuation, policy=policy, namespace=namespace)

    def _task_scores(self, example: Example, exact: Score, reused: Score) -> TaskScores | None:
        if example.gold is None or example.no_context is None:
            return None
        blind = self._engine.score(example.no_context, example.gold, policy=FULL)
        return TaskScores(
            *(
                metrics.mean_log_likelihood(score.logits, score.token_ids)
                for score in (exact, reused, blind)
            )
        )


def median_timings(timings: Sequence[Timings]) -> Timings:
    """The median of each stage by itself."""
    return Timings(
        **{
            stage.name: median(getattr(timing, stage.name) for timing in timings)
            for stage in fields(Timings)
        }
    )
