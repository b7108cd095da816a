"""Every supported family against transformers' own logits, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from properties import examples
from running import logits_in_chunks, random_ids, transformers_logits
from tiny import FAMILIES, VOCAB_SIZE, tiny_model
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
)

from semshare import UnsupportedModel
from semshare.engine.adapter import ModelAdapter

LIMIT = 1e-4  # max abs difference of float32 logits
LENGTH = 150  # more than any family's window, and than one attention block

IDS = random_ids(LENGTH, VOCAB_SIZE)
_references: dict[str, tuple[ModelAdapter, torch.Tensor]] = {}


def reference(family: str) -> tuple[ModelAdapter, torch.Tensor]:
    """A family's adapter and transformers' logits of `IDS`, made once."""
    if family not in _references:
        model = tiny_model(family)
        _references[family] = ModelAdapter(model), transformers_logits(model, IDS)
    return _references[family]


@pytest.mark.parametrize("family", FAMILIES)
def test_full_prefill_has_the_logits_of_transformers(family: str) -> None:
    adapter, expected = reference(family)
    assert float(expected.std()) > 0.3  # a model that says nothing would hide differences
    got = logits_in_chunks(adapter, IDS, [])
    assert got.dtype == torch.float32
    assert float((got - expected).abs().max()) <= LIMIT


def test_a_full_prefill_in_bfloat16_has_the_bits_of_transformers() -> None:
    """Its attention is one call, as theirs: other batch shapes alone would round otherwise."""
    model = tiny_model("llama").to(torch.bfloat16)
    got = logits_in_chunks(ModelAdapter(model), IDS, [])
    assert torch.equal(got, transformers_logits(model, IDS))


@pytest.mark.parametrize("family", FAMILIES)
@examples(6)
@given(cuts=st.lists(st.integers(1, LENGTH - 1), min_size=1, max_size=6))
def test_prefill_split_anywhere_has_the_logits_of_transformers(
    family: str, cuts: list[int]
) -> None:
    adapter, expected = reference(family)
    got = logits_in_chunks(adapter, IDS, cuts)
    assert float((got - expected).abs().max()) <= LIMIT


@pytest.mark.parametrize("family", FAMILIES)
def test_token_by_token_has_the_logits_of_transformers(family: str) -> None:
    adapter, expected = reference(family)
    got = logits_in_chunks(adapter, IDS[:60], range(60))
    assert float((got - expected[:60]).abs().max()) <= LIMIT


def llama(**changes: Any) -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "initializer_range": 0.2,
    }
    return LlamaForCausalLM(LlamaConfig(**(sizes | changes))).eval()


@pytest.mark.parametrize(
    "changes",
    [
        {"attention_bias": True, "mlp_bias": True},
        {"tie_word_embeddings": True},
        {"head_dim": 24},
        {"num_key_value_heads": 4},
        {"num_key_value_heads": 1},
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}},
    ],
    ids=str,
)
def test_llama_variants_have_the_logits_of_transformers(changes: dict[str, Any]) -> None:
    model = llama(**changes)
    ids = random_ids(40, 64)
    got = logits_in_chunks(ModelAdapter(model), ids, [7, 31])
    assert float((got - transformers_logits(model, ids)).abs().max()) <= LIMIT


def test_gemma3_softcaps_its_logits() -> None:
    model = tiny_model("gemma3")
    model.config.final_logit_softcapping = 3.0
    expected = transformers_logits(model, IDS[:20])
    assert float(expected.abs().max()) <= 3.0
    got = logits_in_chunks(ModelAdapter(model), IDS[:20], [])
    assert float((got - expected).abs().max()) <= LIMIT


def test_another_family_is_refused_by_name_with_what_is_missing() -> None:
    model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=16))
    with pytest.raises(UnsupportedModel) as caught:
        ModelAdapter(model)
    message = str(caught.value)
    assert "GPT2LMHeadModel" in message
    assert "model.layers" in message
    assert "model.rotary_emb" in message
    assert "LlamaForCausalLM" in message  # what to use instead


def test_a_family_that_only_looks_like_llama_is_refused_too() -> None:
    config = Gemma2Config(
        vocab_size=16,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=4,
    )
    with pytest.raises(UnsupportedModel, match=r"Gemma2ForCausalLM .* no wiring has been checked"):
        ModelAdapter(Gemma2ForCausalLM(config))


@pytest.mark.parametrize(
    ("setting", "value"), [("attn_logit_softcapping", 50.0), ("use_bidirectional_attention", True)]
)
def test_attention_of_another_kind_is_refused(setting: str, value: object) -> None:
    model = tiny_model("gemma3")
    setattr(model.config, setting, value)
    with pytest.raises(UnsupportedModel, match=f"{setting} is {value}"):
        ModelAdapter(model)


def test_dynamic_ntk_is_refused() -> None:
    model = llama(rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0})
    with pytest.raises(UnsupportedModel, match="rope_type 'dynamic'"):
        ModelAdapter(model)


def test_longrope_is_refused() -> None:
    config = Phi3Config(
        vocab_size=16,
        hidden_size=32,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        original_max_position_embeddings=32,
        pad_token_id=0,
        rope_parameters={
            "rope_type": "longrope",
            "rope_theta": 1e4,
            "short_factor": [1.0] * 4,
            "long_factor": [2.0] * 4,
        },
    )
    with pytest.raises(UnsupportedModel, match="rope_type 'longrope'"):
        ModelAdapter(Phi3ForCausalLM(config))
