"""Two models have one fingerprint exactly where one can use the other's KV."""

from __future__ import annotations

import pytest
import torch
from tiny import FAMILIES, tiny_model

from semshare.engine.adapter import ModelAdapter
from semshare.engine.fingerprint import fingerprint


def of(*, family: str = "llama", seed: int = 0) -> str:
    return fingerprint(ModelAdapter(tiny_model(family, seed=seed)))


def test_the_same_weights_have_the_same_fingerprint() -> None:
    assert of() == of()
    assert len(of()) == 32


def test_other_weights_rope_or_architectures_have_others() -> None:
    found = [of(family=family) for family in FAMILIES] + [of(seed=1)]
    assert len(set(found)) == len(found)


def test_another_dtype_has_another() -> None:
    assert fingerprint(ModelAdapter(tiny_model().to(torch.bfloat16))) != of()


def test_a_setting_that_no_weight_shows_is_in_it() -> None:
    model = tiny_model()
    model.config.rms_norm_eps *= 2
    assert fingerprint(ModelAdapter(model)) != of()


@pytest.mark.parametrize("name", [name for name, _ in tiny_model().named_parameters()])
def test_every_tensor_is_in_it(name: str) -> None:
    model = tiny_model()
    with torch.no_grad():
        model.get_parameter(name).mul_(1.01)
    assert fingerprint(ModelAdapter(model)) != of()
