"""KV memory of several requests over one donor, against a cache of its own for each of them.

semshare bench memory --requests 8 --json
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Literal

import numpy as np

from semshare import Answer, BenchmarkRefused, EngineConfig, ReusePolicy, SemShare
from semshare.engine.adapter import ModelAdapter
from semshare.engine.loading import choose_dtype, load_model
from semshare.errors import InvalidRequest
from semshare.evaluation import prompts
from semshare.evaluation.bounds import Record
from semshare.evaluation.environment import machine, peak_resident_bytes, versions
from semshare.evaluation.forced import without_end
from semshare.evaluation.material import Material, Messages
from semshare.evaluation.measure import FULL, compare
from semshare.evaluation.paper_scenarios import DONOR_ASPECT, instruction_first
from semshare.evaluation.progress import status_line
from semshare.evaluation.scenarios import scenario_named
from semshare.evaluation.texts import ASPECTS, Split

SideName = Literal["separate", "shared"]
BOUNDS = scenario_named("shifted").bounds  # the same reuse, by several requests at once
SHIFTED = ReusePolicy(mode="semantic")
_SIDES: tuple[SideName, ...] = ("separate", "shared")
_CHILD = """
import json, sys
from semshare.errors import SemShareError
from semshare.evaluation.bench_memory import Work, measure_in_new_engine
try:
    record = measure_in_new_engine(Work(**json.loads(sys.argv[1])), sys.argv[2])
except SemShareError as error:
    record = {"refused": str(error)}
print(json.dumps(record))
"""


@dataclass(frozen=True, slots=True)
class Work:
    """What both sides do."""

    model: str
    dtype: str
    tokens: int  # of a prompt
    requests: int
    answer_tokens: int
    split: Split


@dataclass(frozen=True, slots=True)
class Prompts:
    """One paper, remembered after one instruction and asked about after others."""

    donor: Messages
    targets: tuple[Messages, ...]
    gold: tuple[str, ...]  # the answer to each target


def run_memory(
    *,
    requests: int = 8,
    tokens: int = 4000,
    answer_tokens: int = 64,
    model: str = "smollm2",
    dtype: str = "auto",
    progress: bool = True,
    split: Split = "test",
) -> Record:
    """Measure the KV of requests that are answered at the same time, in pages and in memory.

    Args:
        requests: over one paper, each after an instruction of its own.
        tokens: of a prompt.
        answer_tokens: of each answer, which no end token ends.
        model: bundled name, local folder or hub id.
        dtype: of weights and KV.
        progress: a line on standard error.
        split: of the papers.

    Returns:
        The record described in `docs/evaluation.md`, JSON-ready.

    Raises:
        BenchmarkRefused: a request fell back, the answers miss the bounds of the scenario
            `shifted`, or not all requests were being answered at the same time.
        InvalidRequest: a number below 1, or no paper of that length.

    """
    for name, value in (
        ("requests", requests),
        ("tokens", tokens),
        ("answer_tokens", answer_tokens),
    ):
        if value < 1:
            raise InvalidRequest(f"{name} is {value}: it must be at least 1")
    work = Work(model, dtype, tokens, requests, answer_tokens, split)
    found = {}
    for side in _SIDES:
        with status_line(f"{requests} requests, KV {side}…", enabled=progress):
            found[side] = _in_new_process(work, side)
    separate, shared = (found[side] for side in _SIDES)
    return {
        "benchmark": "memory",
        "separate_bytes": separate["kv_bytes"],
        "shared_bytes": shared["kv_bytes"],
        "saving": round(1 - shared["kv_bytes"] / separate["kv_bytes"], 4),
        "peak_rss_separate": separate["peak_rss"],
        "peak_rss_shared": shared["peak_rss"],
        "loaded_rss": shared["loaded_rss"],
        **{name: shared[name] for name in ("tokens", "kl", "top1", "hit_rate", "dtype")},
        "requests": requests,
        "answer_tokens": answer_tokens,
        "split": split,
        "model": model,
        "policy": asdict(SHIFTED),
        "machine": machine(),
        "versions": versions(),
    }


def _in_new_process(work: Work, side: SideName) -> Record:
    """Peak memory is a process's own, so each side has one."""
    program = [sys.executable, "-c", _CHILD, json.dumps(asdict(work)), side]
    done = subprocess.run(program, stdout=subprocess.PIPE, check=True, text=True)  # noqa: S603
    record: Record = json.loads(done.stdout.splitlines()[-1])
    if "refused" in record:
        raise BenchmarkRefused(f"{side} KV: {record['refused']}")
    return record


def measure_in_new_engine(work: Work, side: SideName) -> Record:
    """One side, from loading the model on; what `run_memory` starts a process for."""
    dtype = choose_dtype(work.dtype, "cpu")
    hf_model, tokenizer = load_model(work.model, device="cpu", dtype=dtype)
    adapter = ModelAdapter(hf_model)
    slot = 2 * adapter.n_layers * adapter.n_kv_heads * adapter.head_dim * dtype.itemsize
    # Pages are touched as they fill, so that room for all separate caches costs nothing.
    slots = (work.requests + 2) * (work.tokens + work.answer_tokens)
    config = EngineConfig(
        kv_budget_bytes=slots * slot,
        # A prompt in a few steps, so that the last answer begins before the first one ends. No
        # more in a step than a whole prompt, so that both sides compute with as much memory.
        prefill_rows=max(work.tokens // 2, 1),
        max_answers=work.requests,
    )
    return measure_side(SemShare(hf_model, tokenizer, config=config, name=work.model), work, side)


def measure_side(engine: SemShare, work: Work, side: SideName) -> Record:
    """Answer all requests at once and look at the pool and at the process; then at quality."""
    asked = _prompts(engine, work)
    loaded = peak_resident_bytes()
    if side == "shared":
        engine.remember(asked.donor)
    policy = SHIFTED if side == "shared" else FULL
    answers, kv_bytes = _answer_at_once(engine, asked.targets, work.answer_tokens, policy)
    peak = peak_resident_bytes()  # before the scores, which need memory of their own
    found = {
        "kv_bytes": kv_bytes,
        "peak_rss": peak,
        "loaded_rss": loaded,
        "dtype": engine.dtype,
        "tokens": round(fmean(answer.prompt_tokens for answer in answers)),
    }
    return found | (_quality(engine, asked, answers) if side == "shared" else {})


def _answer_at_once(
    engine: SemShare, targets: tuple[Messages, ...], answer_tokens: int, policy: ReusePolicy
) -> tuple[list[Answer], int]:
    """All answers, and the pool's bytes in use while all of them were going on."""
    bias = without_end(engine)
    streams = [
        engine.stream(target, max_tokens=answer_tokens, policy=policy, logit_bias=bias)
        for target in targets
    ]
    # Whoever waits for a piece runs the steps of all, so the first go on while the last begin.
    pieces = [[next(stream)] for stream in streams]
    kv_bytes = engine.pool.used_bytes
    running = len(engine.session.scheduler.active)
    if running < len(targets):
        raise BenchmarkRefused(
            f"only {running} of {len(targets)} requests were being answered when the last began: "
            f"ask for more than {answer_tokens} answer tokens"
        )
    for stream, got in zip(streams, pieces, strict=True):
        got.extend(stream)
    return [answer for got in pieces if (answer := got[-1].answer) is not None], kv_bytes


def _quality(engine: SemShare, asked: Prompts, answers: list[Answer]) -> Record:
    """Distance from full prefill over the gold summaries; refuses what `shifted` would refuse."""
    found, same_plan = [], []
    for target, gold, answer in zip(asked.targets, asked.gold, answers, strict=True):
        full, reused = (engine.score(target, gold, policy=policy) for policy in (FULL, SHIFTED))
        found.append(compare(full, reused))
        same_plan.append(np.array_equal(reused.provenance.source, answer.provenance.source))
    weights = [one.tokens for one in found]
    record: Record = {
        "kl": round(float(np.average([one.kl for one in found], weights=weights)), 6),
        "top1": round(float(np.average([one.top1 for one in found], weights=weights)), 5),
        "pgr": None,  # not bounded here
        "hit_rate": round(
            sum(one.provenance.reused for one in answers)
            / sum(one.prompt_tokens for one in answers),
            5,
        ),
        "fallbacks": sum(one.provenance.fallback is not None for one in answers),
        "plans_stable": all(same_plan),
    }
    missed = BOUNDS.missed(record)
    if missed:
        raise BenchmarkRefused(f"{'; '.join(missed)}. No memory is reported.")
    return record


def _prompts(engine: SemShare, work: Work) -> Prompts:
    """Targets differ in their first words, so that none of them is another's prefix."""
    material = Material(lambda chat: len(engine.encode(chat)), work.tokens, split=work.split)
    aspects = [ASPECTS[index % len(ASPECTS)] for index in range(work.requests)]

    def target(number: int, document: str) -> Messages:
        opening = f"You are reader {number + 1} of {work.requests}. {prompts.OPENING}"
        return prompts.user(opening, document, prompts.QUESTION[aspects[number]])

    room = min(material.room_in(target(number, "")) for number in range(work.requests))
    ((paper, text),) = material.papers(room, 1)
    return Prompts(
        instruction_first(text, DONOR_ASPECT),
        tuple(target(number, text) for number in range(work.requests)),
        tuple(paper.gold[aspect] for aspect in aspects),
    )
