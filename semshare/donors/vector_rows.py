"""Vectors of equal length, side by side, from which one can be taken at no cost."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from semshare.donors.embedders import Vector

Rows = NDArray[np.int64]  # places of vectors, [n]

_CHUNK = 1024  # vectors allocated at a time: growing copies nothing


class VectorRows:
    """A dense table of float32 vectors `[n, dim]` that grows and shrinks at its end.

    Args:
        dim: length of the vectors.

    """

    def __init__(self, dim: int) -> None:
        self._dim = dim
        self._chunks: list[NDArray[np.float32]] = []  # each [_CHUNK, dim]
        self._count = 0

    def __len__(self) -> int:
        return self._count

    @property
    def nbytes(self) -> int:
        """Bytes of the vectors that are there."""
        return self._count * self._dim * 4

    def append(self, vectors: NDArray[np.float32]) -> None:
        """Add vectors `[m, dim]` at the end."""
        at = 0
        while at < len(vectors):
            chunk, start = divmod(self._count, _CHUNK)
            if chunk == len(self._chunks):
                self._chunks.append(np.empty((_CHUNK, self._dim), np.float32))
            part = vectors[at : at + _CHUNK - start]
            self._chunks[chunk][start : start + len(part)] = part
            self._count += len(part)
            at += len(part)

    def take(self, row: int) -> Vector | None:
        """Remove one vector; the last one moves to its place and is returned, if it is another."""
        last = self._count - 1
        moved = None
        if row != last:
            moved = self[last]
            self._chunks[row // _CHUNK][row % _CHUNK] = moved
        self._count = last
        # One chunk stays in reserve, or a donor that comes and goes would allocate each time.
        del self._chunks[-(-last // _CHUNK) + 1 :]
        return moved

    def __getitem__(self, row: int) -> Vector:
        vector: Vector = self._chunks[row // _CHUNK][row % _CHUNK]
        return vector

    def gather(self, rows: Rows) -> NDArray[np.float32]:
        """The vectors `[len(rows), dim]` at some places."""
        found = np.empty((len(rows), self._dim), np.float32)
        for at, row in enumerate(rows.tolist()):
            found[at] = self._chunks[row // _CHUNK][row % _CHUNK]
        return found

    def parts(self, start: int = 0) -> Iterator[NDArray[np.float32]]:
        """All vectors from `start` on, as views of at most a thousand or so."""
        while start < self._count:
            chunk, at = divmod(start, _CHUNK)
            part = self._chunks[chunk][at : at + self._count - start]
            yield part
            start += len(part)

    def products(self, vector: Vector) -> NDArray[np.float32]:
        """The inner product of each with `vector`, `[n]`."""
        found = [products(part, vector) for part in self.parts()]
        return np.concatenate([np.empty(0, np.float32), *found])


def products(vectors: NDArray[np.float32], vector: Vector) -> NDArray[np.float32]:
    """The inner product of each of `vectors` `[n, dim]` with `vector`, on one core.

    A BLAS's matrix product would wait for threads of its own, 20 ms where the cores are busy.
    """
    found: NDArray[np.float32] = np.vecdot(vectors, vector)
    return found
