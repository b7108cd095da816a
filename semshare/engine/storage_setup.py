"""The tiers that `StorageConfig` names, opened for one engine."""

from __future__ import annotations

import hashlib
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

from semshare.config import EngineConfig, StorageConfig
from semshare.engine.adapter import ModelAdapter
from semshare.engine.fingerprint import fingerprint
from semshare.errors import ModelNotAvailable
from semshare.kv.tiers.blob_format import BlobFormat, canonical_json
from semshare.kv.tiers.blob_head import VERSION
from semshare.kv.tiers.disk import DiskTier
from semshare.kv.tiers.host import HostTier
from semshare.kv.tiers.stack import TierStack
from semshare.kv.tiers.tier import Tier

_CHUNK_TOKENS = 64  # or a page of the pool, where that is larger


def open_tiers(model: ModelAdapter, config: EngineConfig, storage: StorageConfig) -> TierStack:
    """All tiers, the fastest first; if one can't be opened none stays open.

    Raises:
        StoreLocked: another process works in the folder.
        ModelNotAvailable: a tier's package is not installed.

    """
    kv_format = blob_format(model, config, storage)
    key = store_key(kv_format)
    tiers: list[Tier] = []
    with ExitStack() as opened:
        if storage.host_bytes:
            tiers.append(HostTier(storage.host_bytes, storage.eviction))
        if storage.disk_path is not None:
            folder = Path(storage.disk_path)
            tiers.append(DiskTier(folder, key, storage.disk_bytes, storage.eviction))
            opened.callback(tiers[-1].close)
        if storage.redis_url is not None:
            tiers.append(_redis_tier(storage.redis_url, key, storage.redis_bytes))
        opened.pop_all()
    return TierStack(tiers, kv_format)


def _redis_tier(url: str, key: str, budget_bytes: int) -> Tier:
    try:
        from semshare.kv.tiers.redis import RedisTier  # noqa: PLC0415 - an extra
    except ImportError as missing:
        raise ModelNotAvailable(
            "the package redis is not installed: pip install 'semshare[redis]'"
        ) from missing
    return RedisTier(url, fingerprint=key, budget_bytes=budget_bytes)


def blob_format(model: ModelAdapter, config: EngineConfig, storage: StorageConfig) -> BlobFormat:
    """What this engine's donors are stored as."""
    return BlobFormat(
        fingerprint=fingerprint(model),
        rope=canonical_json(model.config.rope_parameters),
        dtype=str(model.dtype).removeprefix("torch."),
        n_layers=model.n_layers,
        n_kv_heads=model.n_kv_heads,
        head_dim=model.head_dim,
        coding=storage.donor_format,
        compression=storage.compression,
        chunk_tokens=-(-_CHUNK_TOKENS // config.page_size) * config.page_size,
    )


def store_key(kv_format: BlobFormat) -> str:
    """What separates the donors of this model and format from all others in a shared store."""
    settings = canonical_json({**asdict(kv_format), "version": VERSION}).encode()
    return hashlib.blake2b(settings, digest_size=16).hexdigest()
