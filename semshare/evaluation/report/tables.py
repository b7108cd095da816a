"""The report in cells and sentences, which the page, the markdown and the terminal share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from semshare.evaluation.report.summary import (
    COMPUTE,
    KL,
    METRICS,
    OURS,
    PGR,
    QUALITIES,
    Group,
    Metric,
    Summary,
    beaten_by,
    frontier,
    is_clear,
)
from semshare.evaluation.statistics import Estimate

ABSENT = "–"
LEAST_KL = 1e-4  # nats a token; less makes no difference that could be seen
MIN_P95 = 20  # examples, of which fewer than one would lie above it
_MB = 1e6


@dataclass(frozen=True, slots=True)
class Cell:
    """A value of the table; `interval` is its 95 % interval, or empty."""

    value: str
    interval: str = ""


@dataclass(frozen=True, slots=True)
class TableRow:
    """A method's figures, one cell a column."""

    method: str
    on_frontier: bool
    cells: tuple[Cell, ...]


@dataclass(frozen=True, slots=True)
class Table:
    """Columns' labels, and rows by kind: contenders first, then what they are read beside."""

    columns: tuple[str, ...]
    contenders: tuple[TableRow, ...]
    others: tuple[TableRow, ...]


def title(group: Group) -> str:
    """What a section is about."""
    return f"{group.dataset} · {group.scenario} · {group.length:,} tokens"


def headline(summaries: Sequence[Summary]) -> Iterator[str]:
    """How `semshare` did, in sentences."""
    ours = _ours(summaries)
    if ours is None:
        yield f"{OURS} was not run here."
        return
    faster = "" if ours.speedup is None else f", {ours.speedup:.2f} × as fast as full prefill"
    yield (
        f"{OURS} computes {_number(COMPUTE, ours.means[COMPUTE.name].mean)} of the prompt at KL "
        f"{_number(KL, ours.means[KL.name].mean)} from full prefill; its first token comes after "
        f"{ours.ttft_p50:.3g} s{faster} (medians, n = {ours.n})."
    )
    most = max(one.n for one in summaries)
    behind = [f"{one.method} {one.n}" for one in summaries if one.n < most]
    if behind:
        yield f"Not all methods have all of {most} examples yet: {_listed(behind)}."
    if ours.fallbacks:
        yield f"{ours.fallbacks} of {ours.n} prompts were computed in full after all."
    known = [quality for quality in QUALITIES if quality.name in ours.means]
    on = [quality.label for quality in known if ours in frontier(summaries, quality)]
    if on:
        yield f"It is on the frontier of compute and {_listed(on)}."
    for quality in known:
        better = beaten_by(summaries, quality)
        if better:
            named = _listed([_against(other, quality) for other in better])
            mine = _number(quality, ours.means[quality.name].mean)
            yield f"Beaten in {quality.label} ({mine}), with less computed, by {named}."
        elif quality.label not in on:
            yield (
                f"In {quality.label} another method equals it in one of the two, and betters it "
                "in the other."
            )


def _against(other: Summary, quality: Metric) -> str:
    compute, value = other.means[COMPUTE.name].mean, other.means[quality.name].mean
    doubt = "" if is_clear(other, quality) else ", within the noise"
    return f"{other.method} ({_number(quality, value)} at {_number(COMPUTE, compute)}{doubt})"


def _listed(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def glance(summaries: Sequence[Summary]) -> tuple[str, ...]:
    """n, compute, KL, PGR, speedup, and the qualities in which it is on the frontier."""
    ours = _ours(summaries)
    if ours is None:
        return ("–",) * 6
    on = [one.label for one in QUALITIES if ours in frontier(summaries, one)]
    figures = [ours.mean(metric) for metric in (COMPUTE, KL, PGR)]
    return (
        str(ours.n),
        *(
            "–" if value is None else _number(metric, value)
            for metric, value in zip((COMPUTE, KL, PGR), figures, strict=True)
        ),
        "–" if ours.speedup is None else f"{ours.speedup:.2f} ×",
        ", ".join(on) or "none",
    )


def table_of(summaries: Sequence[Summary]) -> Table:
    """Columns in which no method has a value are left out."""
    columns: list[tuple[str, Callable[[Summary], Cell | None]]] = [
        ("n", lambda one: Cell(str(one.n))),
        *((_label(metric), _metric_cell(metric)) for metric in (*METRICS[:3], PGR, *METRICS[3:])),
        (f"KL − {OURS}'s", _difference_cell),
        ("TTFT p50, s", lambda one: Cell(f"{one.ttft_p50:.3g}")),
        ("TTFT p95, s", lambda one: Cell(f"{one.ttft_p95:.3g}") if one.n >= MIN_P95 else None),
        ("speedup", lambda one: None if one.speedup is None else Cell(f"{one.speedup:.2f} ×")),
        ("decode, ms", lambda one: None if one.decode_s is None else Cell(_ms(one.decode_s))),
        ("KV read, MB", lambda one: Cell(f"{one.kv_bytes / _MB:.1f}")),
        ("own KV, MB", lambda one: Cell(f"{one.own_kv_bytes / _MB:.1f}")),
        ("build, s", lambda one: Cell(f"{one.build_s:.2f}")),
        (
            "break-even",
            lambda one: None if one.break_even is None else Cell(str(one.break_even)),
        ),
        ("fallbacks", lambda one: Cell(str(one.fallbacks)) if one.fallbacks else None),
    ]
    used = [(label, cell) for label, cell in columns if any(map(cell, summaries))]
    best = frontier(summaries, KL)

    def row(one: Summary) -> TableRow:
        cells = tuple(cell(one) or Cell("–") for _, cell in used)
        return TableRow(one.method, one in best, cells)

    ordered = sorted(summaries, key=lambda one: one.means[COMPUTE.name].mean)
    return Table(
        columns=tuple(label for label, _ in used),
        contenders=tuple(row(one) for one in ordered if one.kind == "contender"),
        others=tuple(row(one) for one in ordered if one.kind != "contender"),
    )


def brief(groups: dict[Group, list[Summary]]) -> list[dict[str, str]]:
    """One line a method for a terminal."""
    return [
        {
            "scenario": f"{group.scenario} {group.length}",
            "method": one.method,
            "n": str(one.n),
            "compute": _mean(COMPUTE, one),
            **{quality.label: _mean(quality, one) for quality in QUALITIES},
            "TTFT": f"{one.ttft_p50:.3f} s",
            "speedup": ABSENT if one.speedup is None else f"{one.speedup:.2f}×",
        }
        for group, summaries in groups.items()
        for one in summaries
    ]


def _mean(metric: Metric, one: Summary) -> str:
    found = one.mean(metric)
    return ABSENT if found is None else _number(metric, found)


def _ours(summaries: Sequence[Summary]) -> Summary | None:
    return next((one for one in summaries if one.method == OURS), None)


def _difference_cell(one: Summary) -> Cell | None:
    found = one.differences.get(KL.name)
    return None if found is None or one.method == OURS else _signed_cell(found)


def _signed_cell(found: Estimate) -> Cell:
    if found.low is None or found.high is None:
        return Cell(f"{found.mean:+.4f}")
    return Cell(f"{found.mean:+.4f}", f"[{found.low:+.4f}, {found.high:+.4f}]")


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.3g}"


def _label(metric: Metric) -> str:
    return f"{metric.label}, %" if metric.is_share else metric.label


def _metric_cell(metric: Metric) -> Callable[[Summary], Cell | None]:
    def cell(one: Summary) -> Cell | None:
        found = one.means.get(metric.name)
        return None if found is None else _estimate_cell(metric, found)

    return cell


def _estimate_cell(metric: Metric, found: Estimate) -> Cell:
    def bare(value: float) -> str:
        return _number(metric, value).removesuffix(" %")

    if found.low is None or found.high is None or bare(found.low) == bare(found.high):
        return Cell(bare(found.mean))
    return Cell(bare(found.mean), f"[{bare(found.low)}, {bare(found.high)}]")


def _number(metric: Metric, value: float) -> str:
    if metric.is_share:
        return f"{100 * value:.1f} %"
    if metric is KL:
        return f"{value:.4f}" if value >= LEAST_KL else "0" if value <= 0 else f"<{LEAST_KL:.4f}"
    return f"{value:.3f}"
