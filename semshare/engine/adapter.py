"""A transformers causal LM, run layer by layer on any rows at any positions.

The model's own modules (embedding, norms, projections, rotary embedding, MLP, head) do the
arithmetic; nothing is copied or patched. What differs between families is how a layer's modules
are wired, and that is all the two hooks below hold.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from semshare.errors import UnsupportedModel
from semshare_kernels import AttentionShape, Rotation


@dataclass(frozen=True, slots=True)
class Wiring:
    """Where a family departs from Llama's layer."""

    fused_qkv: bool = False  # one projection for q, k and v (Phi-3)
    qk_norm: bool = False  # per-head norms on q and k before RoPE (Qwen3, Gemma 3)
    sandwich_norms: bool = False  # norms after attention and MLP too (Gemma 3)


FAMILIES: dict[str, Wiring] = {
    "LlamaForCausalLM": Wiring(),
    "MistralForCausalLM": Wiring(),
    "Qwen2ForCausalLM": Wiring(),
    "Qwen3ForCausalLM": Wiring(qk_norm=True),
    "SmolLM3ForCausalLM": Wiring(),
    "Phi3ForCausalLM": Wiring(fused_qkv=True),
    "Gemma3ForCausalLM": Wiring(qk_norm=True, sandwich_norms=True),
}

# RoPE variants whose angles are position × a constant, so that rotations add up. Dynamic NTK and
# LongRoPE change the constants with the sequence's length: a key can't be moved exactly.
ADDITIVE_ROPE = ("default", "linear", "llama3", "yarn")

NO_ROPE = "none"  # the rope kind of layers without position embedding (SmolLM3)

# What projections run in: torch's own products, or `semshare_kernels.few_rows_linears`. Only
# projections do, since every function of torch takes some microseconds more in that.
Linears = AbstractContextManager[object]
AS_TRANSFORMERS: Linears = nullcontext()

Projection = tuple[Tensor, Tensor | None]  # weight and bias


class ModelAdapter:
    """One model's layers, each callable on `[n, hidden]` rows.

    Args:
        hf_model: a transformers causal LM of a family in `FAMILIES`, in evaluation mode.

    Raises:
        UnsupportedModel: for another class or a RoPE variant that is not additive.

    """

    def __init__(self, hf_model: nn.Module) -> None:
        self.hf_model = cast(Any, hf_model)  # its modules' attributes are not typed
        self._wiring = _check_family(hf_model)
        self.config = self.hf_model.config
        decoder = self.hf_model.model
        self._decoder = decoder
        self.layers = decoder.layers
        attention = self.layers[0].self_attn
        self.n_layers = len(self.layers)
        self.n_heads = int(self.config.num_attention_heads)
        self.n_kv_heads = int(self.config.num_key_value_heads)
        self.head_dim = int(attention.head_dim)
        self.scale = float(attention.scaling)
        self.vocab_size = int(self.config.vocab_size)
        self.max_context = int(self.config.max_position_embeddings)
        self.embedding_weight: Tensor = decoder.embed_tokens.weight
        self.dtype: torch.dtype = self.embedding_weight.dtype
        self.device: torch.device = self.embedding_weight.device
        self.windows = tuple(self._layer_window(index) for index in range(self.n_layers))
        self.rope_kinds = tuple(self._layer_rope(index) for index in range(self.n_layers))
        self._softcap = getattr(self.config, "final_logit_softcapping", None)
        _check_rope(self.config)
        _check_attention(self.config)

    def _layer_window(self, index: int) -> int | None:
        layer_types = getattr(self.config, "layer_types", None)
        if layer_types is not None and layer_types[index] != "sliding_attention":
            return None
        return getattr(self.config, "sliding_window", None)

    def _layer_rope(self, index: int) -> str:
        if not getattr(self.layers[index].self_attn, "use_rope", True):
            return NO_ROPE
        if hasattr(self._decoder.rotary_emb, "inv_freq"):
            return "shared"
        return str(self.config.layer_types[index])

    def embed(self, ids: Tensor) -> Tensor:
        """Token embeddings `[n, hidden]` of `ids` `[n]`."""
        return self._decoder.embed_tokens(ids)  # type: ignore[no-any-return]

    def rope(self, positions: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """cos and sin `[*positions, r]` of each rope kind, in the model's dtype.

        With attention scaling in them, unlike `shift_rotation`.

        Args:
            positions: `[n]`, or `[sets, n]` for several sets of positions.

        """
        tables = {}
        probe = self.embedding_weight[:1]  # rotary_emb reads only its dtype and device
        for kind in set(self.rope_kinds) - {NO_ROPE}:
            extra = () if kind == "shared" else (kind,)
            cos, sin = self._decoder.rotary_emb(probe, positions.view(1, -1), *extra)
            tables[kind] = tuple(part[0].view(*positions.shape, -1) for part in (cos, sin))
        return tables

    @property
    def attention_shape(self) -> AttentionShape:
        """What the kernels need to know of the model."""
        return AttentionShape(self.n_heads, self.n_kv_heads, self.head_dim, self.dtype, self.device)

    def shift_rotation(self, shifts: Tensor) -> dict[str, Rotation]:
        """For each rope kind, what moves stored keys by `shifts` `[n]` positions."""
        tables = {}
        for kind in set(self.rope_kinds) - {NO_ROPE}:
            name = "inv_freq" if kind == "shared" else f"{kind}_inv_freq"
            inv_freq = getattr(self._decoder.rotary_emb, name).to(self.device, torch.float32)
            angles = shifts[:, None].to(self.device, torch.float32) * inv_freq
            tables[kind] = Rotation(angles.cos(), angles.sin())
        return tables

    def attention_inputs(
        self, index: int, hidden: Tensor, linears: Linears = AS_TRANSFORMERS
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Query `[n, heads, d]`, key and value `[n, kv_heads, d]` of a layer, before RoPE."""
        layer = self.layers[index]
        attention = layer.self_attn
        normed = layer.input_layernorm(hidden)
        with linears:
            if self._wiring.fused_qkv:
                widths = [w * self.head_dim for w in (self.n_heads, *[self.n_kv_heads] * 2)]
                flat = attention.qkv_proj(normed).split(widths, dim=-1)
            else:
                flat = tuple(
                    project(normed)
                    for project in (attention.q_proj, attention.k_proj, attention.v_proj)
                )
        q, k, v = (part.unflatten(-1, (-1, self.head_dim)) for part in flat)
        if self._wiring.qk_norm:
            q, k = attention.q_norm(q), attention.k_norm(k)
        return q, k, v

    def kv_projections(self, index: int) -> tuple[Projection, Projection]:
        """Weights `[kv_heads × d, hidden]` and biases of a layer's keys, and of its values."""
        attention = self.layers[index].self_attn
        if not self._wiring.fused_qkv:
            key, value = attention.k_proj, attention.v_proj
            return (key.weight, key.bias), (value.weight, value.bias)
        width = self.n_kv_heads * self.head_dim
        weights = attention.qkv_proj.weight[-2 * width :].split(width)
        bias = attention.qkv_proj.bias
        biases = (None, None) if bias is None else bias[-2 * width :].split(width)
        return (weights[0], biases[0]), (weights[1], biases[1])

    def layer_output(
        self, index: int, hidden: Tensor, attended: Tensor, linears: Linears = AS_TRANSFORMERS
    ) -> Tensor:
        """The layer's output `[n, hidden]`, from its input and `attended` `[n, heads, d]`."""
        layer = self.layers[index]
        flat = attended.reshape(len(hidden), -1)
        with linears:
            projected = layer.self_attn.o_proj(flat)
        if self._wiring.sandwich_norms:
            hidden = hidden + layer.post_attention_layernorm(projected)
            normed = layer.pre_feedforward_layernorm(hidden)
        else:
            hidden = hidden + projected
            normed = layer.post_attention_layernorm(hidden)
        with linears:
            mlp = layer.mlp(normed)
        if self._wiring.sandwich_norms:
            mlp = layer.post_feedforward_layernorm(mlp)
        return hidden + mlp  # type: ignore[no-any-return]

    def logits(self, hidden: Tensor, linears: Linears = AS_TRANSFORMERS) -> Tensor:
        """Next-token logits `[n, vocab]` float32 of final hidden rows `[n, hidden]`."""
        normed = self._decoder.norm(hidden)
        with linears:
            logits = self.hf_model.lm_head(normed).float()
        if self._softcap is not None:
            logits = torch.tanh(logits / self._softcap) * self._softcap
        return logits  # type: ignore[no-any-return]


def _check_family(hf_model: nn.Module) -> Wiring:
    name = type(hf_model).__name__
    if name in FAMILIES:
        return FAMILIES[name]
    decoder = getattr(hf_model, "model", None)
    layers = getattr(decoder, "layers", None)
    missing = [
        path
        for path, present in (
            ("model.embed_tokens", hasattr(decoder, "embed_tokens")),
            ("model.layers", layers is not None),
            ("model.rotary_emb", hasattr(decoder, "rotary_emb")),
            ("model.norm", hasattr(decoder, "norm")),
            ("lm_head", hasattr(hf_model, "lm_head")),
        )
        if not present
    ]
    if layers is not None and len(layers):
        missing += [
            f"model.layers[].{path}"
            for path in ("self_attn", "mlp", "input_layernorm", "post_attention_layernorm")
            if not hasattr(layers[0], path)
        ]
    why = (
        f"it has no {', '.join(missing)}"
        if missing
        else "it has the modules of a Llama-like decoder, but no wiring has been checked for it"
    )
    raise UnsupportedModel(
        f"{name} can't be run layer by layer: {why}. Supported: {', '.join(FAMILIES)}"
    )


def _check_rope(config: Any) -> None:
    parameters = getattr(config, "rope_parameters", None) or {}
    variants = [parameters] if "rope_type" in parameters else list(parameters.values())
    for variant in variants:
        kind = variant.get("rope_type", "default") if variant else "default"
        if kind not in ADDITIVE_ROPE:
            raise UnsupportedModel(
                f"rope_type {kind!r} scales angles with the sequence's length, so cached keys "
                f"can't be moved exactly. Supported: {', '.join(ADDITIVE_ROPE)}"
            )


def _check_attention(config: Any) -> None:
    for setting in ("attn_logit_softcapping", "use_bidirectional_attention"):
        if value := getattr(config, setting, None):
            raise UnsupportedModel(
                f"the model's {setting} is {value!r}, which mixed attention does not apply: "
                "only causal attention without a cap on its scores is supported"
            )
