"""Tiny random models of every supported family and a byte-level tokenizer: no weights needed."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    SmolLM3Config,
    SmolLM3ForCausalLM,
)

from semshare import EngineConfig, SemShare

CONTEXT = 4096
SPECIAL_TOKENS = ["<eos>", "<bos>", "<|user|>", "<|assistant|>"]
VOCAB_SIZE = 256 + len(SPECIAL_TOKENS)
EOS_ID = 0

_COMMON: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": CONTEXT,
    "eos_token_id": EOS_ID,
    "bos_token_id": 1,
    "pad_token_id": EOS_ID,
    "initializer_range": 0.2,  # far from uniform, so that a wrong key shows in the logits
}

_LLAMA3_SCALING = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 256,
}
_YARN_SCALING = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 1024,
}

FAMILIES: dict[str, tuple[type[PreTrainedModel], type, dict[str, Any]]] = {
    "llama": (LlamaForCausalLM, LlamaConfig, {}),
    "llama3-rope": (LlamaForCausalLM, LlamaConfig, {"rope_parameters": _LLAMA3_SCALING}),
    "yarn": (LlamaForCausalLM, LlamaConfig, {"rope_parameters": _YARN_SCALING}),
    "mistral-window": (MistralForCausalLM, MistralConfig, {"sliding_window": 37}),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, {}),
    "qwen2-window": (
        Qwen2ForCausalLM,
        Qwen2Config,
        {"use_sliding_window": True, "sliding_window": 29, "max_window_layers": 2},
    ),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config, {}),
    "phi3-partial": (
        Phi3ForCausalLM,
        Phi3Config,
        {
            "hidden_size": 96,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "partial_rotary_factor": 0.5,
            },
        },
    ),
    "gemma3": (
        Gemma3ForCausalLM,
        Gemma3TextConfig,
        {
            "query_pre_attn_scalar": 16,
            "sliding_window": 24,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
        },
    ),
    "smollm3-nope": (SmolLM3ForCausalLM, SmolLM3Config, {"no_rope_layers": [1, 1, 0, 1]}),
}


def tiny_model(family: str = "llama", *, seed: int = 0, layers: int = 4) -> PreTrainedModel:
    """A random float32 model of `family`, in evaluation mode; some families want four layers."""
    model_class, config_class, overrides = FAMILIES[family]
    torch.manual_seed(seed)
    model = model_class(config_class(**(_COMMON | {"num_hidden_layers": layers} | overrides)))
    with torch.no_grad():
        # Norm weights and biases start as ones and zeros; random ones catch a skipped module.
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                base = 0.0 if "gemma3" in family or "bias" in name else 1.0
                parameter.copy_(base + 0.1 * torch.randn_like(parameter))
    return model.eval()


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, plus four special tokens and a chat template."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: index for index, token in enumerate([*SPECIAL_TOKENS, *alphabet])}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(SPECIAL_TOKENS)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<eos>", bos_token="<bos>", pad_token="<eos>"
    )
    tokenizer.chat_template = (
        "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}\n"
        "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    return tokenizer


def tiny_engine(
    family: str = "llama",
    *,
    seed: int = 0,
    layers: int = 4,
    now: Callable[[], float] = time.time,
    **config: Any,
) -> SemShare:
    """A ready engine over a tiny random model; `config` are `EngineConfig` fields."""
    config.setdefault("kv_budget_bytes", 32 << 20)
    config.setdefault("history_tokens", 8)
    model = tiny_model(family, seed=seed, layers=layers)
    return SemShare(model, tiny_tokenizer(), config=EngineConfig(**config), name="tiny", now=now)
