"""One tier below the pool, measured: a donor in it, asked about again and again."""

from __future__ import annotations

import os
import time
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
from semshare.evaluation.bounds import Record
from semshare.evaluation.material import Messages
from semshare.evaluation.measure import FULL, compare

EXACT_LIMIT = 1e-3  # max abs difference of logits that should be the same
POOL_BYTES = 1 << 30
SEMANTIC = ReusePolicy(mode="semantic")
_PREFIX = ReusePolicy(mode="prefix")


@dataclass(frozen=True, slots=True)
class Targets:
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


class TierBench:
    """Measures one tier. Its engines share a model, one after the other.

    Args:
        parts: model and tokenizer.
        name: of the model.
        storage: names the tier.
        targets: prompts over one donor.
        repeats: timed requests of each kind.

    """

    def __init__(
        self,
        parts: tuple[torch.nn.Module, Any],
        name: str,
        storage: StorageConfig,
        targets: Targets,
        repeats: int,
    ) -> None:
        self._parts = parts
        self._name = name
        self._config = EngineConfig(kv_budget_bytes=POOL_BYTES, storage=storage)
        self._targets = targets
        self._repeats = repeats
        self._disk = None if storage.disk_path is None else Path(storage.disk_path)

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
                moved.append(self._answer(engine, self._targets.moved, SEMANTIC))
                resident.append(self._answer(engine, self._targets.moved, SEMANTIC, leaves=False))
            full_s, tier_s, moved_s, resident_s = (
                median(answer.timings.ttft_s for answer in answers)
                for answers in (full, same, moved, resident)
            )
            return {
                "full_s": round(full_s, 4),
                "s": round(tier_s, 4),
                "speedup": round(full_s / tier_s, 2),
                "moved_s": round(moved_s, 4),
                "moved_speedup": round(full_s / moved_s, 2),
                "resident_s": round(resident_s, 4),
                "load_s": round(median(one.timings.load_s for one in same), 4),
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
            _push_out(engine)
            if self._disk is not None:
                _drop_page_cache(self._disk)
        answer = engine.generate(prompt, max_tokens=1, policy=policy)
        share = answer.provenance.reused / answer.prompt_tokens
        if policy.mode != "off" and share < 0.9:
            raise BenchmarkRefused(f"{share:.0%} of a prompt was reused: its donor was not loaded")
        return answer

    def _check(self, engine: SemShare, reference: Reference) -> Record:
        """Nothing is timed before what is loaded has been found to be what would be computed."""
        scores = []
        for prompt, policy in ((self._targets.same, _PREFIX), (self._targets.moved, SEMANTIC)):
            _push_out(engine)
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
        _push_out(engine)
        before = _bytes_read(engine)
        answer = engine.generate(self._targets.excerpt, max_tokens=1, policy=SEMANTIC)
        _push_out(engine)
        tokens = len(engine.encode(self._targets.donor))
        return {
            "bytes_read_fraction": round((_bytes_read(engine) - before) / n_bytes, 4),
            "wanted_fraction": round(answer.provenance.reused / tokens, 4),
        }


def _push_out(engine: SemShare) -> None:
    """Leave nothing in the pool that may leave it."""
    session = engine.session
    if session.storage is not None:
        session.storage.until_idle(60.0)
    engine.flush()
    with session.lock:
        engine.pool.release(engine.pool.allocate(engine.pool.n_slots))


def _drop_page_cache(folder: Path) -> None:
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
