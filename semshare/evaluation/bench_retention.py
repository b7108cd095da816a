"""What KV in fewer bytes costs: prompts cut to a share of it, and donors in int8.

semshare bench retention --json
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import log
from statistics import fmean, median

import numpy as np

from semshare import ReusePolicy, Score, SemShare
from semshare.errors import InvalidRequest
from semshare.evaluation.bench_decode import WrongResult
from semshare.evaluation.bounds import Record
from semshare.evaluation.environment import setting
from semshare.evaluation.material import Example, Material
from semshare.evaluation.measure import FULL, Fidelity, compare
from semshare.evaluation.metrics import mean_log_likelihood, performance_gap_recovered
from semshare.evaluation.progress import load_engine, progress_bar, status_line
from semshare.evaluation.scenarios import scenario_named
from semshare.evaluation.texts import Split
from semshare.planning.retention import DECAY

SHARES = (1.0, 0.8, 0.6, 0.4)
# Budgets that shrink exponentially with depth, as SemShareKV's do: the last layer keeps a quarter
# of what the first does.
BY_DEPTH = log(4)
LOADS = 3  # timed runs of each donor format
_NAMESPACE = "bench"


@dataclass(frozen=True, slots=True)
class _Reference:
    """Full prefill's scores of the gold text, after the target and without its document."""

    full: Score
    no_context: Score


@dataclass(frozen=True, slots=True)
class _Found:
    """One example under one setting."""

    fidelity: Fidelity
    score: Score
    bytes: int
    retained: float
    load_s: float


def run_retention(
    *,
    scenario: str = "shifted",
    limit: int = 4,
    model: str = "smollm2",
    dtype: str = "auto",
    tokens: int = 1200,
    split: Split = "test",
    seed: int = 0,
    engine: SemShare | None = None,
    progress: bool = True,
) -> Record:
    """Measure retention and donor formats on the same prompts, against full prefill.

    Args:
        scenario: of `semshare.evaluation.scenarios`, with gold text: `shifted` moves papers,
            `paraphrase` rewrites them.
        limit: examples.
        model, dtype: where `engine` is None.
        tokens: of a target.
        split: of the texts. Tune on `val`, report `test`.
        seed: orders them.
        engine: a ready one, with donors in full.
        progress: a bar on standard error.

    Returns:
        The record described in `docs/evaluation.md`, JSON-ready.

    Raises:
        WrongResult: bytes of the pool are not what was kept.
        InvalidRequest: an unknown scenario, one without gold text, or no data of that length.
        ModelNotAvailable: the model or a data package is missing.

    """
    chosen = scenario_named(scenario)
    full = engine or load_engine(model, dtype=dtype, progress=progress)
    config = replace(full.config, donor_format="int8")
    int8 = SemShare(full.model.hf_model, full.tokenizer, config=config, name=full.model_name)
    policy = ReusePolicy(mode=chosen.mode)
    cuts = [
        replace(policy, retention=share, retention_decay=decay)
        for decay in (DECAY, BY_DEPTH)
        for share in SHARES
        if share < 1.0 or decay == DECAY
    ]
    material = Material(lambda messages: len(full.encode(messages)), tokens, seed, split)
    with status_line("choosing the texts…", enabled=progress):
        examples = chosen.build(material, limit)
    references: list[_Reference] = []
    by_cut: list[list[_Found]] = [[] for _ in cuts]
    by_format: dict[str, list[_Found]] = {"full": [], "int8": []}
    with progress_bar("retention", len(examples), enabled=progress) as (note, advance):
        for example in examples:
            note("full prefill")
            reference = _reference(full, example)
            references.append(reference)
            for name, one in (("full", full), ("int8", int8)):
                note(f"donors in {name}")
                donor_bytes = _remember(one, example)
                by_format[name].append(_of_donors(one, example, reference, policy, donor_bytes))
                if one is full:
                    for cut, found in zip(cuts, by_cut, strict=True):
                        note(f"{cut.retention} kept")
                        found.append(_of_cut(one, example, reference, cut))
                one.forget_all()
            advance(example.id)
    return {
        "benchmark": "retention",
        "scenario": scenario,
        "tokens": round(fmean(len(full.encode(one.target)) for one in examples)),
        "n": len(examples),
        "retention": [
            {
                "retention": cut.retention,
                "decay": round(cut.retention_decay, 4),
                "kv_bytes": round(fmean(one.bytes for one in found)),
                "kv_share": round(fmean(one.retained for one in found), 4),
                **_quality(references, found),
            }
            for cut, found in zip(cuts, by_cut, strict=True)
        ],
        "donors": [
            {
                "format": name,
                "donor_bytes": round(fmean(one.bytes for one in found)),
                **_quality(references, found),
                "load_s": round(median(one.load_s for one in found), 5),
            }
            for name, found in by_format.items()
        ],
        "split": split,
        "seed": seed,
        **setting(full, policy),
    }


def _reference(engine: SemShare, example: Example) -> _Reference:
    if example.gold is None or example.no_context is None:
        raise InvalidRequest(
            f"{example.id} has no gold text to measure with: choose shifted or paraphrase"
        )
    return _Reference(
        full=engine.score(example.target, example.gold, policy=FULL),
        no_context=engine.score(example.no_context, example.gold, policy=FULL),
    )


def _remember(engine: SemShare, example: Example) -> int:
    """Keep the donors and nothing beside them; their bytes, as the pool counts them."""
    pool = engine.pool
    infos = [engine.remember(donor, namespace=_NAMESPACE, pinned=True) for donor in example.donors]
    expected = sum(info.bytes for info in infos)
    # Whoever wants all the rest makes cached prefixes go.
    pool.release(pool.allocate(pool.n_slots - expected // pool.bytes_per_slot))
    if pool.used_bytes != expected:
        raise WrongResult(f"donors take {pool.used_bytes} bytes of the pool, not {expected}")
    return expected


def _of_donors(
    engine: SemShare, example: Example, reference: _Reference, policy: ReusePolicy, n_bytes: int
) -> _Found:
    scores = [_score(engine, example, policy) for _ in range(LOADS)]
    return _Found(
        compare(reference.full, scores[0]),
        scores[0],
        n_bytes,
        scores[0].provenance.retained,
        median(score.timings.load_s for score in scores),
    )


def _of_cut(
    engine: SemShare, example: Example, reference: _Reference, policy: ReusePolicy
) -> _Found:
    score = _score(engine, example, policy)
    retained = score.provenance.retained
    held = _pages_held(engine, example, policy)
    pool, n, layers = engine.pool, len(score.provenance.source), engine.model.n_layers
    least = pool.pages_for(-(-round(retained * n * layers) // layers))
    if held < least or (retained < 1.0 and held > least + 1):  # one for the answer
        raise WrongResult(
            f"{retained:.3f} of {n} tokens' KV takes {held} pages: it should be {least}, "
            "and one for the answer"
        )
    n_bytes = held * pool.page_size * pool.bytes_per_slot
    return _Found(compare(reference.full, score), score, n_bytes, retained, score.timings.load_s)


def _pages_held(engine: SemShare, example: Example, policy: ReusePolicy) -> int:
    """Pages that a request reads while it is answered, shared ones among them."""
    pool = engine.pool
    everything = np.arange(pool.n_pages)
    before = pool.references(everything)
    stream = engine.stream(
        example.target, max_tokens=pool.page_size, policy=policy, namespace=_NAMESPACE
    )
    try:
        if next(stream).answer is not None:
            raise WrongResult("an answer ended before its KV could be measured")
        return int(np.count_nonzero(pool.references(everything) > before))
    finally:
        stream.close()


def _score(engine: SemShare, example: Example, policy: ReusePolicy) -> Score:
    return engine.score(example.target, example.gold or "", policy=policy, namespace=_NAMESPACE)


def _quality(references: Sequence[_Reference], found: Sequence[_Found]) -> Record:
    """Means over all scored tokens; PGR of the mean log-likelihoods."""
    weights = [one.fidelity.tokens for one in found]
    pgr = performance_gap_recovered(
        method=fmean(_log_likelihood(one.score) for one in found),
        full=fmean(_log_likelihood(one.full) for one in references),
        no_context=fmean(_log_likelihood(one.no_context) for one in references),
    )
    return {
        "kl": round(float(np.average([one.fidelity.kl for one in found], weights=weights)), 6),
        "top1": round(float(np.average([one.fidelity.top1 for one in found], weights=weights)), 5),
        "pgr": None if pgr is None else round(pgr, 4),
        "n": len(found),
    }


def _log_likelihood(score: Score) -> float:
    return mean_log_likelihood(score.logits, score.token_ids)
