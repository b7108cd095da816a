"""Finds the donors whose prompts are most similar to a target, among many (FAISS)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np

from semshare.donors.embedders import Vector

# Exhaustive search of this many vectors of 576 dimensions takes about a millisecond on one core;
# beyond it a graph (HNSW) is searched instead.
FLAT_LIMIT = 5_000
_HNSW_NEIGHBOURS = 32
_HNSW_EF_SEARCH = 128
_HNSW_EF_CONSTRUCTION = 128


@dataclass(frozen=True, slots=True)
class SimilarDonor:
    """A donor and the cosine similarity of its prompt, −1 to 1."""

    donor: str
    similarity: float


class PromptIndex:
    """Vectors of one namespace's donors, searched by cosine similarity.

    Flat (exact) up to `flat_limit` donors, HNSW above. A removed donor leaves a tombstone in the
    graph; the graph is rebuilt once more than a third of it is dead. On a machine with faiss-gpu
    the flat index is searched on the GPU.

    Args:
        dim: length of the vectors.
        flat_limit: most donors for exact search.

    """

    def __init__(self, dim: int, *, flat_limit: int = FLAT_LIMIT) -> None:
        self._dim = dim
        self._flat_limit = flat_limit
        self._vectors: dict[str, Vector] = {}
        self._names: list[str | None] = []  # by row of the FAISS index; None: removed
        self._index: Any = self._make_index(0)

    def __len__(self) -> int:
        return len(self._vectors)

    def add(self, donor: str, vector: Vector) -> None:
        """Index a donor's unit vector."""
        self._vectors[donor] = vector
        if len(self._vectors) == self._flat_limit + 1:
            self._rebuild()
        else:
            self._index.add(vector[None])
            self._names.append(donor)

    def remove(self, donor: str) -> None:
        """Forget a donor."""
        del self._vectors[donor]
        self._names[self._names.index(donor)] = None
        if len(self._names) > 8 and 3 * len(self._vectors) < 2 * len(self._names):
            self._rebuild()

    def nearest(self, vector: Vector, k: int) -> list[SimilarDonor]:
        """The `k` most similar donors, best first; fewer if there are fewer."""
        if not self._vectors:
            return []
        dead = len(self._names) - len(self._vectors)
        similarities, rows = self._index.search(vector[None], min(k + dead, len(self._names)))
        found = [
            SimilarDonor(name, float(similarity))
            for similarity, row in zip(similarities[0], rows[0], strict=True)
            if row >= 0 and (name := self._names[row]) is not None
        ]
        return found[:k]

    def _rebuild(self) -> None:
        self._index = self._make_index(len(self._vectors))
        self._names = list(self._vectors)
        if self._vectors:
            self._index.add(np.stack(list(self._vectors.values())))

    def _make_index(self, count: int) -> Any:
        if count > self._flat_limit:
            index = faiss.IndexHNSWFlat(self._dim, _HNSW_NEIGHBOURS, faiss.METRIC_INNER_PRODUCT)
            index.hnsw.efSearch = _HNSW_EF_SEARCH
            index.hnsw.efConstruction = _HNSW_EF_CONSTRUCTION
            return index
        flat = faiss.IndexFlatIP(self._dim)
        to_gpu: Callable[[Any], Any] | None = getattr(faiss, "index_cpu_to_all_gpus", None)
        if to_gpu is not None and faiss.get_num_gpus() > 0:
            return to_gpu(flat)
        return flat
