"""Runs tiny models over pages that are not next to each other, in chunks or by a plan."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from semshare.engine.adapter import ModelAdapter
from semshare.engine.executor import Executor
from semshare.kv.pool import KVPool
from semshare.kv.sequence import KVSequence, lay_out
from semshare.planning.plan import full_plan
from semshare.types import Ids

PAGE = 8


def pool_for(adapter: ModelAdapter, pages: int) -> KVPool:
    """A pool of `pages` pages, full of NaN, of which every third is taken."""
    bytes_per_slot = (
        2 * adapter.n_layers * adapter.n_kv_heads * adapter.head_dim * adapter.dtype.itemsize
    )
    pool = KVPool(
        n_layers=adapter.n_layers,
        n_kv_heads=adapter.n_kv_heads,
        head_dim=adapter.head_dim,
        dtype=adapter.dtype,
        device=adapter.device,
        budget_bytes=pages * PAGE * bytes_per_slot,
        page_size=PAGE,
    )
    for layer in (*pool.keys, *pool.values):
        layer.fill_(torch.nan)
    taken = pool.allocate(pool.n_slots)
    pool.release(taken[taken % 3 != 0])
    return pool


def random_ids(n: int, vocab: int, seed: int = 0) -> Ids:
    """`[n]` ids, none of them special."""
    return np.random.default_rng(seed).integers(4, vocab, n).astype(np.int32)


@torch.inference_mode()
def logits_in_chunks(adapter: ModelAdapter, ids: Ids, cuts: Sequence[int]) -> Tensor:
    """Logits `[n, vocab]` of a prefill cut before each of `cuts`, on scattered pages."""
    pool = pool_for(adapter, 2 + 3 * len(ids) // PAGE)
    executor = Executor(adapter, pool)
    sequence = KVSequence(pool, lay_out(full_plan(ids)), np.empty(0, np.int64), room=0)
    bounds = [0, *sorted(set(cuts) - {0, len(ids)}), len(ids)]
    parts = []
    for start, stop in pairwise(bounds):
        at = np.arange(start, stop)
        parts.append(executor.forward(sequence, ids[at], at, all_logits=True).logits)
    sequence.release()
    return torch.cat(parts)


@torch.inference_mode()
def transformers_logits(model: PreTrainedModel, ids: Ids) -> Tensor:
    """Logits `[n, vocab]` float32 of transformers' own forward pass."""
    batch = torch.from_numpy(ids.astype(np.int64))[None]
    return model(input_ids=batch, use_cache=False).logits[0].float()
