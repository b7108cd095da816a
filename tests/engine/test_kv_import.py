"""KV from elsewhere becomes a donor exactly where it is what this model computes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import ceil

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from properties import examples
from tiny import FAMILIES, tiny_engine, tiny_model, tiny_tokenizer

from semshare import EngineConfig, KVMismatch, PromptTooLong, ReusePolicy, SemShare
from semshare.engine.adapter import NO_ROPE
from semshare.engine.kv_bounds import largest_magnitudes
from semshare.engine.kv_import import STRIDE, TESTED, _rows_to_test, deviations
from semshare.kv.exchange import LayerKV
from semshare_kernels import apply_rotary

TEXT = "A donor's text, long enough that its tokens are worth reusing somewhere else. " * 2
OFF = ReusePolicy(mode="off")
PREFIX = ReusePolicy(mode="prefix")
Layers = list[LayerKV]


def kv_of(engine: SemShare, prompt: str) -> Layers:
    with engine.prefill(prompt, policy=OFF) as prefilled:
        return [prefilled.layer(index) for index in range(engine.model.n_layers)]


ENGINE = tiny_engine()
IDS = ENGINE.encode(TEXT)
LAYERS = kv_of(ENGINE, TEXT)
ROWS = _rows_to_test(IDS).tolist()


def bring(layers: Layers, *, into: SemShare = ENGINE) -> None:
    into.import_donor(IDS, layers, fingerprint=into.fingerprint)


def assert_refused(layers: Layers, match: str) -> None:
    free = ENGINE.pool.free_pages
    with pytest.raises(KVMismatch, match=match):
        bring(layers)
    assert ENGINE.pool.free_pages == free
    assert ENGINE.library.names == []


def changed(layer: int, part: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Layers:
    layers = list(LAYERS)
    layers[layer] = replace(layers[layer], **{part: change(getattr(layers[layer], part).clone())})
    return layers


def perturbed(layer: int, part: str, row: int, by: float) -> Layers:
    def change(tensor: torch.Tensor) -> torch.Tensor:
        noise = torch.randn(tensor[row].shape, generator=torch.Generator().manual_seed(1))
        tensor[row] += by * tensor[row].norm() * noise / noise.norm()
        return tensor

    return changed(layer, part, change)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_another_engine_computed_is_hit_without_loss(family: str) -> None:
    source, target = tiny_engine(family), tiny_engine(family)
    prompt = f"{TEXT} And then?"
    expected = source.generate(prompt, max_tokens=6, policy=OFF)
    donor = target.import_donor(IDS, kv_of(source, TEXT), fingerprint=source.fingerprint)
    assert donor.tokens == len(IDS)
    assert target.donors() == [donor]
    answer = target.generate(prompt, max_tokens=6, policy=PREFIX)
    assert answer.provenance.counts["prefix"] == len(IDS) // 16 * 16
    assert answer.provenance.exact
    assert answer.token_ids == expected.token_ids


def test_a_brought_donor_serves_shifted_text() -> None:
    engine = tiny_engine()
    bring(LAYERS, into=engine)
    plan = engine.plan(f"Something else first. {TEXT}", policy=ReusePolicy(mode="span"))
    assert plan.counts["span"] > len(TEXT) // 2


def test_bfloat16_is_taken_from_another_order_of_summation() -> None:
    engine, other = (
        SemShare(
            tiny_model().to(torch.bfloat16),
            tiny_tokenizer(),
            config=EngineConfig(kv_budget_bytes=32 << 20, prefill_rows=rows),
        )
        for rows in (16, 4096)
    )
    bring(kv_of(other, TEXT), into=engine)
    assert len(engine.donors()) == 1


@pytest.mark.parametrize("n", [1, 2, TESTED, TESTED + 1, 2 * TESTED, 40])
def test_short_prompts_are_tested_too(n: int) -> None:
    engine = tiny_engine()
    layers = kv_of(engine, TEXT[:n])
    engine.import_donor(IDS[:n], layers, fingerprint=engine.fingerprint)
    assert [donor.tokens for donor in engine.donors()] == [n]
    rows = _rows_to_test(IDS[:n])
    assert len(set(rows.tolist())) == min(n, TESTED) + ceil(max(n - TESTED, 0) / STRIDE)
    assert rows[-1] == n - 1


def test_kv_of_another_prompt_is_refused() -> None:
    assert_refused(
        kv_of(ENGINE, TEXT.swapcase()), "in layer 0 is .* away from what this model computes"
    )


def test_kv_of_shifted_positions_is_refused() -> None:
    shifted = [LayerKV(one.key[1:], one.value[1:]) for one in kv_of(ENGINE, " " + TEXT)]
    assert_refused(shifted, "in layer 0 is .* away from what this model computes")


def test_another_prompts_kv_behind_a_right_first_layer_is_refused() -> None:
    other = kv_of(ENGINE, TEXT.swapcase())
    assert_refused([LAYERS[0], *other[1:]], "in layer 1 is")


@pytest.mark.parametrize(("left", "right"), [(0, 1), (1, 2), (2, 3), (1, 3)])
def test_swapped_layers_are_refused(left: int, right: int) -> None:
    layers = list(LAYERS)
    layers[left], layers[right] = layers[right], layers[left]
    assert_refused(layers, f"in layer {left} is")


@examples(40)
@given(
    layer=st.integers(0, 3),
    part=st.sampled_from(["key", "value"]),
    row=st.sampled_from(ROWS),
    by=st.floats(1e-3, 1.0),
)
def test_a_changed_row_among_the_tested_is_found(
    layer: int, part: str, row: int, by: float
) -> None:
    assert_refused(
        perturbed(layer, part, row, by), f"the {part} of token {row} in layer {layer} is"
    )


@examples(20)
@given(part=st.sampled_from(["key", "value"]), row=st.integers(0, len(TEXT) - 1))
def test_any_changed_row_of_the_first_layer_is_found(part: str, row: int) -> None:
    assert_refused(perturbed(0, part, row, 1e-3), f"the {part} of token {row} in layer 0 is")


@pytest.mark.parametrize("number", [torch.nan, torch.inf, -torch.inf, 1e30])
@pytest.mark.parametrize("part", ["key", "value"])
def test_numbers_that_no_prompt_gives_are_refused(number: float, part: str) -> None:
    def change(tensor: torch.Tensor) -> torch.Tensor:
        tensor[3, 1, 2] = number
        return tensor

    assert_refused(changed(2, part, change), f"the {part} of layer 2 reaches .* at most")


@pytest.mark.parametrize(
    ("layers", "match"),
    [
        ([], "0 layers were brought: this model has 4"),
        (LAYERS[:3], "3 layers were brought"),
        ([*LAYERS, LAYERS[3]], "over 4 layers were brought"),
        (changed(1, "key", lambda one: one[:-1]), "the key of layer 1 is .* it must be"),
        (changed(1, "value", lambda one: one.half()), "the value of layer 1 is .*float16"),
        (changed(0, "key", lambda one: one.flatten(1)), r"\[tokens, kv_heads, head_dim\]"),
    ],
)
def test_other_shapes_are_refused(layers: Layers, match: str) -> None:
    assert_refused(layers, match)


def test_another_models_kv_is_refused_before_it_is_read() -> None:
    other = tiny_engine(seed=1)
    with pytest.raises(KVMismatch, match="is of the model"):
        ENGINE.import_donor(IDS, iter(LAYERS), fingerprint=other.fingerprint)
    with pytest.raises(PromptTooLong):
        ENGINE.import_donor([5] * 5000, LAYERS, fingerprint=ENGINE.fingerprint)


def test_an_error_of_the_source_leaves_nothing_behind() -> None:
    free = ENGINE.pool.free_pages

    def breaks_off() -> object:
        yield LAYERS[0]
        raise ConnectionError

    with pytest.raises(ConnectionError):
        bring(breaks_off())  # type: ignore[arg-type]
    assert ENGINE.pool.free_pages == free


@pytest.mark.parametrize("family", FAMILIES)
def test_the_bound_holds_for_hidden_states_of_any_size(family: str) -> None:
    model = tiny_engine(family).model
    hidden = 1e3 * torch.randn(64, model.config.hidden_size)
    for index, kind in enumerate(model.rope_kinds):
        with torch.inference_mode():
            _, key, value = model.attention_inputs(index, hidden)
            if kind != NO_ROPE:
                key = apply_rotary(key, *model.rope(torch.arange(64))[kind])
            limits = largest_magnitudes(model, index)
        for tensor, limit in ((key, limits.key), (value, limits.value)):
            # Not so far above what occurs that it would say nothing.
            assert limit / 20 < float(tensor.abs().max()) <= limit


def test_deviations_by_hand() -> None:
    expected = torch.tensor([[[3.0, 4.0]], [[0.1, 0.0]], [[10.0, 0.0]]])
    got = expected + torch.tensor([[[0.0, 1.0]], [[1.0, 0.0]], [[0.0, 1.0]]])
    # Lengths 5, 0.1, 10; the second is measured by their median, 5.
    assert deviations(got, expected).tolist() == pytest.approx([0.2, 0.2, 0.1])


def test_a_span_that_another_prompt_lent_is_found() -> None:
    engine = tiny_engine()
    engine.remember(TEXT)
    policy = ReusePolicy(mode="span", recompute=0.0, fact_guard=False)
    for start in range(6):  # the rows that are drawn follow from the ids
        prompt = f"{'Another text comes first. ' * (start + 1)}{TEXT} And then?"
        with engine.prefill(prompt, policy=policy) as mixed:
            assert mixed.provenance.counts["span"] >= 16
            layers = [mixed.layer(index) for index in range(engine.model.n_layers)]
        with pytest.raises(KVMismatch):
            engine.import_donor(
                engine.encode(prompt), layers, fingerprint=engine.fingerprint, namespace="n"
            )
