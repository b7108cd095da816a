"""How long it takes to find donors among very many, and what the indexes take.

semshare bench lookup --json
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from semshare.donors.embedders import Embedder, ModelEmbedder, Vector
from semshare.donors.prompt_index import FLAT_LIMIT
from semshare.errors import InvalidRequest
from semshare.evaluation.bounds import Record
from semshare.evaluation.environment import machine, resident_bytes, versions
from semshare.evaluation.lookup_indexes import PARTS, Donors, Indexes, checked
from semshare.evaluation.lookup_texts import (
    Sources,
    Target,
    make_donors,
    make_targets,
    packaged_sources,
)
from semshare.evaluation.progress import Step, progress_bar, status_line
from semshare.types import Ids

SIZES = (1_000, 10_000, 30_000, 100_000)
RESTART = 10_000  # donors to be matchable after a restart
EXTRAPOLATED = 1_000_000

_PASSES = 3


def run_lookup(
    *,
    donors: int = SIZES[-1],
    targets: int = 1000,
    model: str = "smollm2",
    progress: bool = True,
    sources: Sources | None = None,
    embedder: Embedder | None = None,
) -> Record:
    """Look prompts up among more and more donors.

    Args:
        donors: of the largest point; the others are those of `SIZES` that are smaller.
        targets: prompts that are looked up, of four kinds in turn.
        model: whose tokenizer and embeddings are used, where the next two are None.
        progress: a bar on standard error.
        sources: texts that donors and targets are made of.
        embedder: makes the vectors.

    Returns:
        The record described in `docs/evaluation.md`, JSON-ready.

    Raises:
        BenchmarkRefused: something was found that is not there, or too little of what is.
        InvalidRequest: too few donors or targets.
        ModelNotAvailable: the model or a package with texts is missing.

    """
    if donors < 100 or targets < 4:
        raise InvalidRequest(
            f"{donors} donors and {targets} targets: there must be at least 100 and 4"
        )
    if sources is None or embedder is None:
        sources, embedder = _packaged(model, progress)
    sizes = [size for size in SIZES if size < donors] + [donors]
    with progress_bar("lookup", len(sizes) + 2, enabled=progress) as (note, advance):
        note(f"{donors:,} donors")
        texts = make_donors(sources, donors)
        names = [f"donor-{i:x}" for i in range(donors)]
        vectors = np.stack([embedder.embed(ids) for ids in texts])
        known = Donors(names, texts, vectors)
        # All that is planted is in the smallest point, too.
        wanted = make_targets(sources, texts[: sizes[0]], targets)
        embed_s = [_timed(lambda ids=one.ids: embedder.embed(ids))[0] for one in wanted]  # type: ignore[misc]
        queries = [embedder.embed(one.ids) for one in wanted]
        advance("donors that come one by one")
        added = _one_by_one(known.first(min(RESTART, donors)))
        advance("")
        points = []
        for size in sizes:
            points.append(_point(known.first(size), wanted, queries, note))
            advance(f"{size:,} donors")
    largest = points[-1]
    restart = max(point["donors"] for point in points if point["donors"] <= max(RESTART, sizes[0]))
    return {
        "benchmark": "lookup",
        **{name: largest[name] for name in ("donors", "p50_ms", "p99_ms", "recall_at_1")},
        "bytes_per_donor": largest["bytes_per_donor"],
        "embed_ms": _ms(float(np.median(embed_s))),
        "restart_donors": restart,
        "restart_s": next(point["build_s"] for point in points if point["donors"] == restart),
        **added,
        "points": points,
        "extrapolated": _extrapolated(points),
        "targets": targets,
        "tokens": round(float(np.mean([len(ids) for ids in texts])), 1),
        "model": model,
        "machine": machine(),
        "versions": versions(),
    }


def _packaged(model: str, progress: bool) -> tuple[Sources, Embedder]:
    # Both import transformers, which takes seconds.
    from semshare.engine.loading import choose_dtype, load_model  # noqa: PLC0415

    with status_line(f"loading {model} and texts…", enabled=progress):
        loaded, tokenizer = load_model(model, device="cpu", dtype=choose_dtype("auto", "cpu"))
        embedder = ModelEmbedder(loaded.get_input_embeddings().weight)
        return packaged_sources(tokenizer), embedder


def _one_by_one(donors: Donors) -> Record:
    """Seconds of adding, with whatever is merged and built meanwhile."""
    indexes = Indexes(donors.vectors.shape[1])
    seconds = []
    for name, ids, vector in zip(donors.names, donors.ids, donors.vectors, strict=True):
        started = time.perf_counter()
        indexes.add(name, ids, vector)
        seconds.append(time.perf_counter() - started)
    return {
        "add_p50_ms": _ms(float(np.median(seconds))),
        "add_p99_ms": _ms(float(np.percentile(seconds, 99))),
        "add_max_ms": _ms(max(seconds)),
    }


def _point(
    donors: Donors, targets: Sequence[Target], queries: Sequence[Vector], note: Step
) -> Record:
    size = len(donors.names)
    note(f"indexing {size:,} donors")
    before = resident_bytes()
    indexes = Indexes(donors.vectors.shape[1])
    build_s, _ = _timed(lambda: indexes.add_many(donors))
    grown = resident_bytes() - before
    note(f"checking among {size:,} donors")
    found = checked(indexes, donors, targets, queries)
    taken: dict[str, list[list[float]]] = defaultdict(list)  # [pass][target]
    for number in range(_PASSES):
        note(f"among {size:,} donors, pass {number + 1} of {_PASSES}")
        passed = [_look_up(indexes, t.ids, q) for t, q in zip(targets, queries, strict=True)]
        for part, seconds in zip(PARTS, zip(*passed, strict=True), strict=True):
            taken[part].append(list(seconds))
        taken["whole"].append([sum(parts) for parts in passed])
    # Of a target's passes the median, so that what else the machine does at times is left out.
    per_target = {part: np.median(seconds, axis=0) for part, seconds in taken.items()}
    by_part = {
        "ids": sum(ids.nbytes for ids in donors.ids),
        "prefixes": indexes.prefixes.nbytes,
        "spans": indexes.spans.nbytes,
        "prompts": indexes.prompts.nbytes,
    }
    return {
        "donors": size,
        "p50_ms": _ms(float(np.median(per_target["whole"]))),
        "p99_ms": _ms(float(np.percentile(per_target["whole"], 99))),
        **found,
        **{f"{part}_p50_ms": _ms(float(np.median(per_target[part]))) for part in PARTS},
        **{f"{part}_p99_ms": _ms(float(np.percentile(per_target[part], 99))) for part in PARTS},
        "bytes_per_donor": round(sum(by_part.values()) / size),
        "bytes_by_part": {part: round(total / size) for part, total in by_part.items()},
        "resident_bytes_per_donor": round(grown / size),
        "build_s": round(build_s, 3),
    }


def _look_up(indexes: Indexes, ids: Ids, vector: Vector) -> tuple[float, float, float]:
    """Seconds of each part."""
    started = time.perf_counter()
    prefix = indexes.prefix(ids)
    after_prefixes = time.perf_counter()
    indexes.identical(ids, prefix[1] if prefix else 0)
    after_spans = time.perf_counter()
    indexes.similar(vector)
    return (
        after_prefixes - started,
        after_spans - after_prefixes,
        time.perf_counter() - after_spans,
    )


def _extrapolated(points: Sequence[Record]) -> Record | None:
    """What a million donors would take, by laws fitted to the points; None of too few.

    Codes are compared with all, so the prompt index is linear in donors beyond its flat limit; the
    others halve what is left at every step, so they are linear in its logarithm. The sum of the
    parts' p99 is no less than the p99 of their sum is likely to be.
    """
    coded = [point for point in points if point["donors"] > FLAT_LIMIT]
    if len(coded) < 2:
        return None
    record: Record = {"donors": EXTRAPOLATED}
    for rank in ("p50_ms", "p99_ms"):
        parts = {
            "prompts": _fitted(coded, f"prompts_{rank}", float),
            **{part: _fitted(points, f"{part}_{rank}", np.log) for part in ("prefixes", "spans")},
        }
        record[rank] = round(sum(parts.values()), 3)
        record |= {f"{part}_{rank}": round(value, 3) for part, value in parts.items()}
    record["bytes_per_donor"] = points[-1]["bytes_per_donor"]
    record["law"] = "prompts: a + b·n, n > flat limit; prefixes and spans: a + b·log n"
    return record


def _fitted(points: Sequence[Record], name: str, law: Callable[[float], Any]) -> float:
    """Least squares through the points, at a million."""
    slope, start = np.polyfit(
        [float(law(p["donors"])) for p in points], [p[name] for p in points], 1
    )
    return float(start + slope * float(law(EXTRAPOLATED)))


def _timed(call: Callable[[], object]) -> tuple[float, object]:
    started = time.perf_counter()
    result = call()
    return time.perf_counter() - started, result


def _ms(seconds: float) -> float:
    return round(1e3 * seconds, 4)
