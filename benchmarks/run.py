"""Runs every benchmark of the READMEs and keeps its record: `make bench`, or name some of them.

python benchmarks/run.py [name …]

Each record is the last line the command printed, with the command itself, in
`benchmarks/results/<name>.json`. A benchmark whose fidelity missed its bound prints its record
without speeds; that is kept too. The READMEs' tables are written anew at the end.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import tables
from rich.console import Console

RESULTS = Path(__file__).parent / "results"

COMMANDS = {
    "ttft-shifted-1200": "bench ttft --scenario shifted --tokens 1200 --limit 8 --json",
    "ttft-paraphrase-1600": (
        "bench ttft --scenario paraphrase --tokens 1600 --limit 12 --repeats 2 --json"
    ),
    "ttft-shifted-5000": "bench ttft --scenario shifted --tokens 5000 --limit 3 --repeats 2 --json",
    "ttft-long-5000": "bench ttft --scenario long --tokens 5000 --limit 4 --repeats 2 --json",
    "ttft-prefix-4000": "bench ttft --scenario prefix --tokens 4000 --limit 3 --repeats 2 --json",
    "ttft-unrelated-1200": "bench ttft --scenario unrelated --tokens 1200 --limit 6 --json",
    "ttft-multi_donor-5000": (
        "bench ttft --scenario multi_donor --tokens 5000 --limit 2 --repeats 2 --json"
    ),
    "facts": "eval facts --json",
    "start": "bench start --json",
    "memory": "bench memory --requests 8 --json",
    "lookup": "bench lookup --json",
    "repair": "bench repair --json",
    "throughput": "bench throughput --limit 8 --json",
    "retention": "bench retention --limit 2 --json",
    "frontier": "eval frontier --limit 4 --json",
    "decode": "bench decode --json",
    "kernels": "bench kernels --json",
    "kernel-check": "kernels check --json",
}
# All methods on all kinds of scenarios, into one folder: `benchmarks/results/eval/`.
EVALUATION = "eval"
EVALUATIONS = (
    "--dataset aclsum --scenario shifted --limit 8",
    "--dataset pairs --limit 12",
    "--dataset aclsum --scenario shifted --tokens 5000 --limit 4",
    "--dataset facts --limit 30",
    "--dataset aclsum --scenario prefix,unrelated,reordered,overlap-80,overlap-60,overlap-40,"
    "overlap-20,entities,synonyms --tokens 1200 --limit 2",
    "--dataset aclsum --scenario multi_donor --tokens 2500 --limit 2",
    "--dataset translations --scenario modern --limit 2",
    "--dataset translations --scenario long --tokens 500,1000,2000,4000,6000 --limit 1",
)
MAX_LINES = 1000  # longer records are one line


def main(names: list[str]) -> int:
    """Run the named benchmarks, or all; the exit status counts those that gave no record."""
    console = Console(stderr=True)
    known = [*COMMANDS, EVALUATION]
    unknown = [name for name in names if name not in known]
    if unknown:
        console.print(f"unknown: {', '.join(unknown)}. Choose from {', '.join(known)}.")
        return 2
    failed = 0
    for name in names or known:
        console.rule(name)
        if name == EVALUATION:
            failed += not _evaluate()
            continue
        program = [sys.executable, "-m", "semshare.cli", *shlex.split(COMMANDS[name])]
        done = subprocess.run(program, stdout=subprocess.PIPE, text=True, check=False)  # noqa: S603
        try:
            record = json.loads(done.stdout.strip().splitlines()[-1])
        except (IndexError, json.JSONDecodeError):
            console.print(f"{name}: no record, exit status {done.returncode}")
            failed += 1
            continue
        kept = {"command": f"semshare {COMMANDS[name]}", "record": record}
        text = json.dumps(kept, indent=1)
        text = text if text.count("\n") < MAX_LINES else json.dumps(kept)
        (RESULTS / f"{name}.json").write_text(text + "\n")
    tables.write()
    return failed


def _evaluate() -> bool:
    """Run what is missing of the evaluation; rows that are there stay."""
    options = shlex.split(f"--answer-tokens 32 --out {RESULTS / EVALUATION}")
    return all(
        subprocess.run(  # noqa: S603
            [sys.executable, "-m", "semshare.cli", "eval", "run", *shlex.split(one), *options],
            check=False,
        ).returncode
        == 0
        for one in EVALUATIONS
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
