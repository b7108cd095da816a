"""Plots as SVG to stand inline in a page: text stays text, and nothing is loaded.

Every point and line has its name beside it, so that none rests on its colour alone.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from markupsafe import Markup, escape

from semshare.errors import ModelNotAvailable
from semshare.evaluation.report.label_places import LINE, place_labels, spread

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, HEIGHT = 420, 320  # of every plot, in the pixels that sizes of text are given in
_LEFT, _BOTTOM, _TOP = 64, 46, 30  # margins
_TEXT, _TICKS = 11.5, 10.5
_CHARACTER, _BOLD = 0.58, 0.68  # widths of system fonts, in sizes of text
_FEW = 8  # points, up to which a line shows where it was measured
_INK, _FAINT, _GRID = "#222222", "#555555", "#e6e6e6"


@dataclass(frozen=True, slots=True)
class Style:
    """How one thing is drawn.

    colour:        `#rrggbb`.
    marker, dash:  by matplotlib's names.
    is_hollow:     an outline only, its name in the same colour.
    is_emphasised: larger, in front, its name bold.
    """

    colour: str
    marker: str = "o"
    dash: str = "-"
    is_hollow: bool = False
    is_emphasised: bool = False


@dataclass(frozen=True, slots=True)
class Axis:
    """One axis of a plot.

    label: with the unit.
    show:  a value as the text of its tick.
    ticks: where; None: 1, 2 and 5 of each decade.
    least: what is less is drawn here, and the tick here says "≤".
    scale: matplotlib's name of it.
    """

    label: str
    show: Callable[[float], str]
    ticks: tuple[float, ...] | None = None
    least: float = 1e-9
    scale: Literal["log", "linear"] = "log"


@dataclass(frozen=True, slots=True)
class Item:
    """Something with a name: a point in a scatter plot; or a line, its points in order of x."""

    name: str
    points: tuple[tuple[float, float], ...]
    style: Style


def scatter_plot(
    items: Sequence[Item],
    stairs: Sequence[tuple[float, float]],
    x: Axis,
    y: Axis,
    *,
    name: str,
    title: str,
) -> Markup:
    """Named points, and the edge of what the best of them reach.

    Args:
        items: at least one, each of one point.
        stairs: the points of the edge, by growing x and falling y; may be empty.
        x, y: less is better on both.
        name: the ids' prefix, of no other plot of the page.
        title: for those who don't see it.

    Raises:
        ModelNotAvailable: matplotlib is not installed.

    """
    figure, axes = _blank(x, y, right=12)
    points = [_drawn(item.points[0], x, y) for item in items]
    _scale(axes.set_xlim, [a for a, _ in points], 1.6, 1.6)
    _scale(axes.set_ylim, [b for _, b in points], 1.8, 1.8)
    _set_ticks(axes, x, y)
    if stairs:
        inner = [_drawn(point, x, y) for point in stairs]
        edge = (inner[0][0], axes.get_ylim()[1]), *inner, (axes.get_xlim()[1], inner[-1][1])
        steps: dict[str, Any] = {
            "drawstyle": "steps-post",
            "color": "#b4b4b4",
            "linewidth": 1.6,
            "zorder": 1,
        }
        axes.plot(*zip(*edge, strict=True), **steps)
    for item, (a, b) in zip(items, points, strict=True):
        style = item.style
        axes.plot(
            [a],
            [b],
            marker=style.marker,
            markersize=11 if style.is_emphasised else 7,
            markerfacecolor="none" if style.is_hollow else style.colour,
            markeredgecolor=style.colour if style.is_hollow else "#ffffff",
            markeredgewidth=1.3 if style.is_hollow else 0.8,
            zorder=4 if style.is_emphasised else 3,
            clip_on=False,
        )
    _label_points(axes, items, points)
    return _svg(figure, name, title)


def line_plot(items: Sequence[Item], x: Axis, y: Axis, *, name: str, title: str) -> Markup:
    """Named lines, the names in a column at their right ends.

    Args:
        items: at least one.
        x, y: the axes.
        name: the ids' prefix, of no other plot of the page.
        title: for those who don't see it.

    Raises:
        ModelNotAvailable: matplotlib is not installed.

    """
    figure, axes = _blank(x, y, right=26 + max(map(_width, items)))
    lines = [[_drawn(point, x, y) for point in item.points] for item in items]
    _scale(axes.set_xlim, [*(x.ticks or ()), *(a for line in lines for a, _ in line)], 1.0, 1.0)
    _scale(axes.set_ylim, [b for line in lines for _, b in line], 1.2, 1.2)
    _set_ticks(axes, x, y)
    for item, line in zip(items, lines, strict=True):
        style = item.style
        axes.plot(
            *zip(*line, strict=True),
            color=style.colour,
            linestyle=style.dash,
            linewidth=2.6 if style.is_emphasised else 1.4,
            marker=style.marker if len(line) <= _FEW else "",
            markersize=7 if style.is_emphasised else 4.5,
            zorder=4 if style.is_emphasised else 3,
            clip_on=False,
        )
    ends = _pixels(axes, [line[-1] for line in lines])
    heights = spread([height for _, height in ends], LINE, axes.bbox.y0, axes.bbox.y1)
    for item, end, height in zip(items, ends, heights, strict=True):
        _write(axes, item, (axes.bbox.x1 + 18, height), end, "left")
    return _svg(figure, name, title)


def _drawn(point: tuple[float, float], x: Axis, y: Axis) -> tuple[float, float]:
    return max(point[0], x.least), max(point[1], y.least)


def _width(item: Item) -> float:
    return (_BOLD if item.style.is_emphasised else _CHARACTER) * _TEXT * len(item.name)


def _blank(x: Axis, y: Axis, right: float) -> tuple[Figure, Axes]:
    """A figure whose points are pixels, and `right` of them beside its axes."""
    try:
        from matplotlib.backends.backend_svg import FigureCanvasSVG  # noqa: PLC0415 - a second
        from matplotlib.figure import Figure  # noqa: PLC0415 - the same
    except ModuleNotFoundError as error:
        raise ModelNotAvailable(
            'the package matplotlib is missing: pip install "semshare[eval]"'
        ) from error
    figure = Figure(figsize=(WIDTH / 72, HEIGHT / 72), dpi=72)
    FigureCanvasSVG(figure)
    size = (WIDTH - _LEFT - right) / WIDTH, (HEIGHT - _BOTTOM - _TOP) / HEIGHT
    axes = figure.add_axes((_LEFT / WIDTH, _BOTTOM / HEIGHT, *size))
    axes.set_xscale(x.scale)
    axes.set_yscale(y.scale)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(_FAINT)
    axes.grid(color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    return figure, axes


def _scale(
    limit: Callable[[float, float], object], values: Sequence[float], below: float, above: float
) -> None:
    """Limits that are these factors away from the least and the greatest value."""
    low, high = min(values) / below, max(values) * above
    # One value alone would make an axis of no length.
    limit(low, high if high > low else 2 * low)


def _set_ticks(axes: Axes, x: Axis, y: Axis) -> None:
    for axis, drawn, (low, high) in (
        (x, axes.xaxis, axes.get_xlim()),
        (y, axes.yaxis, axes.get_ylim()),
    ):
        ticks = [tick for tick in axis.ticks or _decades(low, high) if low <= tick <= high]
        texts = [("≤ " if tick == axis.least else "") + axis.show(tick) for tick in ticks]
        drawn.set_ticks(ticks, labels=texts)
        drawn.set_ticks([], minor=True)
        drawn.set_tick_params(labelsize=_TICKS, labelcolor=_FAINT, color=_FAINT)
    axes.set_xlabel(x.label, fontsize=_TEXT, color=_INK)
    # Above its axis and not beside it, so that it reads upright and takes no width.
    axes.figure.text(
        6 / WIDTH, 1 - 16 / HEIGHT, y.label, fontsize=_TEXT, color=_INK, parse_math=False
    )


def _decades(low: float, high: float) -> list[float]:
    """1, 2 and 5 of each decade; in a wide range the powers of ten alone."""
    steps = (1, 2, 5) if high / low < 200 else (1,)
    return [float(f"{step}e{power}") for power in range(-9, 10) for step in steps]


def _pixels(axes: Axes, points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    return [(float(a), float(b)) for a, b in axes.transData.transform(points)]


def _label_points(axes: Axes, items: Sequence[Item], points: Sequence[tuple[float, float]]) -> None:
    """Names beside their points; the emphasised choose first, the hollow last."""
    named = sorted(
        zip(items, _pixels(axes, points), strict=True),
        key=lambda one: (not one[0].style.is_emphasised, one[0].style.is_hollow),
    )
    box = axes.bbox
    boxes = place_labels(
        [point for _, point in named],
        [_width(item) for item, _ in named],
        (box.x0, box.y0, box.x1, box.y1),
    )
    for (item, point), (left, bottom, right, top) in zip(named, boxes, strict=True):
        _write(axes, item, ((left + right) / 2, (bottom + top) / 2), point, "center")


def _write(
    axes: Axes,
    item: Item,
    where: tuple[float, float],
    what: tuple[float, float],
    align: Literal["left", "center"],
) -> None:
    """Something's name at `where`, with a thin line to `what` it names; both in pixels."""
    from matplotlib.transforms import IdentityTransform  # noqa: PLC0415 - as in _blank

    pixels = IdentityTransform()
    line: dict[str, Any] = {"color": "#b0b0b0", "linewidth": 0.7, "zorder": 2, "clip_on": False}
    axes.plot(*zip(where, what, strict=True), transform=pixels, **line)
    axes.text(
        *where,
        item.name,
        transform=pixels,
        ha=align,
        va="center",
        fontsize=_TEXT,
        fontweight="bold" if item.style.is_emphasised else "normal",
        color=item.style.colour if item.style.is_hollow else _INK,
        parse_math=False,
        zorder=5,
    )


def _svg(figure: Figure, name: str, title: str) -> Markup:
    import matplotlib  # noqa: PLC0415 - takes a second, and is optional

    out = io.StringIO()
    # The defaults are random ids, and outlines in place of text.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    svg = out.getvalue()
    body = svg[svg.index('<g id="figure') : svg.rindex("</svg>")]
    body = re.sub(r"'DejaVu Sans',[^;\"]*sans-serif", "system-ui, sans-serif", body)
    # Several plots stand in one page and share its ids.
    body = body.replace(' id="', f' id="{name}-')
    body = body.replace('xlink:href="#', f'href="#{name}-').replace("url(#", f"url(#{name}-")
    head = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">'
    return Markup(f"{head}{body}</svg>")  # noqa: S704 - matplotlib has escaped the names in it
