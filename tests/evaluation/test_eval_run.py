import json
from dataclasses import dataclass, fields, replace
from pathlib import Path

import pytest
from documented import undocumented
from filelock import FileLock
from tiny import tiny_engine

from semshare import InvalidRequest, SemShare
from semshare.evaluation.material import Example
from semshare.evaluation.methods.base import Outcome, Task
from semshare.evaluation.methods.reuse import FULL, PREFIX, SEMSHARE
from semshare.evaluation.rows import Row, RowFile
from semshare.evaluation.run import LOCK, RUN, RunSpec, run_evaluation

SPEC = RunSpec(("facts",), limit=2)
TIMES = {"ttft_s", "lookup_s", "plan_s", "load_s", "prefill_s", "decode_s", "build_s"}


@dataclass(frozen=True, slots=True)
class NeverApplies:
    name: str = "never"
    about: str = "applies to nothing"

    def applies(self, example: Example) -> bool:
        return False

    def run(self, engine: SemShare, example: Example, task: Task) -> Outcome:
        raise AssertionError("it does not apply")


def timeless(row: Row) -> dict[str, object]:
    return {name: value for name, value in row.to_json().items() if name not in TIMES}


def test_every_method_has_a_row_of_every_example_and_full_is_the_measure(tmp_path: Path) -> None:
    engine = tiny_engine()
    rows, setting = run_evaluation(
        SPEC, [SEMSHARE, PREFIX, NeverApplies(), SEMSHARE], tmp_path, engine=engine, progress=False
    )
    assert sorted({row.method for row in rows}) == ["full", "prefix", "semshare"]
    assert len(rows) == 2 * 3
    assert list(setting["methods"]) == ["full", "semshare", "prefix", "never"]
    for row in rows:
        assert row.ttft_s > 0
        assert row.build_s > 0
        assert row.sources is not None
        assert sum(count for _, count in row.sources) == row.tokens
        assert len(row.kl_by_position) > 0
        assert row.right is not None
        if row.method == "full":
            assert (row.kl, row.top1, row.hit_rate, row.compute_fraction) == (0.0, 1.0, 0.0, 1.0)
            assert row.own_kv_bytes == row.kv_bytes > 0
        if row.method == "semshare":
            assert row.kl > 0
            assert row.hit_rate > 0.3
            assert row.compute_fraction < 0.7
            assert row.own_kv_bytes <= row.kv_bytes
    assert engine.stats()["donors"] == 0


def test_a_run_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    engine = tiny_engine()
    whole, _ = run_evaluation(SPEC, [PREFIX], tmp_path / "whole", engine=engine, progress=False)
    before, _ = run_evaluation(SPEC, [FULL], tmp_path / "cut", engine=engine, progress=False)
    kept = list(before)
    path = tmp_path / "cut" / "rows.jsonl"
    path.write_bytes(path.read_bytes() + b'{"dataset": "fac')  # the process was killed here
    after, _ = run_evaluation(SPEC, [PREFIX], tmp_path / "cut", engine=engine, progress=False)
    assert after[: len(kept)] == kept
    assert sorted(row.key for row in after) == sorted(row.key for row in whole)
    by_key = {row.key: row for row in after}
    assert [timeless(by_key[row.key]) for row in whole] == [timeless(row) for row in whole]
    size = path.stat().st_size
    run_evaluation(SPEC, [PREFIX, FULL], tmp_path / "cut", engine=engine, progress=False)
    assert path.stat().st_size == size


def test_rows_of_another_run_are_not_mixed_in(tmp_path: Path) -> None:
    engine = tiny_engine()
    run_evaluation(SPEC, [FULL], tmp_path, engine=engine, progress=False)
    with pytest.raises(InvalidRequest, match="seed 0, not 1"):
        run_evaluation(replace(SPEC, seed=1), [FULL], tmp_path, engine=engine, progress=False)
    path = tmp_path / "rows.jsonl"
    first = json.loads(path.read_text().splitlines()[0])
    path.write_text(json.dumps(first | {"unheard_of": 1}) + "\n")
    with pytest.raises(InvalidRequest, match="unheard_of"):
        RowFile(path)


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"datasets": ("nothing",)}, "unknown dataset"),
        ({"datasets": ("facts",), "scenarios": ("long",)}, "has no scenario long"),
        ({"datasets": ("facts",), "limit": 0}, "limit is 0"),
        ({"datasets": ("facts",), "lengths": (0,)}, "tokens is 0"),
    ],
)
def test_a_run_of_nothing_is_refused(values: dict[str, object], match: str) -> None:
    with pytest.raises(InvalidRequest, match=match):
        RunSpec(**values)  # type: ignore[arg-type]


def test_every_field_of_a_row_is_explained() -> None:
    assert undocumented(field.name for field in fields(Row)) == []


def test_a_row_survives_json() -> None:
    values = {field.name: None for field in fields(Row)} | {"sources": [("fresh", 3)]}
    row = Row(**values)  # type: ignore[arg-type]
    assert Row.from_json(json.loads(json.dumps(row.to_json()))) == row


def test_two_runs_do_not_write_into_one_folder(tmp_path: Path) -> None:
    with FileLock(tmp_path / LOCK), pytest.raises(InvalidRequest, match="another run writes"):
        run_evaluation(SPEC, [PREFIX], tmp_path, engine=tiny_engine(), progress=False)
    assert not (tmp_path / RUN).exists()
