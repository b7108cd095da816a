"""Which plots a report has: what is drawn in each, and its caption.

Colours are Okabe and Ito's (2008), which colour-blind people tell apart; a method has the same one
in every plot.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from markupsafe import Markup

from semshare.evaluation.report.drawing import Axis, Item, Style, line_plot, scatter_plot
from semshare.evaluation.report.summary import FULL, KL, OURS, Group, Summary, computed, frontier
from semshare.evaluation.report.tables import LEAST_KL

_LEAST_COMPUTE = 1e-3
_SAME = 0.02  # lines that are nowhere further apart than this share of theirs hide each other
_WINDOW = 9  # positions of a running mean
_MB = 1e6

_GREY = "#6f6f6f"
_BESIDE = Style(_GREY, "o", "--", is_hollow=True)  # references and controls
_UNKNOWN = Style("#000000", "X", ":")
_STYLES = {
    OURS: Style("#D55E00", is_emphasised=True),
    "semshare_repair": Style("#E69F00", "D"),
    "semsharekv": Style("#0072B2", "s"),
    "cacheblend": Style("#009E73", "^"),
    "epic": Style("#CC79A7", "v"),
    "align_only": Style("#000000", "P"),
    "prefix": Style("#000000", "s", "--"),
    "snapkv": Style("#56B4E9", "^", "--"),
    "pyramidkv": Style("#56B4E9", "D", "-."),
    "h2o": Style("#56B4E9", "v", ":"),
}


@dataclass(frozen=True, slots=True)
class Plot:
    """A plot with its caption; without `svg` the caption says why there is none."""

    svg: Markup | None
    caption: str


@dataclass(frozen=True, slots=True)
class Cost:
    """What a frontier weighs KL against.

    what: in words.
    """

    what: str
    of: Callable[[Summary], float]
    axis: Axis


def frontier_plot(group: Group, summaries: Sequence[Summary], cost: Cost, *, name: str) -> Plot:
    """KL against a cost, each method a point; `name` is of no other plot of the page.

    Raises:
        ModelNotAvailable: matplotlib is not installed.

    """
    if all(one.kind != "contender" for one in summaries):
        return Plot(None, f"No plot of quality against {cost.what}: no contender was run.")

    def at(one: Summary) -> tuple[float, float]:
        return cost.of(one), one.means[KL.name].mean

    items = [Item(one.method, (at(one),), _style(one)) for one in summaries]
    svg = scatter_plot(
        items,
        [at(one) for one in frontier(summaries, KL, cost=cost.of)],
        cost.axis,
        Axis("KL from full prefill, nats a token", _plain, least=LEAST_KL),
        name=name,
        title=f"KL against {cost.what} in {group.scenario}",
    )
    return Plot(
        svg,
        f"Quality against {cost.what}: left and down is better. The line is the frontier, of whose "
        "methods none costs less and is nearer to full prefill. Hollow: references and controls. "
        f"n = {_counts(summaries)}.",
    )


def divergence_plot(group: Group, summaries: Sequence[Summary], *, name: str) -> Plot:
    """KL against the position in the scored text, as `frontier_plot`."""
    contenders = [one for one in summaries if one.kind == "contender"]
    shown = [
        one
        for one in contenders
        if len(one.kl_by_position) > 1 and max(one.kl_by_position) > LEAST_KL
    ]
    if not shown:
        return Plot(
            None,
            f"No plot of {group.scenario}: no contender has a KL of more than {LEAST_KL:.4f} at "
            "any of several positions.",
        )
    items = [
        Item(one.method, tuple(enumerate(_smooth(one.kl_by_position), 1)), _style(one))
        for one in shown
    ]
    longest = max(len(one.kl_by_position) for one in shown)
    step = next(step for step in (1, 5, 10, 20, 50, 100, longest) if longest <= 8 * step)
    svg = line_plot(
        items,
        Axis(
            "token of the scored text",
            _plain,
            ticks=(1.0, *map(float, range(max(2, step), longest + 1, step))),
            scale="linear",
        ),
        Axis("KL, nats a token", _plain, least=LEAST_KL),
        name=name,
        title=f"KL by position in {group.scenario}",
    )
    exact = ", ".join(one.method for one in contenders if one not in shown)
    return Plot(
        svg,
        f"{group.dataset}, {group.scenario}, {group.length:,} tokens: KL at each of the first "
        f"{longest} tokens that were scored, a running mean over {_WINDOW} of them. "
        f"n = {_counts(shown)}." + (f" Nowhere above {LEAST_KL:.4f}: {exact}." if exact else ""),
    )


def length_plots(groups: dict[Group, list[Summary]]) -> Iterator[tuple[str, list[Plot]]]:
    """What grows with the prompt, for each scenario at two lengths or more, with its title.

    Raises:
        ModelNotAvailable: matplotlib is not installed.

    """
    scenarios: dict[tuple[str, str], list[Group]] = {}
    for group in sorted(groups, key=lambda group: group.length):
        scenarios.setdefault((group.dataset, group.scenario), []).append(group)
    for at, ((dataset, scenario), found) in enumerate(scenarios.items()):
        if len(found) > 1:
            several = [groups[group] for group in found]
            yield (
                f"{dataset} · {scenario}",
                [
                    _length_plot(f"length-{at}-{number}", several, *what)
                    for number, what in enumerate(_GROWING)
                ],
            )


_GROWING: tuple[tuple[str, str, Callable[[Summary], float]], ...] = (
    ("Time to first token, median", "time to first token, s", lambda one: one.ttft_p50),
    ("KV a request holds by itself", "own KV, MB", lambda one: one.own_kv_bytes / _MB),
    ("KV a decode step reads", "KV read, MB", lambda one: one.kv_bytes / _MB),
)


def _length_plot(
    name: str,
    groups: list[list[Summary]],
    title: str,
    label: str,
    value: Callable[[Summary], float],
) -> Plot:
    lines: dict[str, list[Summary]] = {}
    for summaries in groups:
        for one in summaries:
            if one.kind == "contender" or one.method == FULL:
                lines.setdefault(one.method, []).append(one)
    items = [
        Item(method, tuple((one.tokens, value(one)) for one in line), _style(line[0]))
        for method, line in lines.items()
        if len(line) > 1
    ]
    if not items:
        return Plot(None, f"No plot of {label}: no method was run at two lengths.")
    distinct, hidden = merge_lines(items)
    lengths = tuple(float(summaries[0].group.length) for summaries in groups)
    svg = line_plot(
        distinct,
        Axis("tokens of the prompt", lambda tokens: f"{tokens:,.0f}", ticks=lengths),
        Axis(label, _plain),
        name=name,
        title=f"{title} against length",
    )
    counts = _counts([one for line in lines.values() for one in line])
    return Plot(svg, f"{title}, against the prompt's length. n = {counts} at each length.{hidden}")


def merge_lines(items: Sequence[Item]) -> tuple[list[Item], str]:
    """Lines of which none hides another, and a sentence that says which stand for several.

    The first of each is kept, but `semshare` is never hidden: what hides it gives way.
    """
    kept: list[Item] = []
    hidden: dict[str, list[str]] = {}
    for item in sorted(items, key=lambda one: not one.style.is_emphasised):
        same = next((other for other in kept if _hides(other, item)), None)
        if same is None:
            kept.append(item)
        else:
            hidden.setdefault(same.name, []).append(item.name)
    named = [
        replace(one, name=f"{one.name} +{len(hidden[one.name])}") if one.name in hidden else one
        for one in kept
    ]
    notes = [f" On the line of {name}: {', '.join(also)}." for name, also in hidden.items()]
    return named, "".join(notes)


def _hides(one: Item, other: Item) -> bool:
    return len(one.points) == len(other.points) and all(
        math.isclose(a, b, rel_tol=_SAME)
        for mine, its in zip(one.points, other.points, strict=True)
        for a, b in zip(mine, its, strict=True)
    )


def _style(one: Summary) -> Style:
    if one.kind in ("contender", "variant"):
        return _STYLES.get(one.method, _UNKNOWN)
    return _BESIDE


def _smooth(values: Sequence[float]) -> list[float]:
    """Centred running means, over fewer values at the ends."""
    half = _WINDOW // 2
    windows = (values[max(0, at - half) : at + half + 1] for at in range(len(values)))
    return [math.fsum(window) / len(window) for window in windows]


def _counts(summaries: Sequence[Summary]) -> str:
    """How many examples, as "6" or "3 to 6"."""
    counts = {one.n for one in summaries}
    low, high = min(counts), max(counts)
    return str(low) if low == high else f"{low} to {high}"


def _percent(share: float) -> str:
    return f"{100 * share:g} %"


def _plain(value: float) -> str:
    return f"{value:.6f}".rstrip("0").rstrip(".") if value < 1 else f"{value:,.0f}"


COMPUTED = Cost(
    "compute",
    computed,
    Axis("computed, % of (token, layer) pairs", _percent, least=_LEAST_COMPUTE),
)
FIRST_TOKEN = Cost(
    "time to first token", lambda one: one.ttft_p50, Axis("time to first token, s", _plain)
)
