"""The README says what was measured, and names commands that exist."""

import importlib
import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from tiny import tiny_engine

from semshare import SemShare

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


@pytest.fixture
def benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    modules = {name: importlib.import_module(name) for name in ("run", "tables")}
    return SimpleNamespace(**modules)


def test_figures_are_those_of_the_records(benchmarks):
    tables = benchmarks.tables
    pages = {tables.README: tables.tables(), tables.KERNELS_README: tables.kernel_tables()}
    for path, text in pages.items():
        shown = path.read_text().split(tables.BEGIN)[1].split(tables.END)[0].strip()
        assert shown == text.strip(), "run: python benchmarks/tables.py --write"


def test_every_benchmark_has_a_place_in_the_tables(benchmarks):
    tables = benchmarks.tables
    shown = {*tables.ORDER, *tables.OTHERS, *tables.SERVING, *tables.KERNELS}
    assert shown == set(benchmarks.run.COMMANDS)


def test_a_missing_record_is_a_row(benchmarks, monkeypatch, tmp_path):
    monkeypatch.setattr(benchmarks.tables, "RESULTS", tmp_path)
    text = benchmarks.tables.tables()
    columns = text.splitlines()[0].count("|")
    for scenario, tokens in (("prefix", "4,000"), ("shifted", "5,000"), ("unrelated", "1,200")):
        row = next(line for line in text.splitlines() if f"`{scenario}` | {tokens} |" in line)
        assert "not measured" in row
        assert row.count("|") == columns
    assert "Swapped facts: not measured." in text
    assert "Other methods: not measured." in text
    assert "Policies: not measured." in text
    assert "Less KV: not measured." in text
    for name in ("Start", "Storage", "Lookup", "Service"):
        assert f"{name}: not measured." in text
    assert "Lookup: not measured." in text
    assert "Requests together: not measured (throughput, memory, repair)." in text


def test_the_rows_of_less_kv(benchmarks):
    quality = {"kl": 0.00864, "top1": 0.975, "pgr": None, "n": 2}
    record = {
        "scenario": "shifted",
        "tokens": 1166,
        "n": 2,
        "retention": [{"retention": 0.8, "decay": 1.4, "kv_bytes": 43_500_000, **quality}],
        "donors": [{"format": "int8", "donor_bytes": 14_750_000, **quality}],
    }
    text = benchmarks.tables._retention(record)
    row = "| 80% of a request's, fewer the deeper the layer | 43.5 | 0.0086 | 0.975 | – |"
    assert row in text
    assert "| donors in int8 | 14.8 | 0.0086 | 0.975 | – |" in text
    assert "2 papers of 1,166 tokens" in text


def test_records_of_two_machines_are_told_apart(benchmarks, monkeypatch, tmp_path):
    for file in (ROOT / "benchmarks" / "results").glob("*.json"):
        kept = json.loads(file.read_text())
        if file.stem == "facts":
            kept["record"]["machine"]["cpu"] = "Another CPU"
        (tmp_path / file.name).write_text(json.dumps(kept))
    assert "facts: on" not in benchmarks.tables.tables()
    monkeypatch.setattr(benchmarks.tables, "RESULTS", tmp_path)
    assert "facts: on Another CPU, 2 cores" in benchmarks.tables.tables()


def test_a_run_keeps_its_record_and_writes_the_tables(benchmarks, monkeypatch, tmp_path):
    run, written = benchmarks.run, []
    monkeypatch.setattr(run, "RESULTS", tmp_path)
    monkeypatch.setattr(run.tables, "write", lambda: written.append(sorted(tmp_path.iterdir())))
    done = SimpleNamespace(stdout='text\n{"n": 1}\n', returncode=0)
    monkeypatch.setattr(run.subprocess, "run", lambda *_, **__: done)
    assert run.main(["facts"]) == 0
    assert json.loads((tmp_path / "facts.json").read_text())["record"] == {"n": 1}
    assert written == [[tmp_path / "facts.json"]]


def test_an_unknown_benchmark_is_a_message(benchmarks, capsys):
    assert benchmarks.run.main(["absent"]) == 2
    assert "unknown: absent. Choose from ttft-shifted-1200" in capsys.readouterr().err


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    named = set(re.findall(r"`?make ([a-z]+)", README)) - {"it"}
    assert named
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in named)


def test_the_first_python_block_shows_reuse(monkeypatch, capsys):
    monkeypatch.setattr(SemShare, "from_pretrained", lambda name: tiny_engine())
    names = {}
    exec(re.findall(r"```python\n(.*?)```", README, re.DOTALL)[0], names)  # noqa: S102 - ours
    assert names["answer"].provenance.counts["span"] > 100
    assert "'span': " in capsys.readouterr().out


def test_linked_files_exist():
    links = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    assert links
    assert all((ROOT / link).exists() for link in links)
