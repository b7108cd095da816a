"""The commands `semshare bench …`. Each ends with one record; see `docs/evaluation.md`."""

from __future__ import annotations

from typing import Annotated

import typer

from semshare.cli_options import Dtype, Json, Limit, Model, Repeats, SplitName
from semshare.cli_output import print_rows, show, show_parts, starting

bench = typer.Typer(help="Measure speed, with fidelity in the same run.", no_args_is_help=True)


@bench.command("ttft")
def bench_ttft(
    scenario: Annotated[str, typer.Option(help="prefix, shifted, multi_donor, paraphrase …")],
    tokens: Annotated[int | None, typer.Option(min=1, help="Length of a target prompt.")] = None,
    limit: Limit = None,
    repeats: Repeats = 3,
    model: Model = "smollm2",
    dtype: Dtype = "auto",
    split: SplitName = "test",
    json_output: Json = False,
) -> None:
    """Time to first token with and without reuse; no speed where fidelity misses its bound."""
    with starting():
        from semshare.evaluation.bench import run_ttft  # noqa: PLC0415 - loads torch
        from semshare.evaluation.bounds import FidelityMissed  # noqa: PLC0415
        from semshare.evaluation.texts import split_named  # noqa: PLC0415
    try:
        record = run_ttft(
            scenario,
            tokens=tokens,
            limit=limit,
            repeats=repeats,
            model=model,
            dtype=dtype,
            split=split_named(split),
        )
    except FidelityMissed as error:
        show(error.record, json_output)  # what was measured, without speeds
        raise
    show(record, json_output)


@bench.command("kernels")
def bench_kernels(repeats: Repeats = 15, json_output: Json = False) -> None:
    """Mixed prefill, token matching and re-alignment, each against its plain alternative."""
    with starting():
        from semshare.evaluation.bench_kernels import run_kernels  # noqa: PLC0415
    show_parts(run_kernels(repeats=repeats), json_output)


@bench.command("decode")
def bench_decode(repeats: Repeats = 9, json_output: Json = False) -> None:
    """Shared-prefix decode against attention over each sequence's own copy."""
    with starting():
        from semshare.evaluation.bench_decode import run_decode  # noqa: PLC0415
    record = run_decode(repeats=repeats)
    if not json_output:
        print_rows(record["rows"])
    show(record, json_output)


@bench.command("retention")
def bench_retention(
    scenario: Annotated[str, typer.Option(help="shifted or paraphrase.")] = "shifted",
    limit: Annotated[int, typer.Option(min=1, help="Use only so many examples.")] = 4,
    model: Model = "smollm2",
    dtype: Dtype = "auto",
    split: SplitName = "test",
    json_output: Json = False,
) -> None:
    """What prompts cut to a share of their KV cost in fidelity, and donors in int8."""
    with starting():
        from semshare.evaluation.bench_retention import run_retention  # noqa: PLC0415
        from semshare.evaluation.texts import split_named  # noqa: PLC0415
    record = run_retention(
        scenario=scenario, limit=limit, model=model, dtype=dtype, split=split_named(split)
    )
    if not json_output:
        print_rows(record["retention"])
        print_rows(record["donors"])
    show(record, json_output)


@bench.command("start")
def bench_start(
    repeats: Annotated[int, typer.Option(min=1, help="Processes to start.")] = 5,
    model: Model = "smollm2",
    dtype: Dtype = "auto",
    json_output: Json = False,
) -> None:
    """Time from a new process to a model that is ready."""
    with starting():
        from semshare.evaluation.start import run_start  # noqa: PLC0415
    show(run_start(model=model, dtype=dtype, repeats=repeats), json_output)


@bench.command("memory")
def bench_memory(
    requests: Annotated[int, typer.Option(min=1, help="Answered at the same time.")] = 8,
    tokens: Annotated[int, typer.Option(min=1, help="Length of a prompt.")] = 4000,
    answer_tokens: Annotated[int, typer.Option(min=1, help="Length of an answer.")] = 64,
    model: Model = "smollm2",
    dtype: Dtype = "auto",
    split: SplitName = "test",
    json_output: Json = False,
) -> None:
    """KV of several requests over one donor, against a cache of its own for each of them."""
    with starting():
        from semshare.evaluation.bench_memory import run_memory  # noqa: PLC0415
        from semshare.evaluation.texts import split_named  # noqa: PLC0415
    record = run_memory(
        requests=requests,
        tokens=tokens,
        answer_tokens=answer_tokens,
        model=model,
        dtype=dtype,
        split=split_named(split),
    )
    show(record, json_output)


@bench.command("lookup")
def bench_lookup(
    donors: Annotated[int, typer.Option(min=100, help="That are looked among.")] = 100_000,
    targets: Annotated[int, typer.Option(min=4, help="Prompts that are looked up.")] = 1000,
    model: Model = "smollm2",
    json_output: Json = False,
) -> None:
    """Finding donors among very many: time, recall, and the indexes' memory."""
    with starting():
        from semshare.evaluation.bench_lookup import run_lookup  # noqa: PLC0415
    record = run_lookup(donors=donors, targets=targets, model=model)
    if not json_output:
        print_rows(record["points"])
    show(record, json_output)


@bench.command("repair")
def bench_repair(
    tokens: Annotated[int, typer.Option(min=1, help="Length of a prompt.")] = 1600,
    limit: Annotated[int, typer.Option(min=1, help="Prompts.")] = 4,
    repeats: Repeats = 2,
    answer_tokens: Annotated[int, typer.Option(min=8, help="Length of an answer.")] = 128,
    model: Model = "smollm2",
    dtype: Dtype = "auto",
    split: SplitName = "test",
    json_output: Json = False,
) -> None:
    """What repair while decoding does to an answer, position by position, and what it costs."""
    with starting():
        from semshare.evaluation.bench_repair import run_repair  # noqa: PLC0415
        from semshare.evaluation.texts import split_named  # noqa: PLC0415
    record = run_repair(
        tokens=tokens,
        limit=limit,
        repeats=repeats,
        answer_tokens=answer_tokens,
        model=model,
        dtype=dtype,
        split=split_named(split),
    )
    show(record, json_output)


@bench.command("throughput")
def bench_throughput(
    part: Annotated[
        list[str] | None,
        typer.Option(help="transformers, decode, decode-8k or semantic. Repeatable; all if none."),
    ] = None,
    requests: Annotated[int, typer.Option(min=1, help="With a common prefix.")] = 32,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Requests that transformers answers; scaled to all.")
    ] = None,
    tokens: Annotated[int, typer.Option(min=1, help="Of the prefix.")] = 2000,
    long_tokens: Annotated[int, typer.Option(min=1, help="Of the prefix in decode-8k.")] = 7900,
    answer_tokens: Annotated[int, typer.Option(min=1, help="Length of an answer.")] = 64,
    donors: Annotated[int, typer.Option(min=1, help="Rewritten passages.")] = 4,
    repeats: Repeats = 9,
    model: Model = "smollm2",
    dtype: Dtype = "auto",
    split: SplitName = "test",
    json_output: Json = False,
) -> None:
    """Requests that share a prefix or a donor, answered together."""
    with starting():
        from semshare.evaluation.bench_throughput import PARTS, run_throughput  # noqa: PLC0415
        from semshare.evaluation.texts import split_named  # noqa: PLC0415
    record = run_throughput(
        parts=part or PARTS,
        requests=requests,
        limit=limit,
        tokens=tokens,
        long_tokens=long_tokens,
        answer_tokens=answer_tokens,
        donors=donors,
        repeats=repeats,
        model=model,
        dtype=dtype,
        split=split_named(split),
    )
    show(record, json_output)


@bench.command("service")
def bench_service(
    clients: Annotated[int, typer.Option(min=1, help="That stream at the same time.")] = 200,
    seconds: Annotated[float, typer.Option(min=0.1, help="That each load lasts.")] = 60.0,
    model: Model = "smollm2",
    split: SplitName = "test",
    json_output: Json = False,
) -> None:
    """The REST service under many clients, over a stub and the model, and what it adds."""
    with starting():
        from semshare.evaluation.texts import split_named  # noqa: PLC0415
        from semshare_service.bench.run import run_service  # noqa: PLC0415
    record = run_service(clients=clients, seconds=seconds, model=model, split=split_named(split))
    if not json_output:
        print_rows(record["loads"])
    show(record, json_output)
