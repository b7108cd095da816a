"""Time to first token with and without reuse, and no speed without fidelity.

semshare bench ttft --scenario shifted --tokens 1200 --json
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, median

import numpy as np

from semshare import ReusePolicy, SemShare, TokenSource
from semshare.errors import InvalidRequest
from semshare.evaluation.bounds import FidelityMissed, Record
from semshare.evaluation.environment import setting
from semshare.evaluation.material import Example, Material
from semshare.evaluation.measure import Bench, Fidelity, Measured
from semshare.evaluation.metrics import performance_gap_recovered
from semshare.evaluation.progress import load_engine, progress_bar, status_line
from semshare.evaluation.scenarios import Scenario, scenario_named
from semshare.evaluation.texts import Split

TRANSFORMERS_EXAMPLES = 2  # plain forward passes: enough to see that full prefill is no straw man
STAGES = ("tokenize_s", "lookup_s", "plan_s", "load_s", "prefill_s")


def run_ttft(
    scenario: str,
    *,
    tokens: int | None = None,
    limit: int | None = None,
    repeats: int = 3,
    model: str = "smollm2",
    dtype: str = "auto",
    progress: bool = True,
    policy: ReusePolicy | None = None,
    seed: int = 0,
    split: Split = "test",
    engine: SemShare | None = None,
) -> Record:
    """Measure one scenario of `semshare.evaluation.scenarios`.

    Args:
        scenario: its name.
        tokens: of a target prompt; the scenario's own by default.
        limit: examples; by default as many as take a few minutes on two cores.
        repeats: timed runs of each example, with and without reuse in turn.
        model: name, folder or hub id, where `engine` is None.
        dtype: of that model.
        progress: a bar on standard error.
        policy: of the reuse; the defaults with the scenario's mode if None.
        seed: orders papers and passages.
        split: of papers, rewritten passages and books. Tune on `val` or `train`, report `test`.
        engine: a ready engine.

    Returns:
        The record described in `docs/evaluation.md`, JSON-ready.

    Raises:
        FidelityMissed: a `BenchmarkRefused`: fidelity missed the scenario's bounds; it carries
            the record without speeds.
        InvalidRequest: an unknown scenario, or no data of that length.
        ModelNotAvailable: the model or a data package is missing.

    """
    chosen = scenario_named(scenario)
    tokens = chosen.tokens if tokens is None else tokens
    for name, value in (("tokens", tokens), ("limit", limit), ("repeats", repeats)):
        if value is not None and value < 1:
            raise InvalidRequest(f"{name} is {value}: it must be at least 1")
    limit = chosen.default_limit(tokens) if limit is None else limit
    engine = engine or load_engine(model, dtype=dtype, progress=progress)
    policy = policy or ReusePolicy(mode=chosen.mode)
    material = Material(lambda messages: len(engine.encode(messages)), tokens, seed, split)
    with status_line("choosing the texts…", enabled=progress):
        examples = chosen.build(material, limit)
    with progress_bar(f"ttft {scenario}", len(examples), enabled=progress) as (note, advance):
        bench = Bench(engine, policy, repeats=repeats, note=note)
        bench.warm_up(examples[0])
        bench.plain_transformers_s(examples[0])  # untimed: the first call is slower
        plain = [bench.plain_transformers_s(one) for one in examples[:TRANSFORMERS_EXAMPLES]]
        measured = []
        for example in examples:
            measured.append(bench.measure(example))
            advance(example.id)
    record = {
        "benchmark": "ttft",
        "scenario": scenario,
        "tokens_asked": tokens,
        **_quality(measured),
        "repeats": repeats,
        "seed": seed,
        "split": split,
        "examples": _per_example(examples, measured),
        **setting(engine, policy),
    }
    missed = chosen.bounds.missed(record)
    if missed:
        raise FidelityMissed(missed, record)
    return record | _speeds(chosen, measured, tokens, record["compute_fraction"], plain)


def _quality(measured: Sequence[Measured]) -> Record:
    """What may be told however good it is: no time is in it."""
    return {
        "tokens": round(fmean(one.tokens for one in measured)),
        "n": len(measured),
        "compute_fraction": round(fmean(one.provenance.compute_fraction for one in measured), 5),
        **_fidelity_fields([one.fidelity for one in measured], ""),
        **_fidelity_fields([one.floor for one in measured], "_floor"),
        "pgr": _pgr(measured),
        "scored_tokens": sum(one.fidelity.tokens for one in measured),
        **_source_fields(measured),
        "exact": all(one.provenance.exact for one in measured),
        "fallbacks": sum(one.provenance.fallback is not None for one in measured),
        "plans_stable": all(one.plans_stable for one in measured),
    }


def _speeds(
    scenario: Scenario,
    measured: Sequence[Measured],
    tokens: int,
    compute_fraction: float,
    plain: Sequence[float],
) -> Record:
    """Everything that was timed; the speedup is the median of the examples' own."""
    speedups = [one.full_s / one.reuse_s for one in measured]
    full_s = _median([one.full_s for one in measured])
    reuse_s = _median([one.reuse_s for one in measured])
    build_s = _median([one.build_s for one in measured])
    speedup = round(median(speedups), 3)
    saved = full_s - reuse_s
    return {
        "full_s": full_s,
        "reuse_s": reuse_s,
        "first_reuse_s": _median([one.first_reuse_s for one in measured]),
        "speedup": speedup,
        "speedup_to_reach": scenario.bounds.speedup_at(tokens),
        "percentiles": {
            "full_s": _percentiles([one.full_s for one in measured]),
            "reuse_s": _percentiles([one.reuse_s for one in measured]),
            "speedup": _percentiles(speedups),
        },
        "efficiency": round(speedup * compute_fraction, 4),
        **{name: _median([getattr(one.stages, name) for one in measured]) for name in STAGES},
        "build_s": build_s,
        "break_even_reuses": round(build_s / saved, 3) if saved > 0 else None,
        "transformers_full_s": round(median(plain), 4),
    }


def _fidelity_fields(found: Sequence[Fidelity], suffix: str) -> Record:
    """Means over all scored tokens, and the largest of the logit differences."""
    weights = [one.tokens for one in found]
    return {
        f"kl{suffix}": round(float(np.average([one.kl for one in found], weights=weights)), 6),
        f"top1{suffix}": round(float(np.average([one.top1 for one in found], weights=weights)), 5),
        f"max_logit_diff{suffix}": round(max(one.max_logit_diff for one in found), 6),
    }


def _pgr(measured: Sequence[Measured]) -> float | None:
    """PGR of the mean log-likelihoods: a single example's gap can be next to nothing."""
    scores = [one.scores for one in measured if one.scores is not None]
    if not scores:
        return None
    recovered = performance_gap_recovered(
        method=fmean(one.reuse for one in scores),
        full=fmean(one.full for one in scores),
        no_context=fmean(one.no_context for one in scores),
    )
    return None if recovered is None else round(recovered, 4)


def _source_fields(measured: Sequence[Measured]) -> Record:
    """Shares of all target tokens by source, and of those that were reused."""
    total = sum(one.tokens for one in measured)
    shares = {
        source.name.lower(): round(
            sum(one.provenance.counts[source.name.lower()] for one in measured) / total, 5
        )
        for source in TokenSource
    }
    reused = sum(one.provenance.reused for one in measured)
    return {"hit_rate": round(reused / total, 5), "sources": shares}


def _per_example(examples: Sequence[Example], measured: Sequence[Measured]) -> list[Record]:
    """What is needed to see whether a mean hides something; no speeds, so that it may be kept."""
    return [
        {
            "id": example.id,
            "tokens": one.tokens,
            "compute_fraction": round(one.provenance.compute_fraction, 5),
            "kl": round(one.fidelity.kl, 6),
            "top1": round(one.fidelity.top1, 4),
            "sources": one.provenance.counts,
        }
        for example, one in zip(examples, measured, strict=True)
    ]


def _median(seconds: Sequence[float]) -> float:
    return round(float(median(seconds)), 6)


def _percentiles(values: Sequence[float]) -> Record:
    p50, p95 = np.percentile(values, (50, 95))
    return {
        "min": round(min(values), 4),
        "p50": round(float(p50), 4),
        "p95": round(float(p95), 4),
    }
