"""The README's tables, from the records in `benchmarks/results/`.

python benchmarks/tables.py          print them
python benchmarks/tables.py --write  put them between the README's markers
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"

ORDER = (
    "ttft-prefix-4000",
    "ttft-shifted-1200",
    "ttft-shifted-5000",
    "ttft-multi_donor-5000",
    "ttft-paraphrase-1600",
    "ttft-long-5000",
    "ttft-unrelated-1200",
)


def tables() -> str:
    """All of them, as markdown. What has no record is a row that says so."""
    records = {
        name: json.loads((RESULTS / f"{name}.json").read_text())["record"]
        for name in (*ORDER, "facts", "start")
        if (RESULTS / f"{name}.json").exists()
    }
    return "\n\n".join(
        (
            _ttft(records),
            _machines(records),
            _facts(records.get("facts")),
            _start(records.get("start")),
        )
    )


def _ttft(records: dict[str, dict[str, Any]]) -> str:
    rows = [
        "| scenario | tokens | n | full | with reuse | speedup | compute fraction | efficiency "
        "| KL (floor) | top-1 (floor) | PGR | reused |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name in ORDER:
        record = records.get(name)
        if record is None:
            _, scenario, tokens = name.split("-")
            rows.append(f"| `{scenario}` | {int(tokens):,} | – | not measured" + " | –" * 8 + " |")
            continue
        pgr = "–" if record["pgr"] is None else f"{record['pgr']:.2f}"
        rows.append(
            f"| `{record['scenario']}` | {record['tokens']:,} | {record['n']} | {_speeds(record)} "
            f"| {record['kl']:.4f} ({record['kl_floor']:.4f}) "
            f"| {record['top1']:.3f} ({record['top1_floor']:.3f}) | {pgr} "
            f"| {record['hit_rate']:.0%} |"
        )
    return "\n".join(rows)


def _machines(records: dict[str, dict[str, Any]]) -> str:
    """Where it was measured; which record where, if they were not all made in one place."""
    names: dict[str, list[str]] = {}
    for name, record in records.items():
        names.setdefault(_machine(record), []).append(name)
    lines = [
        f"On {place}." if len(names) == 1 else f"{', '.join(made)}: on {place}."
        for place, made in names.items()
    ]
    lines.append("Times are medians of end-to-end seconds to the first token.")
    return "\n".join(lines)


def _machine(record: dict[str, Any]) -> str:
    machine = record["machine"]
    return (
        f"{machine['gpu'] or machine['cpu']}, {machine['cores']} cores"
        f"{'' if machine['amx'] else ', no AMX'}, {record['dtype']}, torch "
        f"{record['versions']['torch']}"
    )


def _speeds(record: dict[str, Any]) -> str:
    """Full, reuse, speedup, compute fraction and efficiency; speeds only if fidelity held."""
    computed = f"{record['compute_fraction']:.3f}"
    if "speedup" not in record:
        return f"– | – | fidelity missed, no speed | {computed} | –"
    return (
        f"{record['full_s']:.2f} s | {record['reuse_s']:.2f} s | {record['speedup']:.1f}× "
        f"| {computed} | {record['efficiency']:.2f}"
    )


def _facts(record: dict[str, Any] | None) -> str:
    if record is None:
        return "Swapped facts: not measured."
    rows = [
        "Donor and target differ in their facts only. A leak: full prefill prefers the target's",
        "fact, reuse does not.\n",
        "| swapped facts | answered with the target's fact | leak rate |",
        "| --- | --- | --- |",
    ]
    for method in ("full", "semantic", "semantic_unguarded"):
        name = method.replace("_", ", ")
        rows.append(f"| {name} | {record[method]:.1%} | {record['leak_rate'][method]:.1%} |")
    share = f"{record['compute_fraction']:.0%}"
    rows.append(f"\n{record['n']} questions; semantic reuse computed {share} of the tokens.")
    return "\n".join(rows)


def _start(record: dict[str, Any] | None) -> str:
    if record is None:
        return "Start: not measured."
    return (
        f"A new process has the model ready in {record['ready_s']:.1f} s "
        f"(median of {record['n']}): {record['imports_s']:.1f} s are imports,\n"
        f"{record['torch_s']:.1f} s of them torch's, and {record['load_s']:.1f} s is loading."
    )


def main(arguments: list[str]) -> None:
    """Print the tables, or write them into the README."""
    if "--write" not in arguments:
        print(tables())  # noqa: T201 - what it is for
        return
    write()


def write() -> None:
    """Put the tables between the README's markers."""
    readme = ROOT / "README.md"
    before, rest = readme.read_text().split(BEGIN)
    after = rest.split(END)[1]
    readme.write_text(f"{before}{BEGIN}\n{tables()}\n{END}{after}")


if __name__ == "__main__":
    main(sys.argv[1:])
