"""Requests over rewritten donors, prefilled together in semantic mode and in full."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from semshare import Answer, BenchmarkRefused, ReusePolicy, SemShare
from semshare.errors import InvalidRequest
from semshare.evaluation import prompts
from semshare.evaluation.material import Example
from semshare.evaluation.measure import FULL
from semshare.evaluation.metrics import mean_log_likelihood, performance_gap_recovered
from semshare.evaluation.paper_scenarios import (
    DONOR_ASPECT,
    TARGET_ASPECTS,
    instruction_first,
    question_last,
)
from semshare.evaluation.progress import Step
from semshare.evaluation.scenarios import scenario_named
from semshare.evaluation.texts import Split, paraphrase_pairs
from semshare.evaluation.throughput_batches import answer_together

SEMANTIC = ReusePolicy(mode="semantic")
LEAST_PGR = scenario_named("paraphrase").bounds.pgr
OPENINGS = (prompts.OPENING, "A colleague asks you about this article.")
_NAMESPACE = "bench"


@dataclass(frozen=True, slots=True)
class SemanticSpeed:
    """Seconds from the first of the requests to the last one's first token."""

    requests: int
    tokens: int  # of all prompts
    full_s: float
    semantic_s: float
    compute_fraction: float
    pgr: float


def rewritten_examples(donors: int, split: Split) -> list[Example]:
    """Four requests about the rewrite of each donor: two openings by two questions."""
    pairs = paraphrase_pairs(split)[:donors]
    if len(pairs) < donors:
        raise InvalidRequest(
            f"{donors} rewritten passages wanted, the split {split!r} has {len(pairs)}"
        )
    return [
        Example(
            f"{pair.id}/{aspect}/{number}",
            (instruction_first(pair.source, DONOR_ASPECT),),
            prompts.user(opening, pair.rewrite, prompts.QUESTION[aspect]),
            pair.gold[aspect],
            question_last("", aspect),
        )
        for pair in pairs
        for aspect in TARGET_ASPECTS
        for number, opening in enumerate(OPENINGS)
    ]


def measure_semantic(engine: SemShare, examples: Sequence[Example], note: Step) -> SemanticSpeed:
    """Prefill all targets together, with and without reuse; then score their gold summaries.

    Raises:
        BenchmarkRefused: a request fell back, or PGR misses the bound of the scenario `paraphrase`.

    """
    try:
        note("remembering donors")
        for text in dict.fromkeys(
            one["content"] for example in examples for one in example.donors[0]
        ):
            engine.remember(prompts.user(text), namespace=_NAMESPACE)
        targets = [example.target for example in examples]
        seconds: dict[ReusePolicy, float] = {}
        answers: dict[ReusePolicy, list[Answer]] = {}
        for policy in (FULL, SEMANTIC):
            note(f"{len(targets)} prompts, mode {policy.mode}")
            started = time.perf_counter()
            answers[policy] = answer_together(engine, targets, 1, policy, _NAMESPACE)
            seconds[policy] = time.perf_counter() - started
        fallen = [one.provenance.fallback for one in answers[SEMANTIC] if one.provenance.fallback]
        if fallen:
            raise BenchmarkRefused(
                f"{len(fallen)} requests fell back to full prefill, the first at {fallen[0]}. "
                "No speed is reported."
            )
        return SemanticSpeed(
            requests=len(targets),
            tokens=sum(one.prompt_tokens for one in answers[FULL]),
            full_s=seconds[FULL],
            semantic_s=seconds[SEMANTIC],
            compute_fraction=fmean(one.provenance.compute_fraction for one in answers[SEMANTIC]),
            pgr=_pgr(engine, examples, note),
        )
    finally:
        engine.forget_all(_NAMESPACE)


def _pgr(engine: SemShare, examples: Sequence[Example], note: Step) -> float:
    """Of the mean log-likelihoods: a single summary's gap can be next to nothing."""
    sums = {"method": 0.0, "full": 0.0, "no_context": 0.0}
    for example in examples:
        note(f"scoring {example.id}")
        if example.gold is None or example.no_context is None:
            raise AssertionError("rewritten passages have gold summaries")
        for name, prompt, policy in (
            ("method", example.target, SEMANTIC),
            ("full", example.target, FULL),
            ("no_context", example.no_context, FULL),
        ):
            score = engine.score(prompt, example.gold, policy=policy, namespace=_NAMESPACE)
            sums[name] += mean_log_likelihood(score.logits, score.token_ids) / len(examples)
    pgr = performance_gap_recovered(**sums)
    if pgr is None or LEAST_PGR is None or not pgr >= LEAST_PGR:
        raise BenchmarkRefused(f"PGR is {pgr}, the least is {LEAST_PGR}. No speed is reported.")
    return pgr
