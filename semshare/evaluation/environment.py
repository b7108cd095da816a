"""Where a measurement was made, for its record."""

from __future__ import annotations

import os
import platform
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from semshare import BenchmarkRefused, ReusePolicy, SemShare

_PACKAGES = ("torch", "transformers", "tokenizers", "numpy", "faiss-cpu")


def machine() -> dict[str, Any]:
    """CPU model, cores this process may use, threads, AMX, and the GPU if there is one."""
    flags = _cpuinfo("flags")
    return {
        "cpu": _cpuinfo("model name") or platform.processor() or platform.machine(),
        "cores": _usable_cores(),
        "threads": torch.get_num_threads(),
        "amx": "amx_tile" in flags.split(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": f"{platform.system()} {platform.release()}",
    }


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that speed and numbers depend on."""
    found = {"python": platform.python_version()}
    for package in ("semshare", *_PACKAGES):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue  # run from a checkout, or faiss-gpu in faiss-cpu's place
    return found


def setting(engine: SemShare, policy: ReusePolicy) -> dict[str, Any]:
    """The fields every record ends with: model, dtype, policy, machine and versions."""
    return {
        "model": engine.model_name,
        "dtype": engine.dtype,
        "policy": asdict(policy),
        "machine": machine(),
        "versions": versions(),
    }


def peak_resident_bytes() -> int:
    """Most memory that this process has had at a time.

    Not `getrusage`, which counts what the process that started this one had, too.

    Raises:
        BenchmarkRefused: the system is not Linux.

    """
    return _bytes_in("/proc/self/status", "VmHWM")


def resident_bytes() -> int:
    """Memory that this process has now. Raises as `peak_resident_bytes`."""
    return _bytes_in("/proc/self/status", "VmRSS")


def available_bytes() -> int:
    """Memory that this machine can give without swapping. Raises as `peak_resident_bytes`."""
    return _bytes_in("/proc/meminfo", "MemAvailable")


def _bytes_in(file: str, key: str) -> int:
    """A line such as `VmHWM:  1234 kB`."""
    try:
        lines = Path(file).read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:")) << 10
    except (OSError, StopIteration):
        raise BenchmarkRefused(
            f"there is no {key} in {file}, by which memory is measured: run this on Linux"
        ) from None


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cpuinfo(key: str) -> str:
    """The first value of `key` in /proc/cpuinfo; empty where there is no such file or key."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    return next(
        (line.partition(":")[2].strip() for line in lines if line.split(":")[0].strip() == key), ""
    )
