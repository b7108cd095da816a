"""The bundled SmolLM2 on real text, against transformers and against itself."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from semshare import EngineConfig, ReusePolicy, SemShare
from semshare.engine.loading import load_model
from semshare.evaluation.datasets import paraphrase_pairs
from semshare.types import Ids

pytestmark = pytest.mark.real_model

OFF = ReusePolicy(mode="off")
PREFIX = ReusePolicy(mode="prefix")
QUESTION = "\n\nWhat do the authors propose, and how well does it work? Answer in a sentence:"

Loaded = tuple[SemShare, PreTrainedModel]


def load(dtype: torch.dtype) -> Loaded:
    model, tokenizer = load_model("smollm2", device="cpu", dtype=dtype)
    return SemShare(model, tokenizer, config=EngineConfig(kv_budget_bytes=1 << 30)), model


@pytest.fixture(scope="module")
def bfloat16() -> Iterator[Loaded]:
    return load(torch.bfloat16)


@pytest.fixture(scope="module")
def float32() -> Iterator[Loaded]:
    return load(torch.float32)


def real_ids(engine: SemShare, n: int, skip: int = 0) -> Ids:
    """`n` tokens of papers' prose, after the first `skip`."""
    text = "\n\n".join(pair.source for pair in paraphrase_pairs())
    ids = engine.encode(text)
    assert len(ids) >= skip + n
    return ids[skip : skip + n]


@torch.inference_mode()
def transformers_logits(model: PreTrainedModel, ids: Ids) -> torch.Tensor:
    batch = torch.from_numpy(ids.astype(np.int64))[None]
    return model(input_ids=batch, use_cache=False).logits[0].float()


def test_bfloat16_agrees_with_transformers_on_2000_tokens(bfloat16: Loaded) -> None:
    engine, model = bfloat16
    agreeing = 0
    for part in range(2):
        ids = real_ids(engine, 1_001, skip=1_001 * part)
        # One token at first, the other thousand in one go.
        ours = engine.score(ids[:1], ids[1:], policy=OFF).logits.argmax(-1)
        theirs = transformers_logits(model, ids)[:-1].argmax(-1)
        agreeing += int((ours == theirs).sum())
    assert agreeing / 2_000 >= 0.995


def test_float32_equals_transformers_on_500_tokens(float32: Loaded) -> None:
    engine, model = float32
    ids = real_ids(engine, 501)
    ours = engine.score(ids[:200], ids[200:], policy=OFF).logits
    theirs = transformers_logits(model, ids)[199:-1]
    assert float((ours - theirs).abs().max()) <= 1e-3


def test_a_prefix_hit_is_exact_in_float32(float32: Loaded) -> None:
    engine, _ = float32
    ids = real_ids(engine, 560)
    prompt, continuation = ids[:500], ids[500:]
    other_end = np.concatenate((ids[:400], real_ids(engine, 60, skip=900)))
    engine.remember(other_end)
    hit = engine.score(prompt, continuation, policy=PREFIX)
    assert hit.provenance.counts["prefix"] == 400
    full = engine.score(prompt, continuation, policy=OFF)
    assert float((hit.logits - full.logits).abs().max()) <= 1e-3


def test_the_same_text_elsewhere_and_a_rewrite_are_near_the_full_prefill(float32: Loaded) -> None:
    engine, _ = float32
    pair = paraphrase_pairs()[0]
    donor = engine.remember("Summarize the following passage.\n\n" + pair.source + QUESTION)
    moved = "Here is a part of a scientific article:\n\n" + pair.source + QUESTION
    rewritten = "Here is a part of a scientific article:\n\n" + pair.rewrite + QUESTION
    default = ReusePolicy()
    for prompt, kl, fraction, source in (
        (moved, 0.05, 0.15, "span"),
        (rewritten, 0.6, 0.7, "fuzzy"),
    ):
        provenance = engine.score(prompt, "x", policy=default).provenance
        assert provenance.fallback is None
        assert provenance.donors == (donor.id,)
        assert provenance.compute_fraction < fraction
        assert provenance.counts[source] > 50
        divergence = engine.verify(prompt, policy=default, max_tokens=24)
        assert divergence.kl < kl
        worse = engine.verify(prompt, policy=replace(default, selection="none"), max_tokens=24)
        assert worse.kl < 2 * kl
