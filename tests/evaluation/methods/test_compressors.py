"""Compressors: their scores and choices by hand, and decoding over what each head keeps."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from method_cases import EXAMPLE, LIMIT, TASK, difference, run
from properties import examples
from tiny import VOCAB_SIZE, tiny_engine, tiny_model
from torch import Tensor

from semshare import InvalidRequest
from semshare.engine.adapter import NO_ROPE, ModelAdapter
from semshare.errors import UnsupportedModel
from semshare.evaluation.methods import head_cache
from semshare.evaluation.methods.compressor import alike
from semshare.evaluation.methods.h2o import H2O, heavy_hitters
from semshare.evaluation.methods.head_cache import HeadCache, PromptLayer
from semshare.evaluation.methods.snapkv import PYRAMIDKV, SNAPKV, observed, pyramid
from semshare_kernels import apply_rotary

COMPRESSORS = [SNAPKV, PYRAMIDKV, H2O]
WITHOUT_WINDOWS = ["llama", "llama3-rope", "yarn", "qwen2", "qwen3", "phi3-partial", "smollm3-nope"]


@pytest.mark.parametrize("method", COMPRESSORS, ids=lambda method: method.name)
@pytest.mark.parametrize("family", WITHOUT_WINDOWS)
def test_keeping_everything_is_full_prefill(family: str, method: Any) -> None:
    engine = tiny_engine(family)
    full = run(engine, "full")
    outcome = replace(method, ratio=1.0).run(engine, EXAMPLE, TASK)
    assert difference(full, outcome) <= LIMIT
    assert outcome.token_ids == full.token_ids
    assert outcome.text == full.text
    assert outcome.provenance.exact
    assert outcome.kv_bytes == full.kv_bytes


@pytest.mark.parametrize("family", ["mistral-window", "gemma3"])
def test_sliding_windows_are_refused(family: str) -> None:
    with pytest.raises(UnsupportedModel, match=r"take \d+ tokens .* the last (37|24)"):
        SNAPKV.run(tiny_engine(family), EXAMPLE, TASK)


@pytest.mark.parametrize("ratio", [0.0, -0.1, 1.5])
def test_a_ratio_out_of_its_range_is_refused(ratio: float) -> None:
    with pytest.raises(InvalidRequest, match="above 0, and 1 keeps everything"):
        replace(H2O, ratio=ratio)


def random_choice(layer: PromptLayer) -> Tensor:
    """Another random third of the tokens for each head, as many more as the layer is deep."""
    n, kv_heads = layer.keys.shape[:2]
    generator = torch.Generator().manual_seed(layer.index)
    order = torch.rand(kv_heads, n, generator=generator).argsort(dim=1)
    return order[:, : n // 3 + layer.index].sort(dim=1).values


@torch.inference_mode()
def dense_logits(model: ModelAdapter, ids: np.ndarray, prompt: int, chosen: list[Tensor]) -> Tensor:
    """Logits `[n, vocab]` of all tokens by one masked softmax: those after the prompt see of it
    what each head chose.
    """
    n = len(ids)
    hidden = model.embed(torch.from_numpy(ids.astype(np.int64)))
    rope = model.rope(torch.arange(n))
    group = model.n_heads // model.n_kv_heads
    for layer, kind in enumerate(model.rope_kinds):
        query, key, value = model.attention_inputs(layer, hidden)
        if kind != NO_ROPE:
            query, key = (apply_rotary(part, *rope[kind]) for part in (query, key))
        seen = torch.ones(model.n_kv_heads, n, n, dtype=torch.bool).tril()
        dropped = torch.ones(model.n_kv_heads, prompt, dtype=torch.bool)
        dropped.scatter_(1, chosen[layer], False)
        seen[:, prompt:, :prompt] &= ~dropped[:, None]
        seen, key, value = (
            part.repeat_interleave(group, dim=axis)
            for part, axis in ((seen, 0), (key, 1), (value, 1))
        )
        scores = torch.einsum("qhd,khd->hqk", query, key) * model.scale
        weights = scores.masked_fill(~seen, -torch.inf).softmax(dim=-1)
        attended = torch.einsum("hqk,khd->qhd", weights, value)
        hidden = model.layer_output(layer, hidden, attended)
    return model.logits(hidden)


@pytest.mark.parametrize("family", ["llama", "phi3-partial", "smollm3-nope"])
@torch.inference_mode()
def test_what_follows_sees_of_the_prompt_what_each_head_keeps(family: str) -> None:
    model = ModelAdapter(tiny_model(family))
    rng = np.random.default_rng(0)
    ids = rng.integers(4, VOCAB_SIZE, 70).astype(np.int32)
    prompt, chosen = 60, list[Tensor]()

    def choose(layer: PromptLayer) -> Tensor:
        chosen.append(random_choice(layer))
        return chosen[-1]

    cache = HeadCache(model, ids[:prompt], choose, room=10)
    expected = dense_logits(model, ids, prompt, chosen)[prompt - 1 :]
    together = torch.cat((cache.prompt_logits, cache.extend(ids[prompt:])))
    torch.testing.assert_close(together, expected, atol=LIMIT, rtol=0)
    cache.rewind()
    steps = [cache.extend(ids[at : at + 1]) for at in range(prompt, 70)]
    torch.testing.assert_close(torch.cat(steps), expected[1:], atol=LIMIT, rtol=0)
    kept = sum(20 + layer for layer in range(4))
    assert cache.bytes == kept * 2 * model.n_kv_heads * model.head_dim * 4
    assert cache.kept_share == kept / (4 * prompt)


@examples(30)
@given(st.integers(1, 40), st.sampled_from([1, 7, 1 << 10]), st.data())
def test_attention_received_is_the_column_sum_of_causal_attention(
    n: int, most: int, data: st.DataObject
) -> None:
    first = data.draw(st.integers(0, n - 1))
    generator = torch.Generator().manual_seed(n)
    query = torch.randn(n, 6, 8, generator=generator)
    key = torch.randn(n, 2, 8, generator=generator)
    scores = torch.einsum("qhd,khd->hqk", query, key.repeat_interleave(3, dim=1)) * 0.3
    hidden = torch.ones(n, n, dtype=torch.bool).triu(1)
    weights = scores.masked_fill(hidden, -torch.inf).softmax(dim=-1)
    expected = weights[:, first:].sum(dim=1).view(2, 3, n).mean(dim=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(head_cache, "MAX_SCORES", most)
        received = PromptLayer(0, query, key, 0.3).attention_received(first)
    torch.testing.assert_close(received, expected, atol=1e-5, rtol=0)


class Looked:
    """A layer whose tokens got this attention, `[kv_heads, n]`."""

    def __init__(self, received: list[list[float]], *, first_query: int) -> None:
        self._received, self._first_query = torch.tensor(received), first_query
        self.keys = torch.zeros(len(received[0]), len(received), 1)

    def attention_received(self, first_query: int) -> Tensor:
        assert first_query == self._first_query
        return self._received


def layer_with(received: list[list[float]], *, first_query: int) -> PromptLayer:
    return cast(PromptLayer, Looked(received, first_query=first_query))


def peaks(n: int, **at: float) -> list[float]:
    scores = [0.0] * n
    for name, value in at.items():
        scores[int(name.removeprefix("t"))] = value
    return scores


def test_snapkv_keeps_the_window_and_the_neighbours_of_what_it_looks_at() -> None:
    # Of 60 tokens the last 32 are the window: what they got themselves does not count.
    heads = [peaks(60, t10=1.0, t40=9.0), peaks(60, t3=1.0, t20=2.0)]
    kept = observed(layer_with(heads, first_query=28), 32 + 7).tolist()
    window = list(range(28, 60))
    assert kept[0] == [*range(7, 14), *window]
    assert kept[1] == [*range(17, 24), *window]


def test_snapkv_under_a_budget_below_its_window_keeps_the_latest() -> None:
    kept = observed(layer_with([peaks(60)], first_query=40), 20)
    assert kept.tolist() == [list(range(40, 60))]


def test_h2o_spends_half_on_the_latest_and_half_on_the_heaviest() -> None:
    heads = [[5.0, 1, 4, 2, 9, 3, 6, 7, 8], [1.0, 2, 3, 4, 5, 6, 7, 8, 9]]
    kept = heavy_hitters(layer_with(heads, first_query=0), 6)
    assert kept.tolist() == [[0, 2, 4, 6, 7, 8], [3, 4, 5, 6, 7, 8]]
    assert heavy_hitters(layer_with(heads, first_query=0), 1).tolist() == [[4], [8]]


def test_pyramid_budgets_by_hand() -> None:
    assert alike(1000, 3, 0.4) == (400, 400, 400)
    # Beside a window of 32 a mean of 368: the last layer keeps 368 / 20 = 18.4, the first 717.6.
    assert pyramid(1000, 5, 0.4) == tuple(32 + kept for kept in (718, 543, 368, 193, 18))
    # 1.95 × 768 is more than the 968 there are: the last keeps 2 × 768 − 968.
    assert pyramid(1000, 3, 0.8) == (1000, 800, 600)


@examples(100)
@given(st.integers(1, 3000), st.integers(2, 40), st.floats(0.01, 1.0))
def test_pyramid_budgets_fall_and_meet_their_mean(n: int, n_layers: int, ratio: float) -> None:
    budgets = pyramid(n, n_layers, ratio)
    assert len(budgets) == n_layers
    assert all(n >= a >= b >= min(32, n) for a, b in pairwise(budgets))
    assert sum(budgets) == pytest.approx(max(ratio * n, min(32, n)) * n_layers, abs=n_layers / 2)


@pytest.mark.parametrize("method", COMPRESSORS, ids=lambda method: method.name)
def test_four_tenths_are_kept_and_all_is_computed(method: Any) -> None:
    engine = tiny_engine()
    full, outcome = run(engine, "full"), method.run(engine, EXAMPLE, TASK)
    assert outcome.kv_bytes == pytest.approx(0.4 * full.kv_bytes, rel=0.01)
    assert outcome.own_kv_bytes == outcome.kv_bytes
    assert outcome.provenance.compute_fraction == 1.0
    # The prompt's own last token was computed in full, what follows it was not.
    assert float((outcome.logits[0] - full.logits[0]).abs().max()) <= LIMIT
    assert difference(full, outcome) > 0.01
    assert outcome.timings.decode_s > 0
