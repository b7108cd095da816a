"""Whose facts an answer states: the text's, or those of the text whose KV was reused.

    semshare eval facts --json

A donor text is remembered, then questions are asked about a target text that differs from it in
its facts alone. The answer's opening words are given (teacher-forced), and the model chooses
between the target's fact and the donor's: wherever the two facts' tokens differ, the target's must
be the more likely one. That is the answer greedy decoding would give if only the two facts could
be said, at every token of the fact and not only at its first; it needs no length normalisation,
which would let a fact win by being long.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import fmean

import torch
from torch import Tensor

from semshare import InvalidRequest, ReusePolicy, SemShare
from semshare.evaluation import prompts
from semshare.evaluation.bounds import Record
from semshare.evaluation.environment import setting
from semshare.evaluation.fact_papers import paper_pairs
from semshare.evaluation.fact_texts import FACT_KINDS, FactPair, FactQuestion, template_pairs
from semshare.evaluation.material import Messages
from semshare.evaluation.progress import load_engine, progress_bar, status_line

PAPER_PAIRS = 36
ACCURACY_MARGIN = 0.01  # reuse has to be within this of full prefill

FULL = "full"
SEMANTIC = "semantic"
UNGUARDED = "semantic_unguarded"
METHODS = (FULL, SEMANTIC, UNGUARDED)

# Fuzzy reuse as it is served elsewhere: what has a similar donor token is reused, nothing is
# looked at twice.
UNGUARDED_POLICY = ReusePolicy(mode="semantic", fact_guard=False, recompute=0.0, selection="none")

_SUMMARIZE = "Summarize the following text in one sentence."
_ASK = "Read the following text and answer the question about it."
_NAMESPACE = "facts"


@dataclass(frozen=True, slots=True)
class Preference:
    """Which of two facts an answer would state."""

    right: bool  # the target's token is preferred wherever the two facts differ
    says_donor: bool  # the donor's token is the likeliest of all, where they first differ
    margin: float  # log p(target's token) − log p(donor's) where they first differ, nats


@dataclass(frozen=True, slots=True)
class Choice(Preference):
    """One question under one method."""

    compute_fraction: float
    hit_rate: float


def donor_prompt(pair: FactPair) -> Messages:
    """What was asked about the donor text, before anybody asked about the target."""
    return prompts.user(_SUMMARIZE, pair.donor)


def target_prompt(pair: FactPair, question: FactQuestion) -> Messages:
    """One question about the target text."""
    return prompts.user(_ASK, pair.target, question.question)


def fact_pairs(*, limit: int | None = None, seed: int = 0) -> list[FactPair]:
    """Templates and papers in turn, cut after `limit` questions; 215 of them without a limit.

    Raises:
        ModelNotAvailable: `aclsum` is not installed.
        InvalidRequest: `limit` is less than 1.

    """
    if limit is not None and limit < 1:
        raise InvalidRequest(f"limit is {limit}: it must be at least 1")
    sources = [template_pairs(variants=1, seed=seed), paper_pairs(PAPER_PAIRS, seed=seed)]
    # Three papers to a template, as there are: a short run sees both kinds.
    rounds = zip(sources[0], *(sources[1][start::3] for start in range(3)), strict=True)
    ordered = [pair for group in rounds for pair in group]
    left = sum(len(pair.questions) for pair in ordered) if limit is None else limit
    chosen = []
    for pair in ordered:
        kept = pair.questions[:left]
        left -= len(kept)
        if kept:
            chosen.append(FactPair(pair.id, pair.donor, pair.target, kept))
    return chosen


def run_facts(
    *,
    limit: int | None = None,
    model: str = "smollm2",
    dtype: str = "auto",
    progress: bool = True,
    policy: ReusePolicy | None = None,
    seed: int = 0,
    engine: SemShare | None = None,
) -> Record:
    """Measure how often reuse states the donor's facts.

    Args:
        limit: questions; all 215 by default.
        model: name, folder or hub id, where `engine` is None.
        dtype: of that model.
        progress: a bar on standard error.
        policy: of `semantic`; the defaults if None.
        seed: of the facts and of the order of papers.
        engine: a ready engine.

    Returns:
        The record described in `docs/evaluation.md`, JSON-ready: accuracies under `full`,
        `semantic` and `semantic_unguarded`, leaks under `leak_rate`.

    Raises:
        ModelNotAvailable: the model or a data package is missing.

    """
    engine = engine or load_engine(model, dtype=dtype, progress=progress)
    policy = policy or ReusePolicy()
    policies = {FULL: ReusePolicy(mode="off"), SEMANTIC: policy, UNGUARDED: UNGUARDED_POLICY}
    with status_line("writing the texts…", enabled=progress):
        pairs = fact_pairs(limit=limit, seed=seed)
    total = sum(len(pair.questions) for pair in pairs)
    kinds: list[str] = []
    choices: dict[str, list[Choice]] = {method: [] for method in METHODS}
    with progress_bar("facts", total, enabled=progress) as (note, advance):
        for pair in pairs:
            note(f"remembering {pair.id}")
            engine.remember(donor_prompt(pair), namespace=_NAMESPACE)
            for question in pair.questions:
                for method, chosen in policies.items():
                    choices[method].append(_choose(engine, pair, question, chosen))
                kinds.append(question.kind)
                advance(pair.id)
            engine.forget_all(_NAMESPACE)
    return {
        "benchmark": "facts",
        "n": total,
        "pairs": len(pairs),
        "seed": seed,
        **_summary(choices),
        "by_kind": _by_kind(kinds, choices),
        **setting(engine, policy),
    }


def _choose(
    engine: SemShare, pair: FactPair, question: FactQuestion, policy: ReusePolicy
) -> Choice:
    score = engine.score(
        target_prompt(pair, question),
        f"{question.stem} {question.target}",
        policy=policy,
        namespace=_NAMESPACE,
    )
    if score.provenance.exact and policy.mode != "off":
        # Exact KV of the target has entered the prefix tree, where the next question about the
        # same text would find it: that would measure prefix reuse.
        engine.forget_all(_NAMESPACE)
        engine.remember(donor_prompt(pair), namespace=_NAMESPACE)
    preference = judge(score.token_ids, score.logits, donor_answer_ids(engine, question))
    return Choice(
        **asdict(preference),
        compute_fraction=score.provenance.compute_fraction,
        hit_rate=score.provenance.reused / len(score.provenance.source),
    )


def donor_answer_ids(engine: SemShare, question: FactQuestion) -> list[int]:
    """Ids of the answer with the donor's fact."""
    answer = f"{question.stem} {question.donor}"
    return list(engine.tokenizer(answer, add_special_tokens=False)["input_ids"])


def judge(target_ids: Sequence[int], logits: Tensor, donor_ids: Sequence[int]) -> Preference:
    """Compare an answer with the target's fact to the same answer with the donor's.

    Args:
        target_ids: `[n]` of the answer that was scored.
        logits: `[n, vocab]` that each of them could be picked from.
        donor_ids: of the other answer.

    Raises:
        InvalidRequest: the two answers do not differ within the shorter one's length.

    """
    differing = [
        index
        for index, (target, donor) in enumerate(zip(target_ids, donor_ids, strict=False))
        if target != donor
    ]
    if not differing:
        raise InvalidRequest("the two facts have the same tokens: there is nothing to choose")
    rows = logits[differing]  # [differing, vocab]
    target = _at(rows, [target_ids[index] for index in differing])
    donor = _at(rows, [donor_ids[index] for index in differing])
    return Preference(
        right=bool((target > donor).all()),
        says_donor=int(rows[0].argmax()) == donor_ids[differing[0]],
        margin=float(target[0] - donor[0]),
    )


def _at(rows: Tensor, ids: Sequence[int]) -> Tensor:
    index = torch.tensor(ids, dtype=torch.long, device=rows.device)
    return rows.gather(1, index[:, None])[:, 0]


def _summary(choices: dict[str, list[Choice]]) -> Record:
    accuracy = {method: _accuracy(choices[method]) for method in METHODS}
    return {
        **accuracy,
        "within_bound": accuracy[SEMANTIC] >= accuracy[FULL] - ACCURACY_MARGIN,
        "leak_rate": {method: _leak_rate(choices[FULL], choices[method]) for method in METHODS},
        "says_donor_rate": {
            method: round(fmean(one.says_donor for one in choices[method]), 4) for method in METHODS
        },
        "margin": {
            method: round(fmean(one.margin for one in choices[method]), 4) for method in METHODS
        },
        "compute_fraction": round(fmean(one.compute_fraction for one in choices[SEMANTIC]), 5),
        "compute_fraction_unguarded": round(
            fmean(one.compute_fraction for one in choices[UNGUARDED]), 5
        ),
        "hit_rate": {
            method: round(fmean(one.hit_rate for one in choices[method]), 5) for method in METHODS
        },
    }


def _leak_rate(full: Sequence[Choice], method: Sequence[Choice]) -> float:
    """Share of all questions where full prefill states the target's fact and the method doesn't.

    0 for full prefill itself, by definition.
    """
    leaks = [a.right and not b.right for a, b in zip(full, method, strict=True)]
    return round(fmean(leaks), 4)


def _accuracy(choices: Sequence[Choice]) -> float:
    return round(fmean(one.right for one in choices), 4)


def _by_kind(kinds: Sequence[str], choices: dict[str, list[Choice]]) -> Record:
    record: Record = {}
    for kind in FACT_KINDS:
        picked = {
            method: [one for one, other in zip(found, kinds, strict=True) if other == kind]
            for method, found in choices.items()
        }
        if picked[FULL]:
            accuracies = {method: _accuracy(found) for method, found in picked.items()}
            record[kind] = {"n": len(picked[FULL]), **accuracies}
    return record
