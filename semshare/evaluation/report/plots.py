"""The report's plots, as SVG to be put into a page: text stays text, and no two share an id."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from semshare.errors import ModelNotAvailable
from semshare.evaluation.report.summary import COMPUTE, OURS, Metric, Summary, frontier

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which people with any colour vision can tell apart; one for each family
# of methods, a marker for each of its members.
_BLUE, _ORANGE, _GREEN, _RED, _PURPLE, _SKY, _GREY = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#D55E00",
    "#CC79A7",
    "#56B4E9",
    "#888888",
)
_STYLES: dict[str, tuple[str, str]] = {
    "semshare": (_RED, "o"),
    "semshare_repair": (_RED, "D"),
    "semsharekv": (_BLUE, "o"),
    "cacheblend": (_GREEN, "o"),
    "epic": (_GREEN, "s"),
    "align_only": (_GREEN, "^"),
    "prefix": (_SKY, "o"),
    "snapkv": (_ORANGE, "o"),
    "pyramidkv": (_ORANGE, "s"),
    "h2o": (_ORANGE, "^"),
    "full": ("#222222", "o"),
    "rerun": (_GREY, "x"),
    "no_realign": (_GREY, "^"),
    "random_map": (_GREY, "s"),
    "donor_text": (_GREY, "D"),
    "no_context": (_GREY, "v"),
}
_OTHER = (_PURPLE, "o")
_WIDTH, _HEIGHT = 5.2, 3.6  # inches; the page scales them, and a phone must show readable text
_SMALLEST_KL = 1e-5  # nats; what is nearer to full prefill is drawn there
_SETTINGS = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
}


def frontier_plot(summaries: Sequence[Summary], quality: Metric, name: str) -> str:
    """Quality against compute, each method a mark; the frontier is a line.

    Args:
        summaries: of one group.
        quality: what is drawn upwards; KL on a logarithmic axis, the better the lower.
        name: of the plot; no other plot of a page has it.

    """

    def at(one: Summary) -> tuple[float, float]:
        value = one.means[quality.name].mean
        return one.means[COMPUTE.name].mean, _drawn(quality, value)

    def draw(axes: Axes) -> None:
        known = [one for one in summaries if quality.name in one.means and one.method != "full"]
        best = frontier(summaries, quality)
        axes.plot(*zip(*map(at, best), strict=True), color="#bbbbbb", linewidth=2, zorder=1)
        for one in known:
            colour, marker = _STYLES.get(one.method, _OTHER)
            x, y = at(one)
            axes.plot(
                x,
                y,
                marker=marker,
                markersize=9 if one.method == OURS else 7,
                color=colour,
                markerfacecolor=colour if one.kind == "contender" else "white",
                linestyle="none",
                label=one.method,
                zorder=3 if one.method == OURS else 2,
            )
        axes.set_xscale("log")
        axes.set_xlabel("compute fraction, (token, layer) pairs")
        axes.set_ylabel(_axis(quality))
        if quality.name == "kl":
            axes.set_yscale("log")
        _legend(axes)

    return _svg(draw, name)


def by_length_plot(
    lines: Mapping[str, Sequence[tuple[float, float]]], label: str, name: str
) -> str:
    """One line a method over the prompt's length, both axes logarithmic.

    Args:
        lines: method → (tokens, value) in order of length.
        label: of the upright axis, with its unit.
        name: of the plot; no other plot of a page has it.

    """

    def draw(axes: Axes) -> None:
        for method, points in lines.items():
            _line(axes, method, [x for x, _ in points], [y for _, y in points])
        axes.set_xscale("log")
        axes.set_yscale("log")
        ticks = sorted({round(x) for points in lines.values() for x, _ in points})
        axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks], rotation=30)
        axes.minorticks_off()
        axes.set_xlabel("tokens of the prompt")
        axes.set_ylabel(label)
        _legend(axes)

    return _svg(draw, name)


def by_position_plot(summaries: Sequence[Summary], name: str) -> str:
    """KL of each token of the scored text, one line a contender that is not exact."""

    def draw(axes: Axes) -> None:
        for one in summaries:
            if one.kind == "contender" and max(one.kl_by_position) > _SMALLEST_KL:
                values = [max(value, _SMALLEST_KL) for value in one.kl_by_position]
                _line(axes, one.method, range(1, len(values) + 1), values, markersize=3)
        axes.set_yscale("log")
        axes.set_xlabel("position in the scored text, tokens")
        axes.set_ylabel("KL, nats a token")
        _legend(axes)

    return _svg(draw, name)


def _drawn(quality: Metric, value: float) -> float:
    return max(value, _SMALLEST_KL) if quality.name == "kl" else value


def _axis(quality: Metric) -> str:
    names = {
        "kl": "KL against full prefill, nats a token",
        "pgr": "PGR, share of the gap to full prefill",
        "right": "questions answered with the prompt's fact",
    }
    return names.get(quality.name, quality.label)


def _line(
    axes: Axes, method: str, xs: Sequence[float], ys: Sequence[float], markersize: float = 6
) -> None:
    colour, marker = _STYLES.get(method, _OTHER)
    axes.plot(
        xs,
        ys,
        color=colour,
        marker=marker,
        markersize=markersize,
        linewidth=2.4 if method == OURS else 1.4,
        label=method,
        zorder=3 if method == OURS else 2,
    )


def _legend(axes: Axes) -> None:
    """Below the axes, where it hides nothing."""
    marks = len(axes.get_legend_handles_labels()[0])
    axes.legend(
        loc="upper center",
        bbox_to_anchor=(0.5, -0.17),
        ncols=min(3, max(marks, 1)),
        frameon=False,
        fontsize=9,
    )


def _svg(draw: Callable[[Axes], None], name: str) -> str:
    matplotlib, figure = _figure()
    with matplotlib.rc_context({**_SETTINGS, "svg.hashsalt": name}):
        draw(figure.add_subplot())
        text = io.StringIO()
        figure.savefig(text, format="svg", bbox_inches="tight", metadata={"Date": None})
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    # It scales with its box, and its ids are its own.
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'(xlink:href="#|url\(#)', rf"\g<1>{name}-", svg)
    return svg.replace("<svg ", '<svg role="img" ', 1)


def _figure() -> tuple[Any, Figure]:
    try:
        import matplotlib  # noqa: PLC0415 - only reports need it
        from matplotlib.figure import Figure  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise ModelNotAvailable(
            'the package matplotlib is missing: pip install "semshare[eval]"'
        ) from error
    return matplotlib, Figure(figsize=(_WIDTH, _HEIGHT))
