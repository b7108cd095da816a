"""The report as rows of text: what the page, the markdown and the terminal have in common."""

from __future__ import annotations

from collections.abc import Sequence

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
_SHARES = {COMPUTE.name, "hit_rate", "numbers", "entities", "right", "leak"}
_KL_DIFFERENCE = Metric("kl_difference", f"KL − {OURS}'s", -1)
_QUALITY_COLUMNS = (
    *(metric for metric in METRICS if metric is not COMPUTE),
    PGR,
)


def figure(metric: Metric, found: Estimate | None) -> str:
    """A mean with its 95 % interval; shares in percent."""
    if found is None:
        return ABSENT
    scale, unit, digits = (100.0, "%", 1) if metric.name in _SHARES else (1.0, "", 3)

    def said(value: float) -> str:
        return f"{scale * value:.{digits}f}"

    if found.low is None or found.high is None:
        return said(found.mean) + unit
    return f"{said(found.mean)}{unit} [{said(found.low)}, {said(found.high)}]"


def quality_table(summaries: Sequence[Summary]) -> list[list[str]]:
    """Fidelity and task scores; columns that no method has are left out. The header is first."""
    columns = [
        metric for metric in _QUALITY_COLUMNS if any(metric.name in one.means for one in summaries)
    ]
    labels = [metric.label for metric in (COMPUTE, *columns, _KL_DIFFERENCE)]
    return [
        ["method", "n", *labels],
        *(
            [
                one.method,
                str(one.n),
                figure(COMPUTE, one.means.get(COMPUTE.name)),
                *(figure(metric, one.means.get(metric.name)) for metric in columns),
                figure(_KL_DIFFERENCE, one.differences.get(KL.name)),
            ]
            for one in summaries
        ),
    ]


def cost_table(summaries: Sequence[Summary]) -> list[list[str]]:
    """Time and memory. The header is first."""
    head = [
        "method",
        "n",
        "TTFT p50",
        "TTFT p95",
        "speedup",
        "ms a token",
        "KV read, MB",
        "own KV, MB",
        "build",
        "break-even",
        "fallbacks",
    ]
    return [head, *map(_costs, summaries)]


def _costs(one: Summary) -> list[str]:
    return [
        one.method,
        str(one.n),
        f"{one.ttft_p50:.3f} s",
        f"{one.ttft_p95:.3f} s",
        ABSENT if one.speedup is None else f"{one.speedup:.2f}×",
        ABSENT if one.decode_s is None else f"{1000 * one.decode_s:.1f}",
        f"{one.kv_bytes / 1e6:.1f}",
        f"{one.own_kv_bytes / 1e6:.1f}",
        f"{one.build_s:.2f} s",
        "never" if one.break_even is None else f"{one.break_even} reuses",
        str(one.fallbacks),
    ]


def title(group: Group) -> str:
    """What a section is about."""
    return f"{group.dataset} · {group.scenario} · {group.length:,} tokens"


def frontier_lines(summaries: Sequence[Summary]) -> list[str]:
    """For each quality that was measured: who is on the frontier, and who beats `semshare`."""
    lines = []
    for quality in QUALITIES:
        best = [one.method for one in frontier(summaries, quality)]
        if not best:
            continue
        line = f"Compute against {quality.label}, the frontier: {', '.join(best)}."
        for winner in beaten_by(summaries, quality):
            doubt = "" if is_clear(winner, quality) else ", within the noise"
            line += (
                f" {winner.method}: less compute than {OURS} and a better {quality.label}{doubt}."
            )
        lines.append(line)
    return lines


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
    found = one.means.get(metric.name)
    return ABSENT if found is None else figure(metric, Estimate(found.mean, None, None, found.n))
