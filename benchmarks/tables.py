"""The tables of the READMEs, from the records in `benchmarks/results/`.

python benchmarks/tables.py          print them
python benchmarks/tables.py --write  put them between the READMEs' markers
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from semshare import ReusePolicy
from semshare.evaluation.report.markdown import markdown_table
from semshare.evaluation.report.summary import COMPUTE, KL, RIGHT, Group, Summary, summarize
from semshare.evaluation.report.tables import ABSENT
from semshare.evaluation.rows import RowFile

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
README, KERNELS_README = ROOT / "README.md", ROOT / "kernels" / "README.md"
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

# Of the evaluation's scenarios those that the README shows; its report has all.
EVALUATION = (
    Group("aclsum", "shifted", 1200),
    Group("pairs", "paraphrase", 1600),
    Group("aclsum", "shifted", 5000),
    Group("translations", "long", 4000),
    Group("facts", "swapped", 1200),
)
SERVING = ("throughput", "memory", "repair")
OTHERS = ("facts", "frontier", "retention", "storage", "lookup", "service", "start")
KERNELS = ("decode", "kernels", "kernel-check")


def _records(*names: str) -> dict[str, dict[str, Any]]:
    """Those that there are."""
    return {
        name: json.loads((RESULTS / f"{name}.json").read_text())["record"]
        for name in names
        if (RESULTS / f"{name}.json").exists()
    }


def tables() -> str:
    """The README's, as markdown. What has no record is a row that says so."""
    records, serving = _records(*ORDER, *OTHERS), _records(*SERVING)
    return "\n\n".join(
        (
            _ttft(records),
            _machines(records),
            _facts(records.get("facts")),
            _evaluation(),
            _frontier(records.get("frontier")),
            _serving(serving),
            _retention(records.get("retention")),
            _storage(records.get("storage")),
            _lookup(records.get("lookup")),
            _service(records.get("service")),
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
        if "dtype" in record:  # a model ran
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


def _evaluation() -> str:
    """Every method on the scenarios that stand for the others."""
    path = RESULTS / "eval" / "rows.jsonl"
    groups = summarize(RowFile(path).rows) if path.exists() else {}
    by_group = {
        group: {one.method: one for one in groups[group]} for group in EVALUATION if group in groups
    }
    if not by_group:
        return "Other methods: not measured."
    methods = dict.fromkeys(method for several in by_group.values() for method in several)
    columns = [
        f"{group.scenario} {round(next(iter(several.values())).tokens):,}, "
        f"n = {max(one.n for one in several.values())}"
        for group, several in by_group.items()
    ]
    cells = [
        [f"`{method}`", *(_evaluated(several.get(method)) for several in by_group.values())]
        for method in methods
    ]
    return markdown_table([["method", *columns], *cells]) + (
        "\n\nKL in nats a token (for `swapped` the share answered with the target's fact), and in "
        "brackets the compute\nfraction before the first token. All scenarios, metrics and "
        "intervals: [benchmarks/results/eval/report.md](benchmarks/results/eval/report.md)."
    )


def _frontier(record: dict[str, Any] | None) -> str:
    """The policies of the sweep that none betters."""
    if record is None:
        return "Policies: not measured."
    default = ReusePolicy()
    rows = [
        "| selection | budget | compute | KL | PGR |",
        "| --- | --- | --- | --- | --- |",
        *(
            f"| `{point['selection']}` | {point['recompute']:.0%} "
            f"| {point['compute_fraction']:.1%} | {point['kl']:.3f} | {point['pgr']:.2f} |"
            for point in record["points"]
            if point["on_frontier"]
        ),
    ]
    rows.append(
        f"\nOf {len(record['points'])} policies those that none betters in compute and KL, on the "
        f"`{record['split']}` split of\n`{record['scenario']}`, n = {record['points'][0]['n']}; "
        f"the default is `{default.selection}` at {default.recompute:.0%}."
    )
    return "\n".join(rows)


def _evaluated(one: Summary | None) -> str:
    if one is None:
        return ABSENT
    compute = f"({one.means[COMPUTE.name].mean:.0%})"
    if RIGHT.name in one.means:
        return f"{one.means[RIGHT.name].mean:.0%} {compute}"
    return f"{one.means[KL.name].mean:.4f} {compute}"


def _serving(records: dict[str, dict[str, Any]]) -> str:
    """Requests together, each measurement with its goal."""
    missing = [name for name in SERVING if name not in records]
    if missing:
        return f"Requests together: not measured ({', '.join(missing)})."
    throughput, memory, repair = (records[name] for name in SERVING)
    keys, long = throughput["decode_keys"], throughput["decode_keys_8k"]
    shared = throughput["vs_unshared_decode"], throughput["vs_unshared_decode_8k"]
    return "\n".join(
        (
            "| requests together | against | measured | goal |",
            "| --- | --- | --- | --- |",
            f"| {throughput['requests']} over one prefix of {throughput['tokens']:,} tokens, "
            f"{throughput['answer_tokens']} new ones each | transformers' `generate` in batches of "
            f"{throughput['transformers_batch']} | {throughput['vs_transformers']:.1f}× | 8× |",
            f"| their decode steps, {keys:,} / {long:,} keys | a copy of the prefix for each "
            f"| {shared[0]:.1f}× / {shared[1]:.1f}× | 3× / 8× |",
            f"| the step over {long:,} keys | its operations at the rate of matrix products "
            f"| {throughput['roofline_ratio_8k']:.2f}× as long | 1.4× |",
            f"| {throughput['semantic_requests']} over rewritten donors | full prefill "
            f"| {throughput['semantic_prefill_saving']:.1f}×, PGR {throughput['pgr']:.2f} "
            f"| 4×, PGR 0.97 |",
            f"| KV of {memory['requests']} over one donor of {memory['tokens']:,} tokens "
            f"| separate caches | {memory['saving']:.0%} saved | 80% |",
            f'| first token with `repair="eager"`, {repair["tokens"]:,} tokens | full prefill '
            f"| {repair['ttft_speedup']:.1f}× | – |",
            f"| KL of the answer's first / second half | full prefill "
            f"| {repair['kl_first_half']:.3f} / {repair['kl_second_half']:.3f} | – / 0.05 |",
            f"| time per token during repair | without repair "
            f"| {repair['tpot_ratio_during_repair']:.2f}× | 2× |",
        )
    )


def _retention(record: dict[str, Any] | None) -> str:
    if record is None:
        return "Less KV: not measured."
    rows = [
        "| less KV | MB | KL | top-1 | PGR |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in record["retention"]:
        layers = ", fewer the deeper the layer" if row["decay"] else ""
        name = f"{row['retention']:.0%} of a request's{layers}"
        rows.append(_retention_row(name, row["kv_bytes"], row))
    rows += [
        _retention_row(f"donors in {row['format']}", row["donor_bytes"], row)
        for row in record["donors"]
    ]
    rows.append(
        f"\n`{record['scenario']}`, {record['n']} papers of {record['tokens']:,} tokens; "
        "`semshare bench retention`."
    )
    return "\n".join(rows)


def _retention_row(name: str, n_bytes: int, row: dict[str, Any]) -> str:
    pgr = "–" if row["pgr"] is None else f"{row['pgr']:.2f}"
    return f"| {name} | {n_bytes / 1e6:.1f} | {row['kl']:.4f} | {row['top1']:.3f} | {pgr} |"


def _storage(record: dict[str, Any] | None) -> str:
    """Tiers against a full prefill."""
    if record is None:
        return "Storage: not measured."
    rows = [
        f"| a donor of {record['tokens']:,} tokens | first token | full prefill | speedup | goal |",
        "| --- | --- | --- | --- | --- |",
    ]
    full_s = record["compute_s"]
    for tier, name, goal in (("disk", "on disk", 5), ("redis", "in Redis, loopback", 4)):
        for field, what, aim in (("", "its own prompt", f"{goal}×"), ("moved_", "moved text", "–")):
            seconds = record[f"{tier}_{field}s"]
            if seconds is None:
                continue
            rows.append(
                f"| {name}: {what} | {seconds:.2f} s | {full_s:.1f} s "
                f"| {full_s / seconds:.0f}× | {aim} |"
            )
    rows.append(
        f"\nWith moved text in the pool {record['disk_resident_s']:.2f} s. A prompt that reuses "
        f"{record['wanted_fraction']:.0%} of the donor reads {record['bytes_read_fraction']:.0%} "
        f"of its bytes.\n{record['restart_donors']:,} donors on disk can be found "
        f"{record['restart_s']:.1f} s after a start (goal 2 s)."
    )
    return "\n".join(rows)


def _service(record: dict[str, Any] | None) -> str:
    if record is None:
        return "Service: not measured."
    return (
        f"The service under {record['clients']} streaming clients for {record['seconds']:.0f} s, "
        f"over a stub and the model: {record['requests']:,} answers,\n"
        f"{record['errors']} errors but 429, {record['slots_leaked']} slots leaked, `/health` "
        f"{record['health_p99_ms']:.0f} ms (p99, goal 50). To a request of 8 clients it adds\n"
        f"{record['overhead_p50_ms']:.1f} ms (p50, goal 3) and {record['overhead_p99_ms']:.1f} ms "
        "(p99, goal 15)."
    )


def _lookup(record: dict[str, Any] | None) -> str:
    """By number of donors; the last row is no measurement."""
    if record is None:
        return "Lookup: not measured."
    rows = [
        "| donors | lookup, p50 | p99 | prefixes / spans / prompts | recall@1 | bytes a donor |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for point in filter(None, (*record["points"], record["extrapolated"])):
        parts = " / ".join(
            f"{point[f'{part}_p50_ms']:.2f}" for part in ("prefixes", "spans", "prompts")
        )
        measured = "recall_at_1" in point
        rows.append(
            f"| {point['donors']:,}{'' if measured else ' (extrapolated)'} "
            f"| {point['p50_ms']:.2f} ms | {point['p99_ms']:.2f} ms | {parts} ms "
            f"| {point['recall_at_1'] if measured else ABSENT} | {point['bytes_per_donor']:,} |"
        )
    rows.append(
        f"\nFinding stored donors of {record['tokens']:.0f} tokens; goals at 100,000: 2 ms (p99), "
        f"recall 0.98. {record['index_donors']:,} donors can be found\n"
        f"{record['index_s']:.1f} s after their ids and vectors are in memory."
    )
    return "\n".join(rows)


def _start(record: dict[str, Any] | None) -> str:
    if record is None:
        return "Start: not measured."
    return (
        f"A new process has the model ready in {record['ready_s']:.1f} s "
        f"(median of {record['n']}): {record['imports_s']:.1f} s are imports,\n"
        f"{record['torch_s']:.1f} s of them torch's, and {record['load_s']:.1f} s is loading."
    )


def kernel_tables() -> str:
    """Those of kernels/README.md: each measurement with its goal."""
    records = _records(*KERNELS)
    missing = [name for name in KERNELS if name not in records]
    if missing:
        return f"Not measured: {', '.join(missing)}."
    decode, kernels, check = (records[name] for name in KERNELS)
    mixed, matching = kernels["mixed_prefill"], kernels["token_matching"]
    with_encoding = matching["faiss_top1_s"] / (matching["encode_s"] + matching["top1_s"])
    speedups = {
        (row["dtype"], row["batch"], row["shared"]): f"{row['speedup']:.1f}×"
        for row in decode["rows"]
    }
    lengths = (1024, 2048, 4096)
    rows = [
        "| what | against | measured | goal |",
        "| --- | --- | --- | --- |",
        *(
            f"| shared decode, 32 × {' / '.join(f'{n:,}' for n in lengths)}, {dtype} | torch SDPA "
            f"on each sequence's own copy | "
            f"{' / '.join(speedups[dtype, 32, n] for n in lengths)} | {goal}× |"
            for dtype, goal in (("bfloat16", 12), ("float32", 8))
        ),
        f"| shared decode, 64 × 16,384, bfloat16 | the same | {speedups['bfloat16', 64, 16384]} "
        "| 20× |",
        "| its shared phase | two plain products of the same shapes | "
        f"{decode['gemm_fraction_16k']:.2f} of their rate | 0.60 |",
        f"| decode without sharing | torch SDPA | {decode['unshared_ratio']:.2f}× | 0.95× |",
        f"| mixed prefill, 500 × 5,000 in 40 segments | gather, move, mask | "
        f"{mixed['speedup']:.2f}×, largest temporary {mixed['largest_temporary']:.2f} of the KV "
        "| 1.3×, below 1 |",
        "| top-1 of 5,000 × 5,000 codes | FAISS's exact search on the same codes | "
        f"{matching['speedup']:.2f}×; {with_encoding:.2f}× with encoding on our side alone | 1× |",
        "| realign 5,000 tokens × 30 layers | copying | "
        f"{kernels['realign']['copy_fraction']:.0%} of the bandwidth | 50% |",
    ]
    crossover = [
        "| heads | type | sequences | sharing pays from, measured | by the cost model |",
        "| --- | --- | --- | --- | --- |",
        *(
            f"| {row['heads']} / {row['kv_heads']} × {row['d']} | {row['dtype']} "
            f"| {row['readers']} | {_keys(row['measured_keys'])} | {_keys(row['predicted_keys'])} |"
            for row in decode["crossover"]
        ),
    ]
    machine = decode["machine"]
    where = (
        f"On {machine['cpu']}, {machine['cores']} cores{'' if machine['amx'] else ', no AMX'}, "
        f"torch {decode['versions']['torch']}. {_variants(check)} of {_kernel_count(check)} "
        f"Triton kernels compiled, each for three GPUs: {'all' if check['ok'] else 'not all'} "
        "without a spill."
    )
    return "\n\n".join(("\n".join(rows), "\n".join(crossover), where))


def _keys(n: int | None) -> str:
    return "never" if n is None else f"{n} keys"


def _variants(check: dict[str, Any]) -> str:
    return f"{len({(report['kernel'], report['config']) for report in check['kernels']})} variants"


def _kernel_count(check: dict[str, Any]) -> int:
    return len({report["kernel"] for report in check["kernels"]})


def main(arguments: list[str]) -> None:
    """Print the tables, or write them into the READMEs."""
    if "--write" not in arguments:
        print(f"{tables()}\n\n{kernel_tables()}")  # noqa: T201 - what it is for
        return
    write()


def write() -> None:
    """Put the tables between the markers."""
    for path, text in ((README, tables()), (KERNELS_README, kernel_tables())):
        content = path.read_text()
        before, rest = content.split(BEGIN)
        after = rest.split(END)[1]
        path.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}")


if __name__ == "__main__":
    main(sys.argv[1:])
