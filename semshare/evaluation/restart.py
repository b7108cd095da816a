"""How soon the donors of a store on disk can be found again."""

from __future__ import annotations

import math
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from semshare import BenchmarkRefused
from semshare.donors.embedders import HashEmbedder
from semshare.donors.library import DonorLibrary
from semshare.donors.namespace import donor_id
from semshare.donors.prompt_vectors import PromptVectors
from semshare.kv.pool import KVPool
from semshare.kv.tiers.disk import DiskTier
from semshare.kv.tiers.tier import DonorRecord
from semshare.planning.guard import FactMarks
from semshare.types import Ids

_TOKENS = 1000  # of a donor
_DIM = 576  # of a vector, as SmolLM2's
_VOCABULARY = 49_152
_GROUPS = 4  # blobs of a donor. They are never opened here, so they are small.
_NAMESPACE = "restart"


def restart_s(donors: int) -> float:
    """Seconds from opening a store on disk until all of its donors can be found, without their KV.

    Args:
        donors: of 1,000 random tokens each.

    Raises:
        BenchmarkRefused: one of some that are looked up is not found.

    """
    rng = np.random.default_rng(0)
    embedder = HashEmbedder(_DIM)
    maker = PromptVectors(embedder).maker
    with tempfile.TemporaryDirectory() as folder:
        tier = DiskTier(Path(folder), "restart", 64 << 30, "lru")
        wanted: list[Ids] = []
        for number in range(donors):
            ids = rng.integers(0, _VOCABULARY, _TOKENS, dtype=np.int32)
            vector = rng.standard_normal(_DIM).astype(np.float32)
            vector /= np.linalg.norm(vector)
            tier.put(_record(ids, vector, maker), [b"kv"] * _GROUPS)
            if number % (donors // 10 or 1) == 0:
                wanted.append(ids)
        tier.close()
        started = time.perf_counter()
        tier = DiskTier(Path(folder), "restart", 64 << 30, "lru")
        library = DonorLibrary(_pool(), embedder, _NotCompared)
        library.add_stored(tier.records())
        seconds = time.perf_counter() - started
        tier.close()
    (space,) = library.readable(_NAMESPACE)
    for ids in wanted:
        name = donor_id(_NAMESPACE, ids)
        by_prefix = space.stored_prefixes.match(ids, _TOKENS)
        spans = space.spans.find(ids, start=0, min_length=16)
        if by_prefix is None or by_prefix[0] != name or [one.donor for one in spans] != [name]:
            raise BenchmarkRefused(f"donor {name} is not found after the restart")
    return round(seconds, 4)


def _record(ids: Ids, vector: np.ndarray[tuple[int], np.dtype[np.float32]], by: str) -> DonorRecord:
    return DonorRecord(
        id=donor_id(_NAMESPACE, ids),
        namespace=_NAMESPACE,
        ids=ids,
        vector=vector,
        embedder=by,
        history=np.empty(0, np.float32),
        coding="full",
        head_bytes=1,
        group_bytes=(2,) * _GROUPS,
        pinned=False,
        published=False,
        created_at=0.0,
        used_at=0.0,
        expires_at=math.inf,
    )


def _pool() -> KVPool:
    """A small one: a restart brings no KV."""
    return KVPool(
        n_layers=1,
        n_kv_heads=1,
        head_dim=2,
        dtype=torch.float32,
        device=torch.device("cpu"),
        budget_bytes=1 << 20,
        page_size=16,
    )


class _NotCompared:
    """Of donors that are only looked up."""

    def __init__(self, ids: Ids) -> None:
        self._n = len(ids)

    @property
    def codes(self) -> torch.Tensor:
        raise AssertionError(f"nobody compares these {self._n} tokens")

    @property
    def marks(self) -> FactMarks:
        raise AssertionError(f"nobody guards these {self._n} tokens")

    def compute(self) -> None:
        raise AssertionError("nothing is computed at a restart")
