"""What tells whether two processes run the same model, so that one can use the other's KV."""

from __future__ import annotations

import hashlib
import json

import torch

from semshare.engine.adapter import ModelAdapter

# Numbers of each weight tensor that are hashed. Training changes nearly all numbers of a tensor, so
# that a sample tells two models apart. On SmolLM2-135M it takes 0.01 s; all numbers took 1 to 17 s
# on a busy machine.
SAMPLED = 1024


def fingerprint(adapter: ModelAdapter) -> str:
    """32 hexadecimal digits, the same wherever the same weights run in the same dtype.

    A BLAKE2b hash of what shapes the computation (architecture, sizes, RoPE, windows) and, for each
    weight tensor, of its name, shape, dtype and `SAMPLED` of its numbers. Neither the device nor
    the name under which the model was loaded is in it.
    """
    digest = hashlib.blake2b(
        json.dumps(_settings(adapter), sort_keys=True).encode(), digest_size=16
    )
    for name, weight in sorted(adapter.hf_model.named_parameters()):
        digest.update(f"\0{name} {tuple(weight.shape)} {weight.dtype}\0".encode())
        flat = weight.detach().flatten()
        # An odd step does not stay in one column of a matrix whose width is even.
        sample = flat[:: (len(flat) // SAMPLED) | 1].cpu().contiguous()
        digest.update(sample.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _settings(adapter: ModelAdapter) -> dict[str, object]:
    """What changes keys and values, besides the weights."""
    config = adapter.config
    activation = getattr(config, "hidden_act", None) or getattr(config, "hidden_activation", None)
    return {
        "architecture": type(adapter.hf_model).__name__,
        "layers": adapter.n_layers,
        "heads": adapter.n_heads,
        "kv_heads": adapter.n_kv_heads,
        "head_dim": adapter.head_dim,
        "scale": adapter.scale,
        "windows": adapter.windows,
        "rope_kinds": adapter.rope_kinds,
        "rope": config.rope_parameters,
        "norm_eps": config.rms_norm_eps,
        "activation": activation,
    }
