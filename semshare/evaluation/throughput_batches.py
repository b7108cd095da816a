"""Requests that share a prefix, answered together: the engine against transformers' batches."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from semshare import Answer, BenchmarkRefused, ReusePolicy, SemShare
from semshare.evaluation.forced import without_end
from semshare.evaluation.progress import Step
from semshare.types import Ids, Prompt

EXACT = ReusePolicy(mode="prefix")
BATCHES = (8, 4, 16, 32)  # sizes that transformers is tried with
# A probe asks for this share of the prompt's tokens, the last ones, and of the answer's.
_PROBE_SHARE = 8
# Least share of greedy tokens that agree, of those up to an answer's first difference: beyond it
# the two continue different texts. Other batch shapes change 1.5 % of the most likely tokens in
# 16 bits (docs/decisions.md), and in float32 only ties.
LEAST_AGREEMENT = {torch.float32: 0.99, torch.bfloat16: 0.95, torch.float16: 0.95}


@dataclass(frozen=True, slots=True)
class BatchSpeed:
    """End-to-end seconds, prefill included, for the same number of tokens."""

    requests: int
    prompt_tokens: int  # of all prompts
    ours_s: float
    transformers_s: float  # scaled by batches, where not all were measured
    batch: int  # transformers' size
    measured: int  # requests that transformers answered
    probe_s: dict[int, float]  # seconds a request by batch size
    agreement: float


def measure_batches(
    engine: SemShare, prompts: Sequence[Ids], answer_tokens: int, limit: int, note: Step
) -> BatchSpeed:
    """Answer all prompts at once, then some of them with transformers' `generate`.

    Args:
        engine: whose model both sides run, in the same dtype.
        prompts: `[n]` ids each.
        answer_tokens: of each answer, greedy, which no end token ends.
        limit: requests that transformers answers at least, in whole batches; the time of all is
            taken to be proportional to the batches.
        note: says what is going on.

    Raises:
        BenchmarkRefused: the two sides' greedy tokens differ more than rounding explains.

    """
    note("our requests, all at once")
    answer_together(engine, prompts[:2], 2, EXACT, "bench-warm-up")
    engine.forget_all("bench-warm-up")
    started = time.perf_counter()
    answers = answer_together(engine, prompts, answer_tokens, EXACT, "bench")
    ours_s = time.perf_counter() - started
    engine.forget_all("bench")
    probe_s = _probe(engine, prompts, answer_tokens, note)
    batch = min(probe_s, key=lambda size: probe_s[size])
    batches = [prompts[start : start + batch] for start in range(0, len(prompts), batch)]
    measured = batches[: max(1, -(-limit // batch))]
    tokens: list[list[int]] = []
    started = time.perf_counter()
    for number, several in enumerate(measured, 1):
        note(f"transformers, batch {number} of {len(measured)}")
        tokens += generate_batch(engine, several, answer_tokens)
    theirs_s = time.perf_counter() - started
    agreement = _agreement([answer.token_ids for answer in answers[: len(tokens)]], tokens)
    least = LEAST_AGREEMENT[engine.model.dtype]
    if agreement < least:
        raise BenchmarkRefused(
            f"{agreement:.3f} of the greedy tokens are those of transformers, at least {least} "
            "should be. No speed is reported."
        )
    return BatchSpeed(
        requests=len(prompts),
        prompt_tokens=sum(map(len, prompts)),
        ours_s=ours_s,
        transformers_s=theirs_s * len(batches) / len(measured),
        batch=batch,
        measured=len(tokens),
        probe_s=probe_s,
        agreement=agreement,
    )


def answer_together(
    engine: SemShare,
    prompts: Sequence[Prompt],
    answer_tokens: int,
    policy: ReusePolicy,
    namespace: str,
) -> list[Answer]:
    """Greedy answers to prompts that come at the same time, a thread each, in their order."""
    ask = partial(
        engine.generate,
        max_tokens=answer_tokens,
        policy=policy,
        namespace=namespace,
        logit_bias=without_end(engine),
    )
    with ThreadPoolExecutor(len(prompts)) as threads:
        return list(threads.map(ask, prompts))


@torch.inference_mode()
def generate_batch(engine: SemShare, prompts: Sequence[Ids], answer_tokens: int) -> list[list[int]]:
    """Greedy tokens of transformers' `generate`: padded on the left, its dynamic cache."""
    model: Any = engine.model.hf_model
    longest = max(map(len, prompts))
    ids = torch.zeros(len(prompts), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = torch.from_numpy(prompt)
        mask[row, longest - len(prompt) :] = 1
    out = model.generate(
        input_ids=ids.to(model.device),
        attention_mask=mask.to(model.device),
        max_new_tokens=answer_tokens,
        min_new_tokens=answer_tokens,
        do_sample=False,
        pad_token_id=0,
    )
    answers: list[list[int]] = out[:, longest:].tolist()
    return answers


def _probe(
    engine: SemShare, prompts: Sequence[Ids], answer_tokens: int, note: Step
) -> dict[int, float]:
    """Seconds a request by batch size, over the ends of some prompts."""
    ends = [prompt[-max(len(prompt) // _PROBE_SHARE, 1) :] for prompt in prompts]
    found = {}
    for size in dict.fromkeys(min(size, len(prompts)) for size in BATCHES):
        note(f"transformers, in batches of {size}?")
        started = time.perf_counter()
        generate_batch(engine, ends[:size], max(answer_tokens // _PROBE_SHARE, 1))
        found[size] = (time.perf_counter() - started) / size
    return found


def _agreement(ours: Sequence[Sequence[int]], theirs: Sequence[Sequence[int]]) -> float:
    """Share of equal tokens, of each pair of answers those up to its first difference."""
    same = compared = 0
    for pair in zip(ours, theirs, strict=True):
        equal = [a == b for a, b in zip(*pair, strict=True)]
        first = equal.index(False) if False in equal else len(equal)
        same += first
        compared += min(first + 1, len(equal))
    return same / compared
