"""Keys moved by Δ against keys computed Δ later, for every RoPE variant of the families."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from properties import examples
from tiny import CONTEXT, FAMILIES, tiny_model

from semshare.engine.adapter import NO_ROPE, ModelAdapter
from semshare_kernels import (
    AttentionShape,
    KeyTable,
    MixedPlan,
    apply_rotary,
    mixed_attention,
    plan_mixed,
)
from semshare_kernels.rotary import rotated

_adapters: dict[str, ModelAdapter] = {}


def adapter_of(family: str) -> ModelAdapter:
    """A family's adapter, made once."""
    if family not in _adapters:
        _adapters[family] = ModelAdapter(tiny_model(family))
    return _adapters[family]


def largest_error(family: str, seed: int, start: int, shift: int) -> float:
    """Largest difference, as a share of the largest key, over the family's RoPE kinds."""
    adapter = adapter_of(family)
    keys = torch.randn(5, 2, adapter.head_dim, generator=torch.Generator().manual_seed(seed))
    at = torch.arange(start, start + 5)
    stored, expected = adapter.rope(at), adapter.rope(at + shift)
    rotation = adapter.shift_rotation(torch.full((5,), shift))
    kinds = set(adapter.rope_kinds) - {NO_ROPE}
    assert kinds == set(rotation) == set(stored)
    errors = []
    for kind in kinds:
        moved = rotated(apply_rotary(keys, *stored[kind]), rotation[kind])
        there = apply_rotary(keys, *expected[kind])
        errors.append(float((moved - there).abs().max() / there.abs().max()))
    return max(errors)


@pytest.mark.parametrize("family", FAMILIES)
@examples(40)
@given(st.integers(0, 2**32 - 1), st.integers(0, 100), st.integers(-100, 100))
def test_moved_keys_equal_keys_computed_there(
    family: str, seed: int, start: int, shift: int
) -> None:
    assert largest_error(family, seed, start, max(shift, -start)) <= 1e-5


@pytest.mark.parametrize("family", FAMILIES)
@examples(40)
@given(st.integers(0, 2**32 - 1), st.integers(0, CONTEXT - 5), st.integers(0, CONTEXT - 5))
def test_over_the_whole_context_only_the_rounding_of_angles_remains(
    family: str, seed: int, start: int, end: int
) -> None:
    # Three float32 angles of up to p radians, each rounded to within p × 2⁻²⁴ (its product and
    # `inv_freq` alike): the model's own tables are no more exact.
    rounding = 2 * (start + end + abs(end - start)) * 2**-24
    assert largest_error(family, seed, start, end - start) <= 1e-6 + rounding


def test_the_families_cover_every_additive_rope() -> None:
    kinds = {
        parameters.get("rope_type", "default")
        for family in FAMILIES
        for parameters in rope_variants(adapter_of(family))
    }
    assert kinds == {"default", "llama3", "yarn"}  # "linear" has default's form
    assert adapter_of("phi3-partial").rope(torch.arange(2))["shared"][0].shape == (2, 8)
    assert set(adapter_of("gemma3").rope_kinds) == {"sliding_attention", "full_attention"}
    assert NO_ROPE in adapter_of("smollm3-nope").rope_kinds
    assert float(adapter_of("yarn").rope(torch.arange(1))["shared"][0].max()) > 1.05  # scaled


def rope_variants(adapter: ModelAdapter) -> list[dict[str, object]]:
    parameters = adapter.config.rope_parameters
    return [parameters] if "rope_type" in parameters else list(parameters.values())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("shift", [-90, 55])
@pytest.mark.parametrize("n_keys", [30, 80])  # keys turned on load, and queries turned for them
def test_rotated_queries_and_turned_keys_equal_moved_keys(
    family: str, shift: int, n_keys: int
) -> None:
    adapter = adapter_of(family)
    generator = torch.Generator().manual_seed(1)
    d, n = adapter.head_dim, n_keys
    keys, values = (torch.randn(n, 2, d, generator=generator) for _ in range(2))
    query = torch.randn(4, 6, d, generator=generator)
    stored_at = torch.arange(100, 100 + n)
    q_pos = torch.arange(100 + n + shift, 104 + n + shift)
    slots, positions = np.arange(n), (stored_at + shift).numpy()
    shape = AttentionShape(6, 2, d, torch.float32, torch.device("cpu"))

    def plan_for(shift: int) -> MixedPlan:
        table = KeyTable(slots, positions, np.full(n, shift))
        return plan_mixed(q_pos.numpy(), table, window=None, shape=shape)

    for kind in set(adapter.rope_kinds) - {NO_ROPE}:
        stored = apply_rotary(keys, *adapter.rope(stored_at)[kind])
        moved = rotated(stored, adapter.shift_rotation(torch.full((n,), shift))[kind])
        results = []
        for keys_there, plan in ((stored, plan_for(shift)), (moved, plan_for(0))):
            at = q_pos - torch.from_numpy(plan.shifts)[:, None]
            queries = apply_rotary(query, *adapter.rope(at)[kind])
            turn = adapter.shift_rotation(torch.from_numpy(plan.turned_shifts)).get(kind)
            turn = turn if plan.turned_shifts.any() else None
            results.append(
                mixed_attention(plan, queries, keys_there, values, adapter.scale, turn)[0]
            )
        in_place, copied = results
        assert float((in_place - copied).abs().max()) <= 2e-5
