"""What every embedder promises, and lookups of near-duplicates."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from tiny import tiny_engine, tiny_model, tiny_tokenizer

from semshare import ModelNotAvailable
from semshare.donors.embedders import HashEmbedder, ModelEmbedder, SentenceEmbedder
from semshare.donors.prompt_index import PromptIndex
from semshare.types import Ids


def random_ids(n: int, seed: int, vocab: int = 5_000) -> Ids:
    """`[n]` ids of which low ones are common, as in text."""
    rng = np.random.default_rng(seed)
    return np.exp(rng.uniform(0, np.log(vocab), n)).astype(np.int32) - 1


@pytest.fixture(scope="module")
def model_embedder() -> ModelEmbedder:
    return ModelEmbedder(torch.randn(5_000, 64, generator=torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("n", [1, 2, 300])
def test_model_embedder_makes_unit_vectors_and_finds_the_same_prompt(
    model_embedder: ModelEmbedder, n: int
) -> None:
    ids = random_ids(n, n)
    vector = model_embedder.embed(ids)
    assert vector.dtype == np.float32
    assert vector.shape == (model_embedder.dim,) == (64,)
    assert np.linalg.norm(vector) == pytest.approx(1.0, abs=1e-5)
    assert float(vector @ model_embedder.embed(ids.copy())) == pytest.approx(1.0, abs=1e-5)


def test_model_embedder_of_a_bfloat16_model_is_float32() -> None:
    weight = tiny_model("llama").bfloat16().model.embed_tokens.weight
    assert ModelEmbedder(weight).embed(np.array([5, 6, 7], dtype=np.int32)).dtype == np.float32


def test_model_embedder_tells_unrelated_prompts_from_edited_ones(
    model_embedder: ModelEmbedder,
) -> None:
    ids = random_ids(300, 1)
    edited = ids.copy()
    edited[::10] = random_ids(30, 2)
    same = float(model_embedder.embed(ids) @ model_embedder.embed(edited))
    other = float(model_embedder.embed(ids) @ model_embedder.embed(random_ids(300, 3)))
    assert same > 0.85
    assert other < 0.5


@pytest.mark.parametrize("kind", ["model", "hash"])
def test_lookup_finds_the_near_duplicate(kind: str, model_embedder: ModelEmbedder) -> None:
    embedder = model_embedder if kind == "model" else HashEmbedder(128)
    index = PromptIndex(embedder.dim)
    prompts = [random_ids(200, seed) for seed in range(60)]
    for i, ids in enumerate(prompts):
        index.add(f"d{i}", embedder.embed(ids))
    for i, ids in enumerate(prompts):
        edited = ids.copy()
        edited[::5] = random_ids(40, 900 + i)
        (best,) = index.nearest(embedder.embed(edited), 1)
        assert best.donor == f"d{i}"


def test_hash_embedder_is_the_same_in_every_process() -> None:
    vector = HashEmbedder(4).embed(np.array([3, 1, 4, 1, 5], dtype=np.int32))
    # Computed once, in another process.
    np.testing.assert_allclose(vector, [0.2058145, 0.7525534, -0.5794138, -0.2357613], atol=1e-6)
    assert np.linalg.norm(vector) == pytest.approx(1.0)


def test_sentence_embedder_without_its_package_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(ModelNotAvailable, match=r"pip install 'semshare\[st\]'"):
        SentenceEmbedder(tiny_tokenizer().decode)


@pytest.mark.real_model
def test_sentence_embedder_offline() -> None:
    tokenizer = tiny_tokenizer()
    embedder = SentenceEmbedder(tokenizer.decode, chunk_tokens=60)

    def embed(text: str) -> np.ndarray:
        return embedder.embed(np.array(tokenizer(text)["input_ids"], dtype=np.int32))

    cat = embed("A cat sat on the mat and watched the rain. " * 4)
    rewritten = embed("On the rug sat a cat, looking out at the rain. " * 4)
    other = embed("Interest rates rose by half a point on Tuesday. " * 4)
    assert cat.dtype == np.float32
    assert cat.shape == (embedder.dim,) == (384,)
    assert np.linalg.norm(cat) == pytest.approx(1.0, abs=1e-5)
    assert float(cat @ rewritten) > 0.7
    assert float(cat @ other) < 0.3


@pytest.mark.real_model
def test_an_engine_uses_the_sentence_model_where_its_config_says_so() -> None:
    engine = tiny_engine(embedder="sentence")
    text = "The ferry leaves at nine from pier four and carries forty passengers."
    assert engine.library.vectors.of(engine.encode(text)).shape == (384,)
    engine.remember(text)
    assert engine.generate(text + " Who sells tickets?", max_tokens=1).provenance.fallback is None
