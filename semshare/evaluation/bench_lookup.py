"""How long it takes to find donors among very many, and what the indexes take.

semshare bench lookup --json
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

import numpy as np

from semshare.donors.embedders import Embedder, ModelEmbedder, Vector
from semshare.errors import InvalidRequest
from semshare.evaluation.bounds import Record
from semshare.evaluation.environment import machine, resident_bytes, versions
from semshare.evaluation.lookup_extrapolation import EXTRAPOLATED, extrapolate
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

T = TypeVar("T")

SIZES = (1_000, 10_000, 30_000, 100_000)
RESTART = 10_000  # donors to be matchable after a restart

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
    with progress_bar("lookup", len(sizes) + 3, enabled=progress) as (note, advance):
        note(f"{donors:,} donors")
        texts = make_donors(sources, donors)
        names = [f"donor-{i:x}" for i in range(donors)]
        vectors = np.stack([embedder.embed(ids) for ids in texts])
        known = Donors(names, texts, vectors)
        # All that is planted is in the smallest point, too.
        wanted = make_targets(sources, texts[: sizes[0]], targets)
        embedded = [_timed(partial(embedder.embed, one.ids)) for one in wanted]
        queries = [vector for _, vector in embedded]
        advance(f"{donors:,} donors")
        points: list[Record] = []
        for size in reversed(sizes):  # memory grows with the first one only
            indexes = Indexes(embedder.dim)
            built = _built(indexes, known.first(size), note)
            point = built | _point(indexes, known.first(size), wanted, queries, note)
            points.insert(0, point)
            advance("")
        note(f"codes of {EXTRAPOLATED:,}")
        extrapolated = extrapolate(points, known.vectors, queries)
        advance("")
        note("donors that come one by one")
        added = _one_by_one(known.first(min(RESTART, donors)))
        advance("")
    resident = [point.pop("resident_bytes_per_donor") for point in points]
    largest = points[-1]
    restart = max(point["donors"] for point in points if point["donors"] <= max(RESTART, sizes[0]))
    return {
        "benchmark": "lookup",
        **{name: largest[name] for name in ("donors", "p50_ms", "p99_ms", "recall_at_1")},
        "bytes_per_donor": largest["bytes_per_donor"],
        "resident_bytes_per_donor": resident[-1],
        "embed_ms": _ms(float(np.median([seconds for seconds, _ in embedded]))),
        "index_donors": restart,
        "index_s": next(point["build_s"] for point in points if point["donors"] == restart),
        **added,
        "points": points,
        "extrapolated": extrapolated,
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


def _built(indexes: Indexes, donors: Donors, note: Step) -> Record:
    size = len(donors.names)
    note(f"indexing {size:,} donors")
    before = resident_bytes()
    build_s, _ = _timed(lambda: indexes.add_many(donors))
    resident = resident_bytes() - before
    by_part = {
        "ids": sum(ids.nbytes for ids in donors.ids),
        "prefixes": indexes.prefixes.nbytes,
        "spans": indexes.spans.nbytes,
        "prompts": indexes.prompts.nbytes,
    }
    return {
        "donors": size,
        "build_s": round(build_s, 3),
        "bytes_per_donor": round(sum(by_part.values()) / size),
        "bytes_by_part": {part: round(total / size) for part, total in by_part.items()},
        "resident_bytes_per_donor": round(resident / size),
    }


def _point(
    indexes: Indexes,
    donors: Donors,
    targets: Sequence[Target],
    queries: Sequence[Vector],
    note: Step,
) -> Record:
    size = len(donors.names)
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
    return {
        "p50_ms": _ms(float(np.median(per_target["whole"]))),
        "p99_ms": _ms(float(np.percentile(per_target["whole"], 99))),
        **found,
        **{f"{part}_p50_ms": _ms(float(np.median(per_target[part]))) for part in PARTS},
        **{f"{part}_p99_ms": _ms(float(np.percentile(per_target[part], 99))) for part in PARTS},
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


def _timed(call: Callable[[], T]) -> tuple[float, T]:
    started = time.perf_counter()
    result = call()
    return time.perf_counter() - started, result


def _ms(seconds: float) -> float:
    return round(1e3 * seconds, 4)
