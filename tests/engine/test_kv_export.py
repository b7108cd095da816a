"""KV that is read from a prefilled prompt is what the prompt's answer reads."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny import FAMILIES, tiny_engine
from torch import Tensor
from transformers import DynamicCache

from semshare import InvalidPolicy, InvalidRequest, ReusePolicy, SemShare
from semshare.engine.kv_export import PrefilledPrompt

TEXT = "A donor's text, long enough that its tokens are worth reusing somewhere else. " * 3
SHIFTED = f"Another instruction comes first. {TEXT} And what of it?"
SPAN = ReusePolicy(mode="span", recompute=0.0)
OFF = ReusePolicy(mode="off")
LIMIT = 1e-4  # max abs difference of float32 logits and KV


@torch.inference_mode()
def transformers_cache(engine: SemShare, prompt: str) -> DynamicCache:
    ids = torch.from_numpy(engine.encode(prompt).astype(np.int64))[None]
    cache = DynamicCache()  # without windows: all tokens of all layers
    engine.model.hf_model(input_ids=ids, past_key_values=cache)
    return cache


def cache_of(prefilled: PrefilledPrompt, layers: int) -> DynamicCache:
    """What `prefilled` holds, but for the last token."""
    cache = DynamicCache()
    for index in range(layers):
        layer = prefilled.layer(index)
        key, value = (part[:-1].transpose(0, 1)[None] for part in (layer.key, layer.value))
        cache.update(key, value, index)
    return cache


@torch.inference_mode()
def next_logits(engine: SemShare, prefilled: PrefilledPrompt, tokens: list[int]) -> Tensor:
    """`[n, vocab]` that transformers gives each of `tokens` over the exported KV."""
    cache = cache_of(prefilled, engine.model.n_layers)
    ids = torch.tensor([[int(prefilled.ids[-1]), *tokens[:-1]]])
    return engine.model.hf_model(input_ids=ids, past_key_values=cache).logits[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_an_exact_prompt_is_what_transformers_caches(family: str) -> None:
    engine = tiny_engine(family)
    expected = transformers_cache(engine, TEXT)
    with engine.prefill(TEXT, policy=OFF) as prefilled:
        assert prefilled.ids.tolist() == engine.encode(TEXT).tolist()
        assert prefilled.provenance.exact
        for index in range(engine.model.n_layers):
            layer = prefilled.layer(index)
            assert layer.key.shape == (len(TEXT), engine.model.n_kv_heads, engine.model.head_dim)
            cached = expected.layers[index]
            torch.testing.assert_close(
                layer.key, cached.keys[0].transpose(0, 1), atol=LIMIT, rtol=0
            )
            torch.testing.assert_close(
                layer.value, cached.values[0].transpose(0, 1), atol=LIMIT, rtol=0
            )


@pytest.mark.parametrize("donor_format", ["full", "int8"])
def test_a_mixed_prompt_is_what_its_request_attends_to(donor_format: str) -> None:
    engine = tiny_engine(donor_format=donor_format)
    engine.remember(TEXT)
    tokens = [7, 90, 33]
    expected = engine.score(SHIFTED, tokens, policy=SPAN)
    assert expected.provenance.counts["span"] > len(TEXT) // 2
    with engine.prefill(SHIFTED, policy=SPAN) as prefilled:
        assert prefilled.provenance.counts == expected.provenance.counts
        mixed = next_logits(engine, prefilled, tokens)
    with engine.prefill(SHIFTED, policy=OFF) as prefilled:
        in_full = next_logits(engine, prefilled, tokens)
    torch.testing.assert_close(mixed, expected.logits, atol=LIMIT, rtol=0)
    assert (in_full - expected.logits).abs().max() > 100 * LIMIT


def test_released_slots_come_back() -> None:
    engine = tiny_engine()
    free = engine.pool.free_pages
    prefilled = engine.prefill(TEXT, policy=OFF)
    assert engine.pool.free_pages < free
    prefilled.release()
    prefilled.release()
    assert engine.pool.free_pages == free
    with pytest.raises(InvalidRequest, match="was released: prefill it again"):
        prefilled.layer(0)


def test_held_kv_outlives_its_donor() -> None:
    engine = tiny_engine()
    donor = engine.remember(TEXT)
    with engine.prefill(SHIFTED, policy=SPAN) as prefilled:
        before = prefilled.layer(2)
        engine.forget_all()
        for number in range(40):  # whatever is free is written to
            engine.generate(f"{number} is a prompt that takes slots", max_tokens=1, policy=OFF)
        after = prefilled.layer(2)
    assert donor.id in prefilled.provenance.donors
    assert torch.equal(before.key, after.key)
    assert torch.equal(before.value, after.value)


def test_a_prefilled_prompt_is_remembered_as_an_answered_one() -> None:
    engine = tiny_engine()
    policy = ReusePolicy(mode="span", remember=True)
    with engine.prefill(TEXT, policy=policy):
        assert [donor.tokens for donor in engine.donors()] == [len(TEXT)]


def test_kv_that_is_cut_to_a_share_is_not_held() -> None:
    engine = tiny_engine()
    free = engine.pool.free_pages
    with pytest.raises(InvalidPolicy, match=r"retention is 0\.5.*must be 1\.0"):
        engine.prefill(TEXT, policy=ReusePolicy(retention=0.5))
    assert engine.pool.free_pages == free
