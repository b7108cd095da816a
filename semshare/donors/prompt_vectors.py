"""The vectors by which prompts are compared, and who made them."""

from __future__ import annotations

from semshare.donors.embedders import Embedder, Vector
from semshare.kv.tiers.tier import DonorRecord
from semshare.types import Ids


class PromptVectors:
    """One embedder's vectors.

    Args:
        embedder: makes them.

    """

    def __init__(self, embedder: Embedder) -> None:
        self._embedder = embedder
        self.dim = embedder.dim
        self.maker = f"{type(embedder).__name__} {embedder.dim}"  # as records name it

    def of(self, ids: Ids) -> Vector:
        """A prompt's vector.

        Raises:
            ValueError: the embedder gave one of another shape than it says.

        """
        vector = self._embedder.embed(ids)
        if vector.shape != (self.dim,):
            raise ValueError(
                f"the embedder gave a vector of shape {vector.shape}: its dim is {self.dim}"
            )
        return vector

    def of_record(self, record: DonorRecord) -> Vector:
        """The stored vector, if this embedder made it."""
        if record.embedder == self.maker and record.vector.shape == (self.dim,):
            return record.vector
        return self.of(record.ids)
