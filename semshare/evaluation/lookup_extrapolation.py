"""What a lookup among a million donors would take, from what was measured among fewer."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from semshare.donors.embedders import Vector
from semshare.donors.prompt_index import CANDIDATES, FLAT_LIMIT, SAMPLE
from semshare.donors.vector_scan import FastScan
from semshare.evaluation.bounds import Record
from semshare.evaluation.lookup_indexes import PARTS

EXTRAPOLATED = 1_000_000

_QUERIES = 100
_PASSES = 3
_AT_ONCE = 10_000  # vectors encoded, between which a key press is noticed


def extrapolate(
    points: Sequence[Record], vectors: NDArray[np.float32], queries: Sequence[Vector]
) -> Record | None:
    """A million donors; None where no point is large enough for codes.

    Spans and prefixes halve what is left at every step, so their p50 is fitted as a + b·log n
    (least squares). The prompt index compares with all codes, and a line through points whose codes
    the processor's cache holds would promise too much: so a million codes are made, of the same
    vectors again and again, and the time by which they take longer to compare with is added to the
    largest point's. For the p99 a part's p50 is multiplied by the largest ratio of the two that any
    point with codes has.

    Args:
        points: of the record, by size.
        vectors: `[donors, dim]` of the largest.
        queries: of the targets.

    """
    coded = [point for point in points if point["donors"] > FLAT_LIMIT]
    if not coded or len(points) < 2:
        return None
    few_s, many_s = _scan_s(vectors, queries, (len(vectors), EXTRAPOLATED))
    p50 = {part: _fitted(points, f"{part}_p50_ms") for part in ("prefixes", "spans")}
    p50["prompts"] = points[-1]["prompts_p50_ms"] + 1e3 * (many_s - few_s)
    ratio = {part: max(p[f"{part}_p99_ms"] / p[f"{part}_p50_ms"] for p in coded) for part in PARTS}
    p99 = {part: p50[part] * ratio[part] for part in PARTS}
    return {
        "donors": EXTRAPOLATED,
        "p50_ms": round(sum(p50.values()), 3),
        "p99_ms": round(sum(p99.values()), 3),
        **{f"{part}_p50_ms": round(p50[part], 3) for part in PARTS},
        **{f"{part}_p99_ms": round(p99[part], 3) for part in PARTS},
        "bytes_per_donor": points[-1]["bytes_per_donor"],
        "law": "prefixes, spans: a + b log n; prompts: the largest point's + codes as measured",
    }


def _fitted(points: Sequence[Record], name: str) -> float:
    """Least squares of a + b·log n through the points, at a million."""
    sizes = np.log([point["donors"] for point in points])
    slope, start = np.polyfit(sizes, [point[name] for point in points], 1)
    return float(start + slope * np.log(EXTRAPOLATED))


def _scan_s(
    vectors: NDArray[np.float32], queries: Sequence[Vector], sizes: Sequence[int]
) -> list[float]:
    """Median seconds of comparing a query with the codes of ever more vectors."""
    codes = FastScan(vectors.shape[1])
    for _ in codes.train(vectors[:SAMPLE]):
        pass
    found = []
    for size in sizes:
        while len(codes) < size:
            start = len(codes) % len(vectors)
            codes.append(vectors[start : start + min(_AT_ONCE, size - len(codes))])
        seconds = []
        for _ in range(_PASSES):
            for query in queries[:_QUERIES]:
                started = time.perf_counter()
                codes.search(query, CANDIDATES)
                seconds.append(time.perf_counter() - started)
        found.append(float(np.median(seconds)))
    return found
