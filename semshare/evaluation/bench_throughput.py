"""What a stream of requests gains: shared prefixes, shared decode, semantic prefill.

semshare bench throughput --json
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from semshare import SemShare
from semshare.errors import InvalidRequest
from semshare.evaluation import prompts
from semshare.evaluation.bounds import Record
from semshare.evaluation.environment import setting
from semshare.evaluation.material import Material, Messages
from semshare.evaluation.progress import Step, load_engine, progress_bar
from semshare.evaluation.texts import Split
from semshare.evaluation.throughput_batches import EXACT, measure_batches
from semshare.evaluation.throughput_decode import (
    DecodeSpeed,
    measure_decode,
    product_rate,
    step_flops,
)
from semshare.evaluation.throughput_semantic import measure_semantic, rewritten_examples
from semshare.types import Ids

PARTS = ("transformers", "decode", "decode-8k", "semantic")


def run_throughput(
    *,
    parts: Sequence[str] = PARTS,
    requests: int = 32,
    limit: int | None = None,
    tokens: int = 2000,
    long_tokens: int = 7900,
    answer_tokens: int = 64,
    donors: int = 4,
    repeats: int = 9,
    model: str = "smollm2",
    dtype: str = "auto",
    progress: bool = True,
    split: Split = "test",
    engine: SemShare | None = None,
) -> Record:
    """Measure any of four parts, each with its own check of correctness before its speed.

    `transformers`: requests with a common prefix, end to end, against `generate` in batches.
    `decode`, `decode-8k`: decode steps over a shared prefix against a copy of it for each row;
    of the longer one also how near the step comes to the machine's rate of matrix products.
    `semantic`: requests over rewritten donors, prefilled together with reuse and in full.

    Args:
        parts: of `PARTS`.
        requests: with a common prefix, and rows of a decode step.
        limit: requests that transformers answers, in whole batches; all if None.
        tokens, long_tokens: of the common prefix.
        answer_tokens: of each answer, which no end token ends.
        donors: rewritten passages, with four requests about each.
        repeats: timed decode steps of each side, and matrix products.
        model: name, folder or hub id, where `engine` is None.
        dtype: of that model.
        progress: a bar on standard error.
        split: of papers and rewritten passages.
        engine: a ready engine.

    Returns:
        The record described in `docs/evaluation.md`, JSON-ready.

    Raises:
        BenchmarkRefused: a part's two sides disagree by more than rounding, a request fell back,
            or PGR misses its bound.
        InvalidRequest: an unknown part, or a number below 1.

    """
    unknown = [part for part in parts if part not in PARTS]
    if unknown or not parts:
        asked = repr(unknown[0]) if unknown else "no part"
        raise InvalidRequest(f"{asked} can't be measured: choose from {', '.join(PARTS)}")
    for name, value in (
        ("requests", requests),
        ("limit", limit),
        ("answer_tokens", answer_tokens),
        ("donors", donors),
        ("repeats", repeats),
    ):
        if value is not None and value < 1:
            raise InvalidRequest(f"{name} is {value}: it must be at least 1")
    engine = engine or load_engine(model, dtype=dtype, progress=progress)
    record: Record = {"benchmark": "throughput", "parts": list(parts), "split": split}
    measure: dict[str, Callable[[Step], Record]] = {
        "transformers": partial(
            _transformers, engine, tokens, requests, answer_tokens, limit or requests, split
        ),
        "decode": partial(_decode, engine, tokens, requests, repeats, split),
        "decode-8k": partial(_decode_8k, engine, long_tokens, requests, repeats, split),
        "semantic": partial(_semantic, engine, donors, split),
    }
    with progress_bar("throughput", len(parts), enabled=progress) as (note, advance):
        for part in parts:
            record |= measure[part](note)
            advance(part)
    return record | setting(engine, EXACT)


def _transformers(
    engine: SemShare,
    tokens: int,
    requests: int,
    answer_tokens: int,
    limit: int,
    split: Split,
    note: Step,
) -> Record:
    asked = _questions_about_one_paper(engine, tokens, requests, split)
    found = measure_batches(engine, asked, answer_tokens, limit, note)
    return {
        "vs_transformers": round(found.transformers_s / found.ours_s, 3),
        "together_s": round(found.ours_s, 3),
        "transformers_s": round(found.transformers_s, 3),
        "requests": found.requests,
        "tokens": round(found.prompt_tokens / found.requests),
        "answer_tokens": answer_tokens,
        "tokens_per_s": round(found.requests * answer_tokens / found.ours_s, 2),
        "transformers_batch": found.batch,
        "transformers_measured": found.measured,
        "transformers_probe_s": {str(size): round(s, 4) for size, s in found.probe_s.items()},
        "greedy_agreement": round(found.agreement, 5),
    }


def _decode(
    engine: SemShare, tokens: int, batch: int, repeats: int, split: Split, note: Step
) -> Record:
    found = _decode_speed(engine, tokens, batch, repeats, split, note)
    return _decode_fields(found, "")


def _decode_8k(
    engine: SemShare, tokens: int, batch: int, repeats: int, split: Split, note: Step
) -> Record:
    found = _decode_speed(engine, tokens, batch, repeats, split, note)
    note("matrix products")
    rate = product_rate(engine.model.dtype, repeats)
    least_s = step_flops(engine.model, batch, found.keys) / rate
    return {
        **_decode_fields(found, "_8k"),
        "roofline_ratio_8k": round(found.shared_s / least_s, 3),
        "roofline_s_8k": round(least_s, 6),
        "product_flops_per_s": round(rate),
    }


def _decode_speed(
    engine: SemShare, tokens: int, batch: int, repeats: int, split: Split, note: Step
) -> DecodeSpeed:
    note(f"decode steps over {tokens} tokens")
    (prefix,) = _questions_about_one_paper(engine, tokens, 1, split)
    return measure_decode(engine, prefix, batch, repeats)


def _decode_fields(found: DecodeSpeed, suffix: str) -> Record:
    return {
        f"vs_unshared_decode{suffix}": round(found.copies_s / found.shared_s, 3),
        f"shared_step_s{suffix}": round(found.shared_s, 6),
        f"unshared_step_s{suffix}": round(found.copies_s, 6),
        f"decode_keys{suffix}": found.keys,
        f"decode_batch{suffix}": found.batch,
        f"decode_kl{suffix}": found.kl,
    }


def _semantic(engine: SemShare, donors: int, split: Split, note: Step) -> Record:
    found = measure_semantic(engine, rewritten_examples(donors, split), note)
    return {
        "semantic_prefill_saving": round(found.full_s / found.semantic_s, 3),
        "semantic_full_s": round(found.full_s, 3),
        "semantic_s": round(found.semantic_s, 3),
        "semantic_requests": found.requests,
        "semantic_tokens": found.tokens,
        "compute_fraction": round(found.compute_fraction, 5),
        "pgr": round(found.pgr, 4),
    }


def _questions_about_one_paper(
    engine: SemShare, tokens: int, requests: int, split: Split
) -> list[Ids]:
    """Prompts that begin with the same paper and end with a question of their own."""
    material = Material(lambda chat: len(engine.encode(chat)), tokens, split=split)

    def ask(text: str, number: int) -> Messages:
        question = f"In one sentence, what does sentence {number} of the article say?"
        return prompts.user(prompts.OPENING, text, question)

    ((_, text),) = material.papers(material.room_in(ask("", requests)), 1)
    return [engine.encode(ask(text, number)) for number in range(1, requests + 1)]
