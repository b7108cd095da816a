"""Donors that lie below the pool: answering from disk or Redis against computing the prompt.

semshare bench storage --json
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

from semshare import (
    Answer,
    BenchmarkRefused,
    EngineConfig,
    ReusePolicy,
    Score,
    SemShare,
    StorageConfig,
)
from semshare.engine.loading import choose_dtype, load_model
from semshare.errors import InvalidRequest
from semshare.evaluation import prompts
from semshare.evaluation.bounds import Record
from semshare.evaluation.environment import setting
from semshare.evaluation.local_server import local_server
from semshare.evaluation.material import Material, Messages
from semshare.evaluation.measure import FULL, compare
from semshare.evaluation.paper_scenarios import DONOR_ASPECT, instruction_first, question_last
from semshare.evaluation.progress import progress_bar, status_line
from semshare.evaluation.restart import restart_s
from semshare.evaluation.texts import Split

EXACT_LIMIT = 1e-3  # max abs difference of logits between a loaded prefix and a full prefill
EXCERPT = 0.3  # of the donor's text, in the target that wants only a part
_POOL_BYTES = 1 << 30
_SEMANTIC = ReusePolicy(mode="semantic")
_PREFIX = ReusePolicy(mode="prefix")


@dataclass(frozen=True, slots=True)
class _Targets:
    """Prompts over one donor."""

    donor: Messages
    same: Messages  # the donor's own prompt, with another question: an exact prefix
    moved: Messages  # its text after another instruction
    excerpt: Messages  # a part of its text after another instruction
    gold: str


@dataclass(frozen=True, slots=True)
class Reference:
    """Scores without any tier."""

    same: Score  # after a full prefill
    moved: Score
    moved_resident: Score  # over the donor in the pool


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
            measured = _Tier(parts, model, at, targets, repeats, Path(folder)).measure(reference)
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
                over = _Tier(parts, model, at, targets, repeats).measure(reference)
        record |= _named("redis", over)
        advance("redis")
        note("restart")
        record["restart_donors"] = restart_donors
        record["restart_s"] = restart_s(restart_donors) if restart_donors else None
        advance("restart")
    return {**record, "repeats": repeats, "split": split, **setting(plain, _SEMANTIC)}


def _reference(engine: SemShare, targets: _Targets) -> Reference:
    same, moved = (
        engine.score(one, targets.gold, policy=FULL) for one in (targets.same, targets.moved)
    )
    engine.remember(targets.donor)
    resident = engine.score(targets.moved, targets.gold, policy=_SEMANTIC)
    engine.forget_all()
    return Reference(same, moved, resident)


@contextmanager
def _server(url: str | None) -> Iterator[str | None]:
    if url is not None:
        yield url
    else:
        with local_server() as started:
            yield started


def _named(tier: str, measured: Record | None) -> Record:
    """The fields of one tier, with its name before them."""
    fields = ("s", "speedup", "moved_s", "moved_speedup", "resident_s", "load_s")
    return {
        f"{tier}_{field}": None if measured is None else measured[f"tier_{field}"]
        for field in fields
    }


def _targets(engine: SemShare, tokens: int, split: Split) -> _Targets:
    material = Material(lambda messages: len(engine.encode(messages)), tokens, split=split)
    ((paper, text),) = material.papers(material.room_in(question_last("", "challenge")), 1)
    sentences = text.split(". ")
    first = len(sentences) // 2
    part = ". ".join(sentences[first : first + round(EXCERPT * len(sentences))])
    opened = prompts.user(prompts.OPENING, text, prompts.QUESTION[DONOR_ASPECT])
    return _Targets(
        donor=opened,
        same=question_last(text, "outcome"),
        moved=instruction_first(text, "outcome"),
        excerpt=instruction_first(part, "outcome"),
        gold=paper.gold["outcome"],
    )


class _Tier:
    """Measures one tier. Its engines share a model, one after the other."""

    def __init__(
        self,
        parts: tuple[torch.nn.Module, Any],
        name: str,
        storage: StorageConfig,
        targets: _Targets,
        repeats: int,
        folder: Path | None = None,
    ) -> None:
        self._parts = parts
        self._name = name
        self._config = EngineConfig(kv_budget_bytes=_POOL_BYTES, storage=storage)
        self._targets = targets
        self._repeats = repeats
        self._folder = folder

    def measure(self, reference: Reference) -> Record:
        """Times, and what was checked before they were taken."""
        with self._engine() as engine:
            n_bytes = engine.remember(self._targets.donor).bytes
            started = time.perf_counter()
            engine.flush()
            write_s = time.perf_counter() - started
        with self._engine() as engine:
            self._answer(engine, self._targets.same, _PREFIX)  # untimed: maps memory
            checked = self._check(engine, reference)
            full, same, moved, resident = [], [], [], []
            for _ in range(self._repeats):
                full.append(self._answer(engine, self._targets.same, FULL))
                same.append(self._answer(engine, self._targets.same, _PREFIX))
                moved.append(self._answer(engine, self._targets.moved, _SEMANTIC))
                resident.append(self._answer(engine, self._targets.moved, _SEMANTIC, leaves=False))
            full_s, tier_s, moved_s, resident_s = (
                median(answer.timings.ttft_s for answer in answers)
                for answers in (full, same, moved, resident)
            )
            return {
                "full_s": round(full_s, 4),
                "tier_s": round(tier_s, 4),
                "tier_speedup": round(full_s / tier_s, 2),
                "tier_moved_s": round(moved_s, 4),
                "tier_moved_speedup": round(full_s / moved_s, 2),
                "tier_resident_s": round(resident_s, 4),
                "tier_load_s": round(median(one.timings.load_s for one in same), 4),
                "write_s": round(write_s, 4),
                **checked,
                **self._part(engine, n_bytes),
            }

    def _engine(self) -> SemShare:
        return SemShare(*self._parts, config=self._config, name=self._name)

    def _answer(
        self, engine: SemShare, prompt: Messages, policy: ReusePolicy, *, leaves: bool = True
    ) -> Answer:
        """One token; `leaves`: with nothing in the pool, or in the system's cache of the disk."""
        if leaves:
            push_out(engine)
            if self._folder is not None:
                drop_page_cache(self._folder)
        answer = engine.generate(prompt, max_tokens=1, policy=policy)
        share = answer.provenance.reused / answer.prompt_tokens
        if policy.mode != "off" and share < 0.9:
            raise BenchmarkRefused(f"{share:.0%} of a prompt was reused: its donor was not loaded")
        return answer

    def _check(self, engine: SemShare, reference: Reference) -> Record:
        """Nothing is timed before what is loaded has been found to be what would be computed."""
        scores = []
        for prompt, policy in ((self._targets.same, _PREFIX), (self._targets.moved, _SEMANTIC)):
            push_out(engine)
            score = engine.score(prompt, self._targets.gold, policy=policy)
            if score.provenance.fallback is not None:
                raise BenchmarkRefused(f"a prompt was computed: {score.provenance.fallback}")
            scores.append(score)
        same, moved = scores
        differences = {
            "a loaded prefix and a full prefill": compare(reference.same, same).max_logit_diff,
            "a donor that was loaded and one that stayed in the pool": compare(
                reference.moved_resident, moved
            ).max_logit_diff,
        }
        for what, difference in differences.items():
            if not difference <= EXACT_LIMIT:
                raise BenchmarkRefused(
                    f"logits over {what} differ by {difference:.2g}, more than {EXACT_LIMIT}"
                )
        fidelity = compare(reference.moved, moved)
        return {
            "kl": round(fidelity.kl, 5),
            "top1": round(fidelity.top1, 4),
            "max_logit_difference": max(differences.values()),
        }

    def _part(self, engine: SemShare, n_bytes: int) -> Record:
        """What is read of a donor for a prompt that has a part of its text."""
        push_out(engine)
        before = _bytes_read(engine)
        answer = engine.generate(self._targets.excerpt, max_tokens=1, policy=_SEMANTIC)
        push_out(engine)
        tokens = len(engine.encode(self._targets.donor))
        return {
            "bytes_read_fraction": round((_bytes_read(engine) - before) / n_bytes, 4),
            "wanted_fraction": round(answer.provenance.reused / tokens, 4),
        }


def push_out(engine: SemShare) -> None:
    """Leave nothing in the pool that may leave it."""
    session = engine.session
    if session.storage is not None:
        session.storage.until_idle(60.0)
    engine.flush()
    with session.lock:
        engine.pool.release(engine.pool.allocate(engine.pool.n_slots))


def drop_page_cache(folder: Path) -> None:
    """Let the system forget what it has read of these files, as far as it does so when asked."""
    for path in folder.rglob("*"):
        if path.is_file():
            handle = os.open(path, os.O_RDONLY)
            try:
                os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(handle)


def _bytes_read(engine: SemShare) -> int:
    use = engine.pool_use().storage
    return 0 if use is None else sum(tier.counts["bytes_read"] for tier in use.tiers)
