"""Donors that lie below the pool: answering from disk or Redis against computing the prompt.

semshare bench storage --json
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from semshare import SemShare, StorageConfig
from semshare.engine.loading import choose_dtype, load_model
from semshare.errors import InvalidRequest
from semshare.evaluation import prompts
from semshare.evaluation.bounds import Record
from semshare.evaluation.environment import setting
from semshare.evaluation.material import Material
from semshare.evaluation.measure import FULL
from semshare.evaluation.paper_scenarios import DONOR_ASPECT, instruction_first, question_last
from semshare.evaluation.progress import progress_bar, status_line
from semshare.evaluation.redis_server import redis_server
from semshare.evaluation.restart import restart_s
from semshare.evaluation.storage_tier import SEMANTIC, Reference, Targets, TierBench
from semshare.evaluation.texts import Split

EXCERPT = 0.3  # of the donor's text, in the target that wants only a part


def run_storage(
    *,
    tokens: int = 5000,
    repeats: int = 5,
    restart_donors: int = 10_000,
    model: str = "smollm2",
    dtype: str = "auto",
    split: Split = "test",
    redis_url: str | None = None,
    progress: bool = True,
) -> Record:
    """Measure the time to a first token with the donor's KV in a tier, and of a restart.

    For each tier an engine remembers a donor and is closed; another one, which finds it there,
    answers. Before each request nothing of the donor is in the pool.

    Args:
        tokens: of the donor.
        repeats: timed requests of each kind, in turn with a full prefill.
        restart_donors: made matchable again from a store on disk; 0: that is not measured.
        model: bundled name, local folder or hub id.
        dtype: of weights and KV.
        split: of the papers.
        redis_url: of an empty server; by default one is started here, if its program is found.
        progress: a bar on standard error.

    Returns:
        The record described in `docs/evaluation.md`, JSON-ready. What was measured over Redis is
        None where there was no server.

    Raises:
        BenchmarkRefused: a loaded prefix is not the full prefill's, reuse of a loaded donor is not
            that of one in the pool, or a donor was not loaded.
        InvalidRequest: a number that makes no sense, or no paper of that length.

    """
    if tokens < 200 or repeats < 1 or restart_donors < 0:
        raise InvalidRequest(
            f"tokens {tokens}, repeats {repeats}, restart_donors {restart_donors}: at least 200, 1 "
            "and 0"
        )
    with status_line(f"loading {model}…", enabled=progress):
        parts = load_model(model, device="cpu", dtype=choose_dtype(dtype, "cpu"))
    with progress_bar("storage", 4, enabled=progress) as (note, advance):
        note("texts")
        plain = SemShare(*parts, name=model)
        targets = _targets(plain, tokens, split)
        record: Record = {"benchmark": "storage", "tokens": len(plain.encode(targets.donor))}
        reference = _reference(plain, targets)
        advance("texts")
        with tempfile.TemporaryDirectory() as folder:
            note("disk")
            at = StorageConfig(disk_path=folder, eviction="lru", load_timeout_s=60.0)
            measured = TierBench(parts, model, at, targets, repeats).measure(reference)
            record |= {
                "compute_s": measured["full_s"],
                **_named("disk", measured),
                "bytes_read_fraction": measured["bytes_read_fraction"],
                "wanted_fraction": measured["wanted_fraction"],
                "write_s": measured["write_s"],
                "kl": measured["kl"],
                "top1": measured["top1"],
                "max_logit_difference": measured["max_logit_difference"],
            }
        advance("disk")
        note("redis")
        with _server(redis_url) as url:
            over = None
            if url is not None:
                at = StorageConfig(redis_url=url, load_timeout_s=60.0)
                over = TierBench(parts, model, at, targets, repeats).measure(reference)
        record |= _named("redis", over)
        advance("redis")
        note("restart")
        record["restart_donors"] = restart_donors
        record["restart_s"] = restart_s(restart_donors) if restart_donors else None
        advance("restart")
    return {**record, "repeats": repeats, "split": split, **setting(plain, SEMANTIC)}


def _reference(engine: SemShare, targets: Targets) -> Reference:
    same, moved = (
        engine.score(one, targets.gold, policy=FULL) for one in (targets.same, targets.moved)
    )
    engine.remember(targets.donor)
    resident = engine.score(targets.moved, targets.gold, policy=SEMANTIC)
    engine.forget_all()
    return Reference(same, moved, resident)


@contextmanager
def _server(url: str | None) -> Iterator[str | None]:
    if url is not None:
        yield url
    else:
        with redis_server() as started:
            yield started


def _named(tier: str, measured: Record | None) -> Record:
    """The fields of one tier, with its name before them."""
    fields = ("s", "speedup", "moved_s", "moved_speedup", "resident_s", "load_s")
    return {f"{tier}_{field}": None if measured is None else measured[field] for field in fields}


def _targets(engine: SemShare, tokens: int, split: Split) -> Targets:
    material = Material(lambda messages: len(engine.encode(messages)), tokens, split=split)
    ((paper, text),) = material.papers(material.room_in(question_last("", "challenge")), 1)
    sentences = text.split(". ")
    first = len(sentences) // 2
    part = ". ".join(sentences[first : first + round(EXCERPT * len(sentences))])
    opened = prompts.user(prompts.OPENING, text, prompts.QUESTION[DONOR_ASPECT])
    return Targets(
        donor=opened,
        same=question_last(text, "outcome"),
        moved=instruction_first(text, "outcome"),
        excerpt=instruction_first(part, "outcome"),
        gold=paper.gold["outcome"],
    )
