"""Donors as tiers keep them: random KV, its blobs and records."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from semshare.kv.tiers.blob import BlobHead, EncodedDonor, encode_donor, read_head
from semshare.kv.tiers.blob_format import BlobFormat
from semshare.kv.tiers.tier import DonorRecord
from semshare.types import Ids

FORMAT = BlobFormat(
    fingerprint="0123456789abcdef" * 2,
    rope='{"rope_theta":10000.0,"rope_type":"default"}',
    dtype="float32",
    n_layers=5,
    n_kv_heads=2,
    head_dim=8,
    layers_per_group=2,
)


def random_ids(n: int, seed: int = 0) -> Ids:
    return np.random.default_rng(seed).integers(0, 50_000, n, dtype=np.int32)


def random_kv(kv_format: BlobFormat, n: int, seed: int = 0) -> Tensor:
    """`[n, layers, 2, kv_heads, d]`."""
    shape = (n, kv_format.n_layers, 2, kv_format.n_kv_heads, kv_format.head_dim)
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(kv_format.torch_dtype)


def encoded(kv_format: BlobFormat, ids: Ids, kv: Tensor) -> EncodedDonor:
    return encode_donor(kv_format, ids, lambda layer: (kv[:, layer, 0], kv[:, layer, 1]))


def head_of(kv_format: BlobFormat, donor: EncodedDonor, group: int, ids: Ids) -> BlobHead:
    return read_head(kv_format, group, ids, bytes(donor.blobs[group][: donor.head_bytes]))


def read_chunks(
    kv_format: BlobFormat, blob: bytes, group: int, ids: Ids, chunks: Sequence[int], head: int
) -> Tensor:
    """What a reader does: the head first, then the ranges it says."""
    opened = read_head(kv_format, group, ids, blob[:head])
    return opened.decode(chunks, [blob[part.start : part.stop] for part in opened.ranges(chunks)])


def make_record(name: str, group_bytes: Sequence[int] = (10,), **changed: object) -> DonorRecord:
    record = DonorRecord(
        id=name,
        namespace="default",
        ids=np.arange(3, dtype=np.int32),
        vector=np.zeros(4, np.float32),
        embedder="test",
        history=np.zeros(0, np.float32),
        coding="full",
        head_bytes=4,
        group_bytes=tuple(group_bytes),
        pinned=False,
        published=False,
        created_at=1.0,
        used_at=2.0,
        expires_at=float("inf"),
    )
    return replace(record, **changed)
