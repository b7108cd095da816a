"""What an engine's stored KV is, and the sizes that follow from it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from semshare.config import Compression, DonorFormat
from semshare.kv.codec import Int8Codec


@dataclass(frozen=True, slots=True)
class BlobFormat:
    """What an engine's stored KV is. Blobs of any other format are foreign to it.

    fingerprint:      of the model, see `semshare.engine.fingerprint`.
    rope:             the model's RoPE settings as `canonical_json` writes them.
    dtype:            the model's: `float32`, `bfloat16` or `float16`.
    coding:           numbers as computed, or `semshare.kv.codec.Int8Codec`'s bytes.
    compression:      of each chunk by itself.
    chunk_tokens:     tokens that are checked, and where compressed read, as one.
    layers_per_group: layers in a blob; the last group has what is left.
    """

    fingerprint: str
    rope: str
    dtype: str
    n_layers: int
    n_kv_heads: int
    head_dim: int
    coding: DonorFormat = "full"
    compression: Compression = "none"
    chunk_tokens: int = 64
    layers_per_group: int = 8

    @property
    def n_groups(self) -> int:
        """Blobs of a donor."""
        return -(-self.n_layers // self.layers_per_group)

    def layers(self, group: int) -> range:
        """The layers in a group."""
        first = group * self.layers_per_group
        return range(first, min(first + self.layers_per_group, self.n_layers))

    def chunks_for(self, positions: NDArray[np.integer]) -> list[int]:
        """The chunks that hold the tokens at these positions, ascending."""
        chunks: list[int] = np.unique(positions // self.chunk_tokens).tolist()
        return chunks

    @property
    def torch_dtype(self) -> torch.dtype:
        """What keys and values are computed in."""
        dtype: torch.dtype = getattr(torch, self.dtype)
        return dtype

    @property
    def codec(self) -> Int8Codec:
        """Of a donor that is coded in int8."""
        return Int8Codec(self.n_kv_heads, self.head_dim)

    @property
    def row_shape(self) -> tuple[int, ...]:
        """Of one token's keys, or values, in one layer, as they are stored."""
        if self.coding == "int8":
            return (self.codec.bytes_per_token,)
        return (self.n_kv_heads, self.head_dim)

    @property
    def row_dtype(self) -> torch.dtype:
        """Of what is stored."""
        return torch.uint8 if self.coding == "int8" else self.torch_dtype

    def token_bytes(self, group: int) -> int:
        """Of one token's keys and values in all layers of a group, before compression."""
        row_bytes = math.prod(self.row_shape) * self.row_dtype.itemsize
        return len(self.layers(group)) * 2 * row_bytes


def canonical_json(settings: Mapping[str, object]) -> str:
    """The same text for equal settings, whatever the order they were given in."""
    return json.dumps(settings, sort_keys=True, separators=(",", ":"))
