"""Which of very many vectors are worth comparing with a target (FAISS).

Both kinds keep the order of a `VectorRows` whose vectors they stand for: what is appended, replaced
or dropped there is told to them. What they return are candidates, best first by their own measure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import faiss
import numpy as np
from numpy.typing import NDArray

from semshare.donors.embedders import Vector
from semshare.donors.vector_rows import Rows, VectorRows

_PART = 4  # dimensions to one code of four bits
_MOST_PARTS = 256  # beyond it sums of 16 bits saturate; parts get longer instead
_CENTROIDS = 16
_ITERATIONS = 10  # of k-means; more change nothing that could be measured
_MOST_CHANGED = 512  # vectors that a GPU's copy may lag behind; FAISS returns 2,048 at most there


class VectorScan(Protocol):
    """Candidates among the vectors of a table."""

    def __len__(self) -> int:
        """Vectors it knows of: the first ones of the table."""

    @property
    def nbytes(self) -> int:
        """Bytes on top of the table's."""

    def append(self, vectors: NDArray[np.float32]) -> None:
        """The next vectors `[m, dim]` of the table."""

    def replace(self, row: int, vector: Vector) -> None:
        """Another vector stands there now."""

    def drop_last(self) -> None:
        """The last vector is gone."""

    def search(self, vector: Vector, k: int) -> Rows:
        """Places of up to `k` vectors with the largest inner products, or nearly."""


class FastScan:
    """All vectors in four bits for every four dimensions, compared in registers.

    Product quantization (Jégou et al., TPAMI 2011) in the layout of Quick ADC (André et al., ICMR
    2017): 32 codes a time against tables of 16 entries. 100,000 vectors of 576 dimensions are
    7.2 MB, which the cache holds.

    Args:
        dim: length of the vectors.

    """

    def __init__(self, dim: int) -> None:
        part = max(_PART, -(-dim // _MOST_PARTS))
        parts = -(-dim // part)
        self._padding = parts * part - dim  # zeros, which change no product
        index: Any = faiss.IndexPQFastScan  # its stubs lack half of it
        self._index = index(parts * part, parts, 4, faiss.METRIC_INNER_PRODUCT)
        self._packer: Any = self._index.get_CodePacker()

    def __len__(self) -> int:
        return int(self._index.ntotal)

    @property
    def nbytes(self) -> int:
        """Bytes of the codes."""
        return len(self) * int(self._packer.code_size)

    def train(self, sample: NDArray[np.float32]) -> Iterator[None]:
        """Learn the codebooks from vectors `[16 or more, dim]`, a few at every step."""
        quantizer = self._index.pq
        padded = self._padded(sample)
        centroids = np.empty((quantizer.M, _CENTROIDS, quantizer.dsub), np.float32)
        for number in range(quantizer.M):
            part = padded[:, number * quantizer.dsub : (number + 1) * quantizer.dsub]
            with _one_thread():
                kmeans = faiss.Kmeans(
                    int(quantizer.dsub),
                    _CENTROIDS,
                    niter=_ITERATIONS,
                    seed=number,
                    min_points_per_centroid=1,
                    max_points_per_centroid=len(sample),
                )
                kmeans.train(np.ascontiguousarray(part))
            centroids[number] = kmeans.centroids
            if number % 4 == 3:
                yield
        faiss.copy_array_to_vector(centroids.ravel(), quantizer.centroids)
        self._index.is_trained = True

    def append(self, vectors: NDArray[np.float32]) -> None:
        """Encode more vectors `[m, dim]`."""
        with _one_thread():
            self._index.add(self._padded(vectors))

    def replace(self, row: int, vector: Vector) -> None:
        """Encode another vector in the place of one."""
        codes = self._index.pq.compute_codes(self._padded(vector[None]))
        self._write(row, codes[0])

    def drop_last(self) -> None:
        """Forget the last vector."""
        # FAISS writes new codes over what it takes for zeros.
        self._write(len(self) - 1, np.zeros(self._packer.code_size, np.uint8))
        self._index.ntotal -= 1

    def search(self, vector: Vector, k: int) -> Rows:
        """Places of the `k` vectors whose codes are nearest."""
        with _one_thread():
            _, rows = self._index.search(self._padded(vector[None]), min(k, len(self)))
        found: Rows = rows[0][rows[0] >= 0]
        return found

    def _write(self, row: int, code: NDArray[np.uint8]) -> None:
        # A view of FAISS's own memory, which moves as it grows.
        codes = faiss.rev_swig_ptr(self._index.codes.get(), self._index.codes.size())
        self._packer.pack_1(code, row, codes.reshape(-1, self._packer.block_size))

    def _padded(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        if not self._padding:
            return np.ascontiguousarray(vectors, np.float32)
        return np.pad(vectors, ((0, 0), (0, self._padding)))


class GpuScan:
    """All vectors as they are, on a GPU (faiss-gpu).

    Its copy can only grow. The places of vectors that have changed since it was made are candidates
    whatever they hold, and when there are many of them it is made anew.

    Args:
        rows: the table, of which this copies what is there.
        to_gpu: copies an index.

    """

    def __init__(self, rows: VectorRows, dim: int, to_gpu: Callable[[Any], Any]) -> None:
        self._rows = rows
        self._index = to_gpu(faiss.IndexFlatIP(dim))
        self._changed: set[int] = set()
        self._count = 0
        self._copy()

    def __len__(self) -> int:
        return self._count

    @property
    def nbytes(self) -> int:
        """None in the machine's own memory."""
        return 0

    def append(self, vectors: NDArray[np.float32]) -> None:
        """Copy more vectors `[m, dim]`, but those where others were that count as changed."""
        known = min(int(self._index.ntotal) - self._count, len(vectors))
        self._count += len(vectors)
        if known < len(vectors):
            self._index.add(vectors[known:])

    def replace(self, row: int, vector: Vector) -> None:  # noqa: ARG002 - read when it is needed
        """Remember that another vector stands there."""
        self._changed.add(row)

    def drop_last(self) -> None:
        """Forget the last vector."""
        self._count -= 1
        self._changed.add(self._count)

    def search(self, vector: Vector, k: int) -> Rows:
        """Places of the `k` most similar vectors, and of those that have changed."""
        if len(self._changed) > _MOST_CHANGED:
            self._copy()
        wanted = min(k + len(self._changed), int(self._index.ntotal))
        _, rows = self._index.search(vector[None], wanted)
        changed = np.fromiter(self._changed, np.int64, len(self._changed))
        found = np.union1d(rows[0], changed)
        return found[(found >= 0) & (found < self._count)]

    def _copy(self) -> None:
        self._index.reset()
        for part in self._rows.parts():
            self._index.add(part)
        self._count = len(self._rows)
        self._changed.clear()


@contextmanager
def _one_thread() -> Iterator[None]:
    """FAISS without a team of threads: what is computed for one request is too short for one."""
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(threads)
