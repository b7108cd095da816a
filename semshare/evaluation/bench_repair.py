"""Repair while decoding: what it does to an answer, position by position, and what it costs.

semshare bench repair --json
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean, median

import torch
from torch import Tensor

from semshare import BenchmarkRefused, ReusePolicy, SemShare, fidelity
from semshare.errors import InvalidRequest
from semshare.evaluation.bounds import ROUNDING_KL, Record
from semshare.evaluation.environment import setting
from semshare.evaluation.forced import ForcedAnswer, decode_forced
from semshare.evaluation.material import Example, Material
from semshare.evaluation.measure import FULL
from semshare.evaluation.progress import Step, load_engine, progress_bar
from semshare.evaluation.scenarios import scenario_named
from semshare.evaluation.texts import Split

SCENARIO = scenario_named("paraphrase")
MIXED = ReusePolicy(mode="semantic")
REPAIRED = replace(MIXED, repair="eager")
BINS = 8  # of positions, over which KL is averaged


@dataclass(frozen=True, slots=True)
class Repaired:
    """One prompt answered three times with the same tokens: in full, mixed, mixed and repaired.

    KL is that of full prefill, nats a token, by position of the answer.
    """

    tokens: int
    full_ttft_s: float
    repaired_ttft_s: float
    exact_from: int  # first position of the answer with nothing approximate before it
    step_ratio: float  # seconds of the steps up to there / of the same without repair
    longest_step_ratio: float  # the longest of them / their median without repair
    kl_repaired: tuple[float, ...]  # [BINS]
    kl_mixed: tuple[float, ...]  # [BINS]
    kl_exact: float  # of the positions from `exact_from` on


def run_repair(
    *,
    tokens: int = SCENARIO.tokens,
    limit: int = 4,
    repeats: int = 2,
    answer_tokens: int = 128,
    model: str = "smollm2",
    dtype: str = "auto",
    progress: bool = True,
    split: Split = "test",
    engine: SemShare | None = None,
) -> Record:
    """Measure `repair="eager"` on rewritten papers, against no repair and against full prefill.

    All three decode the same tokens, full prefill's own greedy answer, so that positions compare.

    Args:
        tokens: of a prompt; rewritten passages are taken as long as they are, the nearest first.
        limit: prompts.
        repeats: runs of each side, in turns; of each position's seconds the median counts.
        answer_tokens: of an answer, which no end token ends.
        model: name, folder or hub id, where `engine` is None.
        dtype: of that model.
        progress: a bar on standard error.
        split: of the rewritten passages.
        engine: a ready engine.

    Returns:
        The record described in `docs/evaluation.md`, JSON-ready.

    Raises:
        BenchmarkRefused: reuse fell back, a repair did not end within the answer, or what came
            after it is not full prefill's but for rounding.
        InvalidRequest: a number below 1, or an answer with fewer tokens than KL has bins.

    """
    for name, value, least in (
        ("limit", limit, 1),
        ("repeats", repeats, 1),
        ("answer_tokens", answer_tokens, BINS),
    ):
        if value < least:
            raise InvalidRequest(f"{name} is {value}: it must be at least {least}")
    engine = engine or load_engine(model, dtype=dtype, progress=progress)
    material = Material(lambda chat: len(engine.encode(chat)), tokens, split=split)
    examples = SCENARIO.build(material, limit)
    measured = []
    with progress_bar("repair", len(examples), enabled=progress) as (note, advance):
        for example in examples:
            measured.append(_measure(engine, example, answer_tokens, repeats, note))
            advance(example.id)
    return _record(measured, answer_tokens, repeats, split) | setting(engine, REPAIRED)


def _measure(
    engine: SemShare, example: Example, answer_tokens: int, repeats: int, note: Step
) -> Repaired:
    note("the answer of full prefill")
    answer = decode_forced(engine, example.target, tokens=None, n=answer_tokens, policy=FULL)
    runs: dict[ReusePolicy, list[ForcedAnswer]] = {FULL: [], MIXED: [], REPAIRED: []}
    for repeat in range(repeats):
        note(f"{example.id}, repeat {repeat + 1} of {repeats}")
        # Taking turns at being first keeps a drifting clock rate out of the ratios.
        for policy in reversed(runs) if repeat % 2 else runs:
            runs[policy].append(_run(engine, example, answer.tokens, policy))
    full, mixed, repaired = (several[0] for several in runs.values())
    exact_from = _exact_from(example, repaired)
    kl_exact = fidelity.kl(full.logits[exact_from:], repaired.logits[exact_from:])
    limit = ROUNDING_KL[engine.model.dtype]
    if not kl_exact <= limit:
        raise BenchmarkRefused(
            f"{example.id}: after its repair KL is {kl_exact:.2g} nats a token, at most {limit:.2g}"
            " is rounding. No speed is reported."
        )
    seconds = {policy: _seconds(several) for policy, several in runs.items()}
    during = slice(1, exact_from + 1)  # the last of them computes the answer's own tokens again
    with_repair, without = seconds[REPAIRED][during], seconds[MIXED][during]
    return Repaired(
        tokens=len(full.provenance.source),
        full_ttft_s=seconds[FULL][0],
        repaired_ttft_s=seconds[REPAIRED][0],
        exact_from=exact_from,
        step_ratio=sum(with_repair) / sum(without),
        longest_step_ratio=max(with_repair) / median(without),
        kl_repaired=_by_position(full.logits, repaired.logits),
        kl_mixed=_by_position(full.logits, mixed.logits),
        kl_exact=kl_exact,
    )


def _run(
    engine: SemShare, example: Example, tokens: Sequence[int], policy: ReusePolicy
) -> ForcedAnswer:
    """In a namespace of its own: a repaired prompt would be a prefix hit for the next run."""
    try:
        if policy.mode != "off":
            for donor in example.donors:
                engine.remember(donor, namespace="bench-repair")
        return decode_forced(
            engine,
            example.target,
            tokens=tokens,
            n=len(tokens),
            policy=policy,
            namespace="bench-repair",
        )
    finally:
        engine.forget_all("bench-repair")


def _exact_from(example: Example, repaired: ForcedAnswer) -> int:
    provenance, n = repaired.provenance, len(repaired.tokens)
    if provenance.fallback is not None or provenance.exact:
        raise BenchmarkRefused(
            f"{example.id}: there is nothing to repair, the prompt was computed in full "
            f"({provenance.fallback or 'no donor was near enough'}). No speed is reported."
        )
    if provenance.repaired_after is None or provenance.repaired_after >= n:
        raise BenchmarkRefused(
            f"{example.id}: {provenance.counts} prompt tokens were not repaired within {n} tokens "
            "of the answer: ask for more with --answer-tokens. No speed is reported."
        )
    return provenance.repaired_after


def _seconds(runs: Sequence[ForcedAnswer]) -> list[float]:
    """`[n]` the median of each position's seconds."""
    return [median(of_one) for of_one in zip(*(run.seconds for run in runs), strict=True)]


def _by_position(full: Tensor, other: Tensor) -> tuple[float, ...]:
    """Mean KL(full ‖ other) in `BINS` stretches of the answer, logits `[n, vocab]` each."""
    pairs = zip(torch.tensor_split(full, BINS), torch.tensor_split(other, BINS), strict=True)
    return tuple(fidelity.kl(*pair) for pair in pairs)


def _record(measured: Sequence[Repaired], answer_tokens: int, repeats: int, split: Split) -> Record:
    repaired, mixed = (
        [round(fmean(of_bin), 6) for of_bin in zip(*several, strict=True)]
        for several in (
            [one.kl_repaired for one in measured],
            [one.kl_mixed for one in measured],
        )
    )
    half = BINS // 2
    return {
        "benchmark": "repair",
        "tokens": round(fmean(one.tokens for one in measured)),
        "n": len(measured),
        "answer_tokens": answer_tokens,
        "repeats": repeats,
        "split": split,
        "ttft_speedup": round(median(one.full_ttft_s / one.repaired_ttft_s for one in measured), 3),
        "full_s": round(median(one.full_ttft_s for one in measured), 6),
        "reuse_s": round(median(one.repaired_ttft_s for one in measured), 6),
        "repair_steps": round(median(one.exact_from - 1 for one in measured)),
        "tpot_ratio_during_repair": round(median(one.step_ratio for one in measured), 3),
        "longest_step_ratio": round(median(one.longest_step_ratio for one in measured), 2),
        "kl_by_answer_position": repaired,
        "kl_by_answer_position_unrepaired": mixed,
        "kl_first_half": round(fmean(repaired[:half]), 6),
        "kl_second_half": round(fmean(repaired[half:]), 6),
        "kl_second_half_unrepaired": round(fmean(mixed[half:]), 6),
        "kl_after_repair": max(one.kl_exact for one in measured),
    }
