"""Where the labels of a plot stand, in pixels: beside what they name, and not over each other."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TypeAlias

Box: TypeAlias = tuple[float, float, float, float]  # left, bottom, right, top

LINE = 14.0  # from one label to the next
_POINT = 5.0  # half of a point's width
_REACHES = (9, 20, 34, 50, 70)  # from a point to its label, the nearest first


def place_labels(
    points: Sequence[tuple[float, float]], widths: Sequence[float], bounds: Box
) -> list[Box]:
    """A box near each point that covers no point and no other box, as far as there is room.

    Args:
        points: x and y in pixels; the first have the first choice.
        widths: of their texts, pixels.
        bounds: which boxes stay within if any place does.

    """
    taken: list[Box] = [(x - _POINT, y - _POINT, x + _POINT, y + _POINT) for x, y in points]
    own = len(taken)
    for point, width in zip(points, widths, strict=True):
        choices = list(_around(point, width))
        # min() takes the first of equals: the nearest.
        taken.append(min(choices, key=lambda box: _covered(box, taken) + _outside(box, bounds)))
    return taken[own:]


def _around(point: tuple[float, float], width: float) -> Iterator[Box]:
    """Boxes at growing distances, at 16 angles, from the right counterclockwise."""
    for reach in _REACHES:
        for step in range(16):
            cos, sin = math.cos(math.tau * step / 16), math.sin(math.tau * step / 16)
            x = point[0] + cos * (reach + width / 2)
            y = point[1] + sin * (reach + LINE / 2)
            yield x - width / 2, y - LINE / 2, x + width / 2, y + LINE / 2


def _covered(box: Box, others: Sequence[Box]) -> float:
    """Pixels of a box that others cover."""
    return sum(
        max(0.0, min(box[2], other[2]) - max(box[0], other[0]))
        * max(0.0, min(box[3], other[3]) - max(box[1], other[1]))
        for other in others
    )


def _outside(box: Box, bounds: Box) -> float:
    """Pixels of a box that are out of bounds."""
    return (box[2] - box[0]) * (box[3] - box[1]) - _covered(box, [bounds])


def spread(wished: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Heights near the wished ones, in their order, `gap` apart, in bounds if there is room."""
    order = sorted(range(len(wished)), key=lambda i: wished[i])
    heights = [0.0] * len(wished)
    floor = low
    for i in order:
        heights[i] = max(wished[i], floor)
        floor = heights[i] + gap
    ceiling = high
    for i in reversed(order):
        heights[i] = min(heights[i], ceiling)
        ceiling = heights[i] - gap
    return heights
