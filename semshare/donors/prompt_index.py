"""Finds the donors whose prompts are most similar to a target, among many."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np

from semshare.donors.embedders import Vector
from semshare.donors.vector_rows import VectorRows, products
from semshare.donors.vector_scan import FastScan, GpuScan, VectorScan

# Exhaustive search of this many vectors of 576 dimensions takes a sixth of a millisecond on one
# core; beyond it codes are searched first.
FLAT_LIMIT = 5_000
CANDIDATES = 256  # best ones by their codes, which are compared exactly
SAMPLE = 4096  # vectors that codebooks are learnt from
_ENCODED = 1024  # vectors encoded in one step, which takes 6 ms
_GROWTH = 4  # codebooks are learnt anew whenever there are so many times more vectors


@dataclass(frozen=True, slots=True)
class SimilarDonor:
    """A donor and the cosine similarity of its prompt, −1 to 1."""

    donor: str
    similarity: float


class PromptIndex:
    """Vectors of one namespace's donors, searched by cosine similarity.

    Exhaustive up to `flat_limit` donors. Above it the vectors are searched exhaustively too, but in
    codes of half a bit for every bit of a byte (`FastScan`), and the best candidates are compared
    as they are: 0.2 ms among 100,000, with the most similar one found in 0.998 of cases. On a
    machine with faiss-gpu those many are searched on the GPU instead, as they are.

    Codes are built a few milliseconds at a time, one step with every donor that is added, and the
    index answers as before until they are complete; no request waits for it and nothing depends on
    time. Removing is O(1): the last vector takes the place of the one removed.

    Args:
        dim: length of the vectors.
        flat_limit: most donors for exhaustive search of the vectors themselves, 16 or more.

    Raises:
        ValueError: a lower `flat_limit`.

    """

    def __init__(self, dim: int, *, flat_limit: int = FLAT_LIMIT) -> None:
        if flat_limit < 16:
            raise ValueError(
                f"flat_limit is {flat_limit}: codes can be learnt from 16 vectors or more"
            )
        self._dim = dim
        self._flat_limit = flat_limit
        self._rows = VectorRows(dim)
        self._names: list[str] = []  # by row
        self._row: dict[str, int] = {}
        self._scan: VectorScan | None = None
        self._next: VectorScan | None = None  # being built
        self._steps: Iterator[None] = iter(())  # that are left of it
        self._learnt_from = 0  # donors that there were

    def __len__(self) -> int:
        return len(self._names)

    @property
    def nbytes(self) -> int:
        """Bytes of the vectors and of their codes, without names."""
        scans = [scan for scan in (self._scan, self._next) if scan is not None]
        return self._rows.nbytes + sum(scan.nbytes for scan in scans)

    def add(self, donor: str, vector: Vector) -> None:
        """Index a donor's unit vector `[dim]`.

        Takes 10 µs, and up to ten milliseconds while codes are built.

        Raises:
            ValueError: the donor is there already.

        """
        self._append([donor], vector[None])
        self._start_if_due()
        next(self._steps, None)

    def add_many(self, donors: Iterable[tuple[str, Vector]]) -> None:
        """Index many donors at once, with codes if they are due. For a start, not for a request.

        Raises:
            ValueError: one of them is there already.

        """
        items = list(donors)
        if not items:
            return
        self._append([name for name, _ in items], np.stack([vector for _, vector in items]))
        self._start_if_due()
        for _ in self._steps:
            pass

    def remove(self, donor: str) -> None:
        """Forget a donor."""
        row = self._row.pop(donor)
        last = self._names.pop()
        moved = self._rows.take(row)
        if moved is not None:
            self._names[row] = last
            self._row[last] = row
        for scan in (self._scan, self._next):
            if scan is None:
                continue
            if moved is not None and row < len(scan):
                scan.replace(row, moved)
            if len(scan) > len(self._rows):
                scan.drop_last()
        if 2 * len(self._rows) < self._flat_limit:
            self._scan, self._next, self._steps = None, None, iter(())

    def nearest(self, vector: Vector, k: int) -> list[SimilarDonor]:
        """The `k` most similar donors, best first; fewer if there are fewer."""
        k = min(k, len(self._names))
        if k == 0:
            return []
        if self._scan is None:
            rows = np.arange(len(self._rows))
            similarities = self._rows.products(vector)
        else:
            rows = self._scan.search(vector, max(CANDIDATES, 4 * k))
            similarities = products(self._rows.gather(rows), vector)
        best = np.argpartition(-similarities, k - 1)[:k]
        best = best[np.argsort(-similarities[best], kind="stable")]
        return [SimilarDonor(self._names[rows[at]], float(similarities[at])) for at in best]

    def _append(self, names: list[str], vectors: np.ndarray[Any, np.dtype[np.float32]]) -> None:
        count = len(self._names)
        rows = {name: count + at for at, name in enumerate(names)}
        twice = next((name for name in names if name in self._row), None)
        if twice is not None or len(rows) < len(names):
            raise ValueError(f"donor {twice or names} is indexed already: remove it first")
        self._row |= rows
        self._names += names
        self._rows.append(vectors)
        if self._scan is not None:
            self._scan.append(vectors)

    def _start_if_due(self) -> None:
        if self._next is not None:
            return
        if len(self._rows) > (
            self._flat_limit if self._scan is None else _GROWTH * self._learnt_from
        ):
            self._learnt_from = len(self._rows)
            self._steps = self._build()

    def _build(self) -> Iterator[None]:
        """Codes of all vectors, in steps; meanwhile donors come and go."""
        to_gpu = getattr(faiss, "index_cpu_to_all_gpus", None)
        if to_gpu is not None and faiss.get_num_gpus() > 0:
            self._scan = self._scan or GpuScan(self._rows, self._dim, to_gpu)
            return
        codes = self._next = FastScan(self._dim)
        count = len(self._rows)
        # Some from everywhere: donors of a time are alike.
        sample = np.linspace(0, count - 1, min(SAMPLE, count)).astype(np.int64)
        vectors = self._rows.gather(sample)
        yield
        yield from codes.train(vectors)
        while True:
            codes.append(next(self._rows.parts(len(codes)))[:_ENCODED])
            if len(codes) == len(self._rows):  # before another donor comes
                break
            yield
        self._scan, self._next = codes, None
