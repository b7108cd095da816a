"""How long a start takes: from a new process to a model that can answer."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from statistics import median
from typing import Any

from semshare.evaluation.environment import machine, versions
from semshare.evaluation.progress import load_engine, progress_bar

# `load_s` is the second load of a process, when everything is imported.
_CHILD = """
import json, sys, time
import torch
torch_imported = time.monotonic()
from semshare import SemShare
model, dtype, started = sys.argv[1], sys.argv[2], float(sys.argv[3])
SemShare.from_pretrained(model, dtype=dtype)
ready = time.monotonic()
SemShare.from_pretrained(model, dtype=dtype)
print(json.dumps({
    "torch_s": torch_imported - started,
    "ready_s": ready - started,
    "load_s": time.monotonic() - ready,
}))
"""


def run_start(*, model: str, dtype: str, repeats: int) -> dict[str, Any]:
    """Start a process again and again, each time up to a model that is ready.

    Args:
        model: bundled name, local folder or hub id.
        dtype: of weights and KV.
        repeats: processes to start, after this one has loaded the model, which converts it if
            need be and leaves its file in the system's cache.

    Returns:
        Medians in seconds from the start of the process: `torch_s` until torch is imported,
        `ready_s` until the model is ready. `load_s` is loading it once more, with nothing left to
        import, and `imports_s` the rest of `ready_s`.

    """
    engine = load_engine(model, dtype=dtype)
    runs = []
    with progress_bar("starting", repeats, enabled=True) as (note, advance):
        for number in range(1, repeats + 1):
            note(f"process {number}")
            runs.append(_start(model, dtype))
            advance(f"process {number}")
    seconds = {name: median(run[name] for run in runs) for name in runs[0]}
    return {
        **{name: round(value, 3) for name, value in seconds.items()},
        "imports_s": round(seconds["ready_s"] - seconds["load_s"], 3),
        "n": repeats,
        "model": model,
        "dtype": engine.dtype,
        "machine": machine(),
        "versions": versions(),
    }


def _start(model: str, dtype: str) -> dict[str, float]:
    # The clock of `time.monotonic` is one for all processes of a machine.
    arguments = (model, dtype, str(time.monotonic()))
    program = [sys.executable, "-c", _CHILD, *arguments]
    done = subprocess.run(program, stdout=subprocess.PIPE, check=True, text=True)  # noqa: S603
    record: dict[str, float] = json.loads(done.stdout)
    return record
