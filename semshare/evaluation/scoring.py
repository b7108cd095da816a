"""Turns what a method made of an example into a row: fidelity, task scores, facts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from semshare import SemShare, TokenSource, fidelity
from semshare.evaluation import metrics
from semshare.evaluation.datasets.base import Dataset, TaskMetric
from semshare.evaluation.entities import faithfulness
from semshare.evaluation.facts import donor_answer_ids, judge
from semshare.evaluation.material import Example, Messages
from semshare.evaluation.methods.base import Outcome
from semshare.evaluation.rows import Row


@dataclass(frozen=True, slots=True, eq=False)
class Reference:
    """What every method's outcome for an example is compared with.

    full:         full prefill's outcome.
    continuation: ids that were scored: the gold text, or full prefill's own answer.
    build_s:      seconds that remembering the donors took.
    """

    full: Outcome
    continuation: Sequence[int]
    build_s: float


def row_of(
    engine: SemShare,
    dataset: Dataset,
    scenario: str,
    length: int,
    example: Example,
    method: str,
    outcome: Outcome,
    reference: Reference,
    *,
    answer_tokens: int,
    seed: int,
) -> Row:
    """The row of one method's outcome.

    Args:
        engine: gives the ids of facts.
        dataset, scenario, length: what the example is of.
        example: what was served.
        method: its name.
        outcome: of the method.
        reference: the example's.
        answer_tokens: most tokens of an answer.
        seed: of the run.

    Raises:
        ModelNotAvailable: `rouge-score` is not installed.

    """
    provenance, timings = outcome.provenance, outcome.timings
    by_position = fidelity.kl_per_token(reference.full.logits, outcome.logits)
    given = len(outcome.token_ids)
    steps = given if given < answer_tokens else given - 1  # the end token takes one, too
    row = Row(
        dataset=dataset.name,
        scenario=scenario,
        length=length,
        example=example.id,
        method=method,
        seed=seed,
        tokens=len(provenance.source),
        compute_fraction=provenance.compute_fraction,
        hit_rate=provenance.reused / len(provenance.source),
        fallback=provenance.fallback,
        ttft_s=timings.ttft_s,
        lookup_s=timings.lookup_s,
        plan_s=timings.plan_s,
        load_s=timings.load_s,
        prefill_s=timings.prefill_s,
        decode_s=timings.decode_s / steps if steps > 0 else None,
        build_s=reference.build_s,
        kv_bytes=outcome.kv_bytes,
        own_kv_bytes=outcome.own_kv_bytes,
        kl=float(by_position.mean()),
        top1=fidelity.top1_agreement(reference.full.logits, outcome.logits),
        kl_by_position=[round(value, 6) for value in by_position.tolist()],
        rouge_l_own=_rouge_l_own(reference.full.text, outcome.text),
        answer=outcome.text,
        sources=_runs(provenance.source),
    )
    if example.fact is not None:
        return _with_fact(row, engine, example, outcome, reference)
    row = _with_faithfulness(row, example)
    return (
        row
        if example.gold is None
        else _with_gold(row, dataset.metric, example, outcome, reference)
    )


def _rouge_l_own(full: str, answer: str) -> float:
    return 1.0 if answer == full else metrics.rouge_l(full, answer)  # also where both are empty


def _runs(sources: NDArray[np.uint8]) -> list[tuple[str, int]]:
    names = (TokenSource(source).name.lower() for source in sources)
    return [(name, len(list(run))) for name, run in groupby(names)]


def _with_fact(
    row: Row, engine: SemShare, example: Example, outcome: Outcome, reference: Reference
) -> Row:
    if example.fact is None:
        raise AssertionError("there is no fact to judge")
    donor_ids = donor_answer_ids(engine, example.fact)
    preference = judge(reference.continuation, outcome.logits, donor_ids)
    likelihood = metrics.mean_log_likelihood(outcome.logits, reference.continuation)
    return replace(
        row, right=preference.right, leak=preference.says_donor, log_likelihood=likelihood
    )


def _with_faithfulness(row: Row, example: Example) -> Row:
    donors = [_text(donor) for donor in example.donors]
    found = faithfulness(row.answer, _text(example.target), donors)
    return replace(row, numbers=found.numbers, entities=found.entities, leak=found.leak)


def _with_gold(
    row: Row, metric: TaskMetric, example: Example, outcome: Outcome, reference: Reference
) -> Row:
    likelihood = metrics.mean_log_likelihood(outcome.logits, reference.continuation)
    accepted = (example.gold or "", *example.references)
    row = replace(row, log_likelihood=likelihood)
    if metric == "rouge_l":
        rouge = max(
            (metrics.rouge_scores(one, row.answer) for one in accepted),
            key=lambda found: found.rouge_l,
        )
        return replace(row, rouge1=rouge.rouge1, rouge2=rouge.rouge2, rouge_l=rouge.rouge_l)
    score = metrics.task_score(metric, accepted, row.answer)
    match metric:
        case "accuracy":
            return replace(row, right=score == 1.0)
        case "token_f1":
            return replace(row, token_f1=score)
        case "edit_similarity":
            return replace(row, edit_similarity=score)
        case _:
            raise AssertionError(f"{metric} is judged elsewhere")


def _text(messages: Messages) -> str:
    return "\n".join(message["content"] for message in messages)
