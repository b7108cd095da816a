"""KV on its way out of an engine, or into one: what it must be to fit, and one layer of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class KVFormat:
    """What KV must be for a model to use it.

    fingerprint: of the model that computes it, see `semshare.engine.fingerprint`.
    dtype:       `float32`, `bfloat16` or `float16`.
    max_tokens:  the longest prompt; the answer needs one token of the context.
    """

    fingerprint: str
    dtype: str
    n_layers: int
    n_kv_heads: int
    head_dim: int
    max_tokens: int


@dataclass(frozen=True, slots=True, eq=False)
class LayerKV:
    """One layer's keys and values of a prompt of n tokens, `[n, kv_heads, d]` each.

    A token's numbers lie together, as in the paged caches of serving engines (vLLM, SGLang): any
    range of tokens is one range of bytes. Keys carry RoPE at the positions 0 … n − 1.
    """

    key: Tensor
    value: Tensor

    def to_bytes(self) -> tuple[bytes, bytes]:
        """Keys and values as they lie in memory: row by row, each number little-endian."""
        return _bytes_of(self.key), _bytes_of(self.value)

    @classmethod
    def from_bytes(
        cls, key: bytes, value: bytes, *, dtype: str, shape: tuple[int, int, int]
    ) -> Self:
        """The layer that `to_bytes` made these of.

        Args:
            key, value: as many bytes as `shape` and `dtype` take.
            dtype: as `KVFormat` names it.
            shape: `(n, kv_heads, d)`.

        """
        of = getattr(torch, dtype)
        # Copied into memory that may be written, which torch wants.
        return cls(
            *(torch.frombuffer(bytearray(one), dtype=of).view(shape) for one in (key, value))
        )


def _bytes_of(tensor: Tensor) -> bytes:
    return tensor.contiguous().cpu().view(torch.uint8).numpy().tobytes()
