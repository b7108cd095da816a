"""What the rows of a run say about each method: means with intervals, and the frontier."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from statistics import fmean, median
from typing import Literal, TypeVar

import numpy as np

from semshare.evaluation.rows import Row
from semshare.evaluation.statistics import Estimate, estimate, paired_difference, ratio_of_means

T = TypeVar("T")

FULL, NO_CONTEXT, OURS, FLOOR = "full", "no_context", "semshare", "rerun"
MIN_EXAMPLES = 8
Kind = Literal["contender", "reference", "control", "variant"]
_KINDS: dict[str, Kind] = {
    FULL: "reference",
    FLOOR: "reference",
    "no_realign": "control",
    "random_map": "control",
    "donor_text": "control",
    NO_CONTEXT: "control",
    "semshare_repair": "variant",  # ours, with the rest computed after the first token
}


@dataclass(frozen=True, slots=True)
class Metric:
    """One figure of the tables that is a mean over examples.

    name:      of the field of `Row`, and in `Summary.means`.
    label:     of the column.
    direction: 1 where more is better, −1 where less is.
    is_share:  told in percent.
    """

    name: str
    label: str
    direction: Literal[-1, 1]
    is_share: bool = False


COMPUTE = Metric("compute_fraction", "compute", -1, is_share=True)
KL = Metric("kl", "KL", -1)
LIKELIHOOD = Metric("log_likelihood", "log-lik.", 1)
PGR = Metric("pgr", "PGR", 1)  # of no single row
RIGHT = Metric("right", "right", 1, is_share=True)
METRICS = (
    COMPUTE,
    Metric("hit_rate", "mapped", 1, is_share=True),
    KL,
    Metric("top1", "top-1", 1, is_share=True),
    LIKELIHOOD,
    Metric("rouge1", "ROUGE-1", 1),
    Metric("rouge2", "ROUGE-2", 1),
    Metric("rouge_l", "ROUGE-L", 1),
    Metric("token_f1", "token F1", 1),
    Metric("edit_similarity", "edit sim.", 1),
    Metric("rouge_l_own", "ROUGE-L own", 1),
    Metric("numbers", "numbers", 1, is_share=True),
    Metric("entities", "names", 1, is_share=True),
    RIGHT,
    Metric("leak", "leaks", -1, is_share=True),
)
# The frontier is drawn between compute and each of these.
QUALITIES = (KL, PGR, RIGHT)


@dataclass(frozen=True, slots=True)
class Group:
    """What is compared with each other: one scenario of a dataset at one length."""

    dataset: str
    scenario: str
    length: int


@dataclass(frozen=True, slots=True)
class Summary:
    """One method in one group.

    kind:           contenders are compared; references and controls say what figures mean, and a
                    variant is compared with what it varies.
    n:              examples.
    tokens:         of the prompts, mean.
    means:          name of a metric → its mean; metrics that no row has are missing.
    differences:    name of a metric → its mean minus `semshare`'s, example by example.
    ttft_p50, ttft_p95: seconds.
    speedup:        median over examples of full prefill's time to first token ÷ this one's.
    decode_s:       median seconds a token.
    kv_bytes, own_kv_bytes: means.
    kl_by_position: mean KL of the scored text's tokens, as far as at least half of the texts go.
    build_s:        mean seconds to remember an example's donors.
    break_even:     reuses of the donors until that has paid; None: never, since it saves no time or
                    uses no donor.
    fallbacks:      requests that were computed in full after all.
    """

    group: Group
    method: str
    kind: Kind
    n: int
    tokens: float
    means: dict[str, Estimate]
    differences: dict[str, Estimate]
    ttft_p50: float
    ttft_p95: float
    speedup: float | None
    decode_s: float | None
    kv_bytes: float
    own_kv_bytes: float
    kl_by_position: tuple[float, ...]
    build_s: float
    break_even: int | None
    fallbacks: int

    def mean(self, metric: Metric) -> float | None:
        """A metric's mean; None where no row has it."""
        found = self.means.get(metric.name)
        return None if found is None else found.mean


def summarize(rows: Iterable[Row]) -> dict[Group, list[Summary]]:
    """Every method of every group, both in the order in which they first come."""
    by_group: dict[Group, dict[str, list[Row]]] = {}
    for row in rows:
        group = Group(row.dataset, row.scenario, row.length)
        by_group.setdefault(group, {}).setdefault(row.method, []).append(row)
    return {
        group: [_summary(group, method, by_method) for method in by_method]
        for group, by_method in by_group.items()
    }


def _summary(group: Group, method: str, by_method: dict[str, list[Row]]) -> Summary:
    rows = by_method[method]
    full = _by_example(by_method.get(FULL, ()))
    speedups = [full[row.example].ttft_s / row.ttft_s for row in rows if row.example in full]
    saved = [full[row.example].ttft_s - row.ttft_s for row in rows if row.example in full]
    build_s = fmean(row.build_s for row in rows)
    decode = [row.decode_s for row in rows if row.decode_s is not None]
    times = [row.ttft_s for row in rows]
    return Summary(
        group=group,
        method=method,
        kind=_KINDS.get(method, "contender"),
        n=len(rows),
        tokens=fmean(row.tokens for row in rows),
        means=_means(rows, by_method),
        differences=_differences(rows, _by_example(by_method.get(OURS, ()))),
        ttft_p50=median(times),
        ttft_p95=float(np.quantile(times, 0.95)),
        speedup=median(speedups) if speedups else None,
        decode_s=median(decode) if decode else None,
        kv_bytes=fmean(row.kv_bytes for row in rows),
        own_kv_bytes=fmean(row.own_kv_bytes for row in rows),
        kl_by_position=_by_position([row.kl_by_position for row in rows]),
        build_s=build_s,
        break_even=_break_even(build_s, saved) if any(row.hit_rate for row in rows) else None,
        fallbacks=sum(row.fallback is not None for row in rows),
    )


def _by_example(rows: Iterable[Row]) -> dict[str, Row]:
    return {row.example: row for row in rows}


def _means(rows: Sequence[Row], by_method: dict[str, list[Row]]) -> dict[str, Estimate]:
    means = {}
    for metric in METRICS:
        values = [getattr(row, metric.name) for row in rows]
        known = [float(value) for value in values if value is not None]
        if known:
            means[metric.name] = estimate(known)
    recovered = _pgr(rows, by_method)
    return means if recovered is None else means | {PGR.name: recovered}


def _pgr(rows: Sequence[Row], by_method: dict[str, list[Row]]) -> Estimate | None:
    """Of the gold text's likelihood: Σ (method − no context) / Σ (full − no context)."""
    full = _by_example(by_method.get(FULL, ()))
    blind = _by_example(by_method.get(NO_CONTEXT, ()))
    gaps: list[tuple[float, float]] = []
    for row in rows:
        if row.example not in full or row.example not in blind:
            continue
        likelihoods = [one.log_likelihood for one in (row, full[row.example], blind[row.example])]
        method, most, least = likelihoods
        if method is not None and most is not None and least is not None:
            gaps.append((method - least, most - least))
    return ratio_of_means(*zip(*gaps, strict=True)) if gaps else None


def _differences(rows: Sequence[Row], ours: dict[str, Row]) -> dict[str, Estimate]:
    found = {}
    for metric in METRICS:
        pairs = [
            (getattr(row, metric.name), getattr(ours[row.example], metric.name))
            for row in rows
            if row.example in ours
        ]
        known = [(float(a), float(b)) for a, b in pairs if a is not None and b is not None]
        if known:
            found[metric.name] = paired_difference(*zip(*known, strict=True))
    return found


def _by_position(several: Sequence[Sequence[float]]) -> tuple[float, ...]:
    longest = max(map(len, several))
    columns = ([one[at] for one in several if at < len(one)] for at in range(longest))
    return tuple(fmean(column) for column in columns if 2 * len(column) >= len(several))


def _break_even(build_s: float, saved: Sequence[float]) -> int | None:
    if not saved or fmean(saved) <= 0:
        return None
    return math.ceil(build_s / fmean(saved))


def pareto(
    items: Iterable[T], *, cost: Callable[[T], float], loss: Callable[[T], float]
) -> list[T]:
    """Items that no other equals or betters in both while bettering it in one; cheapest first."""
    chosen: list[T] = []
    best = math.inf
    ordered = sorted(items, key=lambda item: (cost(item), loss(item)))
    for _, of_one_cost in groupby(ordered, key=cost):
        cheapest = list(of_one_cost)
        least = loss(cheapest[0])
        if least < best:
            chosen += [item for item in cheapest if loss(item) == least]
            best = least
    return chosen


def computed(one: Summary) -> float:
    """Share of (token, layer) pairs."""
    return one.means[COMPUTE.name].mean


def frontier(
    summaries: Sequence[Summary],
    quality: Metric,
    *,
    cost: Callable[[Summary], float] = computed,
) -> list[Summary]:
    """The contenders that none costs less than and is better than, cheapest first."""
    known = [one for one in summaries if one.kind == "contender" and quality.name in one.means]
    return pareto(
        known,
        cost=cost,
        loss=lambda one: -quality.direction * one.means[quality.name].mean,
    )


def is_clear(one: Summary, quality: Metric) -> bool:
    """Whether the interval of its difference to `semshare` leaves out 0, over examples enough: of a
    few, a bootstrap says no more than whether all differ the same way.

    PGR is one linear function of the likelihood for all methods of a group, so that decides it.
    """
    name = LIKELIHOOD.name if quality is PGR else quality.name
    found = one.differences.get(name)
    if found is None or found.low is None or found.high is None or found.n < MIN_EXAMPLES:
        return False
    return found.low > 0 or found.high < 0


def beaten_by(summaries: Sequence[Summary], quality: Metric) -> list[Summary]:
    """The contenders that compute less than `semshare` and are better."""
    ours = next((one for one in summaries if one.method == OURS), None)
    if ours is None or quality.name not in ours.means:
        return []

    def is_better(other: Summary) -> bool:
        found = other.mean(quality)
        if found is None or other.kind != "contender":
            return False
        less = other.means[COMPUTE.name].mean < ours.means[COMPUTE.name].mean
        return less and quality.direction * (found - ours.means[quality.name].mean) > 0

    return [one for one in summaries if is_better(one)]
