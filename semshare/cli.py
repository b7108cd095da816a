"""The `semshare` command. With `--json` the last line of standard output is one JSON record.

What a person should know besides goes to standard error. A `SemShareError` is a message there
and exit code 2; what asks a service has one more (`cli_client`). Models and services are imported
by the commands that use them, so that `semshare --help` answers at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from semshare.cli_bench import bench
from semshare.cli_client import ApiKey, complete_remotely, match, summary
from semshare.cli_donors import donor_commands
from semshare.cli_eval import evaluate
from semshare.cli_keys import keys
from semshare.cli_options import (
    Chat,
    Device,
    DonorFiles,
    Dtype,
    Json,
    Mode,
    Model,
    PolicyFields,
    PromptArgument,
    as_prompt,
    parse_policy,
    read_donor,
    read_prompt,
)
from semshare.cli_output import emit, print_rows, say, show, starting
from semshare.cli_top import top
from semshare.errors import InvalidRequest, SemShareError
from semshare.evaluation.progress import load_engine, status_line
from semshare.types import DonorInfo, GenerateOptions

if TYPE_CHECKING:
    from semshare import SemShare

app = typer.Typer(
    name="semshare",
    help="Semantic KV-cache reuse for large language models.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
kernels = typer.Typer(help="What the GPU's kernels compile to.", no_args_is_help=True)
app.add_typer(bench, name="bench")
app.add_typer(evaluate, name="eval")
app.add_typer(kernels, name="kernels")
app.add_typer(keys, name="keys")
app.add_typer(donor_commands, name="donors")
app.command()(match)
app.command()(top)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command and exit.

    0 done, 1 something is missing, 2 an error that was explained, 3 no answer of a service for now.
    """
    try:
        app(args=arguments)
    except SemShareError as error:
        typer.echo(f"semshare: {error}", err=True)
        raise SystemExit(2) from None


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        import semshare  # noqa: PLC0415 - only here

        typer.echo(f"semshare {semshare.__version__}")
        raise typer.Exit


@app.command(
    # The settings object itself reads the flags, so that there is one list of them.
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    add_help_option=False,
)
def serve(context: typer.Context) -> None:
    """Serve one model over HTTP (`semshare serve --help` lists the settings)."""
    from semshare_service.serve import run  # noqa: PLC0415 - see the module's docstring
    from semshare_service.settings import load_settings  # noqa: PLC0415

    settings, parsed = load_settings(context.args)

    def announce(url: str) -> None:
        if parsed.json:
            emit({"url": url, "model": settings.model})

    run(settings, on_listening=announce)


@app.command()
def complete(
    prompt: PromptArgument = None,
    donor: DonorFiles = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of the answer.")] = 64,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    top_p: Annotated[float, typer.Option(help="Share of probability to draw from.")] = 1.0,
    top_k: Annotated[int, typer.Option(help="Tokens to draw from; 0 is all.")] = 0,
    seed: Annotated[int | None, typer.Option(help="Of the draws.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="End before it. Repeatable.")] = None,
    mode: Mode = None,
    policy: PolicyFields = None,
    chat: Chat = False,
    model: Model = "smollm2",
    device: Device = "cpu",
    dtype: Dtype = "auto",
    url: Annotated[
        str | None,
        typer.Option(help="A running service, which answers from its own donors and model."),
    ] = None,
    api_key: ApiKey = None,
    namespace: Annotated[
        str | None, typer.Option(help="With --url: part of the tenant's donors.")
    ] = None,
    json_output: Json = False,
) -> None:
    """Answer a prompt, reusing the KV of the donors that are given, or of a running service's."""
    options: GenerateOptions = {
        "max_tokens": max_tokens,
        "policy": parse_policy(mode, policy),
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "seed": seed,
        "stop": stop or (),
    }
    wanted = as_prompt(read_prompt(prompt), chat)
    if url is not None:
        if donor or (model, device, dtype) != ("smollm2", "cpu", "auto"):
            raise InvalidRequest(
                "--donor, --model, --device and --dtype are of a model loaded here, a service has "
                "its own: leave out --url, or give it donors with `semshare donors put`"
            )
        if namespace is not None:
            options["namespace"] = namespace
        complete_remotely(wanted, options, url=url, api_key=api_key, json_output=json_output)
        return
    if namespace is not None or api_key is not None:
        raise InvalidRequest("--namespace and --api-key are for a running service: add --url")
    from semshare_service.replies import provenance_body  # noqa: PLC0415 - see above

    engine, donors = _engine_with_donors(model, device, dtype, donor, chat)
    answer = None
    for delta in engine.stream(wanted, **options):
        answer = delta.answer
        if not json_output:
            typer.echo(delta.text, nl=False)
    if answer is None:
        raise AssertionError("a stream ends with its answer")
    record = {
        "text": answer.text,
        "finish_reason": answer.finish_reason,
        "prompt_tokens": answer.prompt_tokens,
        "completion_tokens": len(answer.token_ids),
        **provenance_body(answer.provenance),
        "timings": asdict(answer.timings),
        "donors": [asdict(info) for info in donors],
        "model": engine.model_name,
    }
    if json_output:
        emit(record)
        return
    typer.echo()
    say(summary(answer.timings.ttft_s, record["tokens"]))


@app.command()
def inspect(
    prompt: PromptArgument = None,
    donor: DonorFiles = None,
    mode: Mode = None,
    policy: PolicyFields = None,
    chat: Chat = False,
    model: Model = "smollm2",
    device: Device = "cpu",
    dtype: Dtype = "auto",
    json_output: Json = False,
) -> None:
    """Show which tokens of a prompt would be reused from the donors. The prompt is not run."""
    from semshare.engine.prompts import TokenTexts  # noqa: PLC0415 - see above
    from semshare.token_map import print_plan  # noqa: PLC0415
    from semshare_service.replies import match_body  # noqa: PLC0415

    reuse = parse_policy(mode, policy)
    wanted = as_prompt(read_prompt(prompt), chat)
    engine, donors = _engine_with_donors(model, device, dtype, donor, chat)
    plan = engine.plan(wanted, policy=reuse)
    record = match_body(plan)
    if json_output:
        emit(record | {"donors": [asdict(info) for info in donors], "model": engine.model_name})
        return
    files = {info.id: str(path) for info, path in zip(donors, donor or (), strict=True)}
    print_plan(Console(), record, TokenTexts(engine.tokenizer)(plan.ids), files)


@app.command()
def doctor(json_output: Json = False) -> None:
    """Say what this machine has of what semshare can use. Exits with 1 if something is missing."""
    from semshare.doctor import run_checks  # noqa: PLC0415 - loads torch and faiss

    checks = run_checks()
    healthy = all(check.state != "missing" for check in checks)
    if json_output:
        emit({"ok": healthy, "checks": [asdict(check) for check in checks]})
    else:
        styles = {"ok": "green", "absent": "dim", "missing": "bold red"}
        table = Table("", "", box=None, pad_edge=False)
        table.add_column("found", overflow="fold")
        table.add_column("fix", overflow="fold")
        for check in checks:
            state = Text(check.state, style=styles[check.state])
            table.add_row(state, *map(Text, (check.name, check.detail, check.fix)))
        Console().print(table)
    if not healthy:
        raise typer.Exit(1)


@app.command()
def demo(json_output: Json = False) -> None:
    """The main job on the bundled model: donors in, related prompts answered."""
    with starting():
        from semshare.evaluation.demo import run_demo  # noqa: PLC0415 - see above
    record = run_demo(json_output=json_output)
    if json_output:
        emit(record)


@kernels.command("check")
def kernels_check(json_output: Json = False) -> None:
    """Compile every kernel for three GPU generations, without a GPU. Exits with 1 on a problem."""
    with starting():
        from semshare.evaluation.kernel_check import run_check, summary  # noqa: PLC0415 - see above
    record = run_check()
    if not json_output:
        print_rows(summary(record["kernels"]))
    show(record, json_output)
    if not record["ok"]:
        raise typer.Exit(1)


def _engine_with_donors(
    model: str, device: str, dtype: str, files: list[Path] | None, chat: bool
) -> tuple[SemShare, list[DonorInfo]]:
    """A loaded engine that remembers the files' texts, and what it made of them, in order."""
    texts = [read_donor(path) for path in files or ()]
    engine = load_engine(model, device=device, dtype=dtype)
    donors = []
    for number, text in enumerate(texts, 1):
        with status_line(f"remembering donor {number} of {len(texts)}…"):
            donors.append(engine.remember(as_prompt(text, chat)))
    return engine, donors


if __name__ == "__main__":
    main()
