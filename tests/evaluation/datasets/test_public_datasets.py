import importlib.util
import json
import os
import sys
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sizes import body, material

from semshare.errors import InvalidRequest, ModelNotAvailable
from semshare.evaluation.datasets import DATASETS, dataset_named
from semshare.evaluation.datasets.public import MOST_RECORDS, PUBLIC
from semshare.evaluation.material import Example
from semshare.evaluation.texts import SPLITS

LONG = "The first {0} of {1}. Then came the second {0}. Last was a third {0}, said Reed."
NAMES = [dataset.name for dataset in PUBLIC]


def text(number: int) -> str:
    return LONG.format("part", 100 + number)


def record(name: str, number: int) -> dict[str, object]:
    """One record of a set, as it is published."""
    fields: dict[str, tuple[str, str]] = {
        "wikihow": ("text", "headline"),
        "samsum": ("dialogue", "summary"),
        "pubmed": ("article", "abstract"),
        "booksum": ("chapter", "summary"),
        "big_patent": ("description", "abstract"),
        "cnn_dailymail": ("article", "highlights"),
        "multi_news": ("document", "summary"),
        "xsum": ("document", "summary"),
    }
    if name in fields:
        document, summary = fields[name]
        return {document: text(number), summary: f"gold {number}", "id": "x"}
    if name == "mmlu":
        return {"question": text(number), "choices": ["w", "x", "y", "z"], "answer": number % 4}
    asked = {"input": "Who said so?"} if name == "qasper" else {"input": ""}
    return {"context": text(number), "answers": [f"gold {number}", "other"], **asked}


def write(folder: Path, name: str, records: list[Any]) -> Path:
    file = folder / f"{name}.jsonl"
    file.write_text("".join(f"{json.dumps(one)}\n" for one in records), encoding="utf-8")
    return file


def only(name: str, folder: Path, fields: dict[str, object]) -> Example:
    """The example of a set of one record, which is in one split."""
    write(folder, name, [fields])
    found = []
    for split in SPLITS:
        with suppress(InvalidRequest):
            asked = material(split=split)
            found += dataset_named(name).build("instruction", asked, 1, folder)
    (example,) = found
    return example


@pytest.fixture(autouse=True)
def _bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the variable nor the package, whatever this machine has."""
    monkeypatch.delenv("SEMSHARE_DATA", raising=False)
    monkeypatch.delenv("HF_DATASETS_OFFLINE", raising=False)
    real_spec, real_version = importlib.util.find_spec, metadata.version

    def find_spec(name: str) -> object:
        return None if name == "datasets" else real_spec(name)

    def version(name: str) -> str:
        if name == "datasets":
            raise metadata.PackageNotFoundError(name)
        return real_version(name)

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)
    monkeypatch.setattr(metadata, "version", version)


def test_the_papers_sets_are_registered() -> None:
    assert set(NAMES) == set(
        "multi_news wikihow samsum qasper pubmed booksum big_patent lcc mmlu cnn_dailymail "
        "xsum".split()
    )
    assert set(NAMES) < set(DATASETS)
    longbench = {"multi_news": 512, "samsum": 128, "qasper": 128, "lcc": 64}
    assert {name: dataset_named(name).max_tokens for name in longbench} == longbench
    metrics = {name: dataset_named(name).metric for name in ("qasper", "lcc", "mmlu", "xsum")}
    assert list(metrics.values()) == ["token_f1", "edit_similarity", "accuracy", "rouge_l"]


@pytest.mark.parametrize("name", NAMES)
def test_a_set_is_read_by_its_public_schema(name: str, tmp_path: Path) -> None:
    write(tmp_path, name, [record(name, number) for number in range(40)])
    dataset = dataset_named(name)
    assert dataset.presence(tmp_path).found == str(tmp_path / f"{name}.jsonl")
    for scenario in ("instruction", "overlap-60", "entities"):
        examples = dataset.build(scenario, material(), 5, tmp_path)
        assert examples == dataset.build(scenario, material(), 5, tmp_path)
        assert len({example.id for example in examples}) == 5
        assert len(dataset.build(scenario, material(), 1, tmp_path)) == 1
        for example in examples:
            number = int(example.id) - 1  # lines count from 1
            assert text(number) in body(example.target)
            if name == "mmlu":
                assert example.gold == "ABCD"[number % 4]
                assert "\nC. y\n" in body(example.target)
            else:
                assert example.gold == f"gold {number}"
            longbench = name in ("qasper", "lcc")
            assert example.references == (("other",) if longbench else ())
            assert ("Who said so?" in body(example.no_context)) == (name == "qasper")
            assert text(number) not in body(example.no_context)


def test_longbenchs_prompts_word_for_word(tmp_path: Path) -> None:
    """As in its config/dataset2prompt.json."""
    expected = {
        "qasper": (
            "You are given a scientific article and a question. Answer the question as concisely "
            "as you can, using a single phrase or sentence if possible. If the question cannot be "
            'answered based on the information in the article, write "unanswerable". If the '
            'question is a yes/no question, answer "yes", "no", or "unanswerable". Do not provide '
            "any explanation.\n\nArticle: {TEXT}\n\n Answer the question based on the above "
            "article as concisely as you can, using a single phrase or sentence if possible. If "
            "the question cannot be answered based on the information in the article, write "
            '"unanswerable". If the question is a yes/no question, answer "yes", "no", or '
            '"unanswerable". Do not provide any explanation.\n\nQuestion: Who said so?\n\nAnswer:'
        ),
        "lcc": "Please complete the code given below. \n{TEXT}Next line of code:\n",
        "multi_news": (
            "You are given several news passages. Write a one-page summary of all news. \n\nNews:\n"
            "{TEXT}\n\nNow, write a one-page summary of all the news.\n\nSummary:"
        ),
    }
    for name, prompt in expected.items():
        example = only(name, tmp_path, record(name, 3))
        assert body(example.target) == prompt.replace("{TEXT}", text(3))


def test_other_names_of_fields_and_longbenchs_form_are_read(tmp_path: Path) -> None:
    example = only("multi_news", tmp_path, {"context": "a ||||| b", "answers": ["gold", "too"]})
    assert "News:\na\n\nb\n" in body(example.target)
    assert (example.gold, example.references) == ("gold", ("too",))
    lines = {"article_text": ["a", "b"], "abstract_text": ["c", "d"]}
    example = only("pubmed", tmp_path, lines)
    assert "Article:\na\nb\n" in body(example.target)
    assert example.gold == "c\nd"
    example = only("booksum", tmp_path, {"text": "a", "chapter": None, "summary_text": "b"})
    assert example.gold == "b"
    choices = {"question": "a", "choices": ["1", "2", "3", "4"], "answer": "D"}
    assert only("mmlu", tmp_path, choices).gold == "D"


def test_a_long_document_loses_its_middle(tmp_path: Path) -> None:
    long = {"document": " ".join(map(str, range(10_000))), "summary": "gold"}
    prompt = body(only("xsum", tmp_path, long).target)
    assert 5900 < len(prompt) < 6000
    assert "Article:\n0 1 2 3 " in prompt
    assert " 9998 9999\n\nNow, write a one-sentence summary" in prompt


def test_every_record_is_in_one_split_whatever_stands_beside_it(tmp_path: Path) -> None:
    targets: dict[str, set[str]] = {}
    for numbers in (range(60), range(59, -1, -1)):
        write(tmp_path, "xsum", [record("xsum", number) for number in numbers])
        for split in SPLITS:
            built = dataset_named("xsum").build("entities", material(split=split), 4, tmp_path)
            targets.setdefault(split, set()).update(body(example.target) for example in built)
    assert not targets["train"] & targets["val"]
    assert not targets["test"] & (targets["train"] | targets["val"])


def test_too_few_records_and_too_short_prompts_are_refused(tmp_path: Path) -> None:
    write(tmp_path, "xsum", [record("xsum", number) for number in range(10)])
    xsum = dataset_named("xsum")
    with pytest.raises(InvalidRequest, match=r"9 examples of xsum wanted, \d of its 10 records"):
        xsum.build("instruction", material(), 9, tmp_path)
    with pytest.raises(InvalidRequest, match="100 tokens has no room for a document of xsum"):
        xsum.build("instruction", material(100), 1, tmp_path)
    with pytest.raises(InvalidRequest, match="xsum has no scenario 'long': choose one of instr"):
        xsum.build("long", material(), 1, tmp_path)
    with pytest.raises(InvalidRequest, match="limit is 0"):
        xsum.build("instruction", material(), 0, tmp_path)


@pytest.mark.parametrize(
    ("name", "line", "message"),
    [
        ("xsum", '{"document": "a"', r"xsum\.jsonl, line 3 is not JSON"),
        ("xsum", '["a"]', r"line 3 holds no object"),
        ("xsum", '{"document": "a"}', r"line 3 has no field summary; it has document"),
        ("xsum", '{"document": 7, "summary": "b"}', r"line 3: field document is 7: it must be te"),
        ("xsum", '{"document": " ", "summary": "b"}', r"line 3: field document is ' ': it must"),
        ("pubmed", '{"abstract": "b"}', r"line 3 has no field article or article_text"),
        ("lcc", '{"context": "a", "answers": []}', r"line 3: field answers is \[\]: it must be a"),
        ("qasper", '{"context": "a", "answers": ["b"], "input": ""}', r"line 3: field input is"),
        ("mmlu", '{"question": "a", "choices": ["b"], "answer": 0}', r"field choices is \['b'\]"),
        (
            "mmlu",
            '{"question": "a", "choices": ["b", "c", "d", "e"], "answer": 4}',
            r"line 3: field answer is 4: it must be a letter from A to D or a number from 0 to 3",
        ),
    ],
)
def test_a_malformed_line_is_named(name: str, line: str, message: str, tmp_path: Path) -> None:
    file = write(tmp_path, name, [record(name, 0)])
    file.write_text(f"{file.read_text()}\n{line}\n", encoding="utf-8")  # an empty line between
    with pytest.raises(InvalidRequest, match=message):
        dataset_named(name).build("instruction", material(), 1, tmp_path)


def test_only_the_first_records_of_a_huge_file_are_read(tmp_path: Path) -> None:
    file = write(tmp_path, "xsum", [record("xsum", number) for number in range(MOST_RECORDS)])
    with file.open("a", encoding="utf-8") as lines:
        lines.write("no record\n")
    assert len(dataset_named("xsum").build("instruction", material(), 3, tmp_path)) == 3


def test_a_missing_set_says_where_to_put_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    xsum = dataset_named("xsum")
    expected = (
        "xsum.jsonl or xsum.parquet is missing: put it into a folder that --data-dir or "
        "SEMSHARE_DATA names, or pip install datasets and load it once: "
        'load_dataset("EdinburghNLP/xsum", split="test")'
    )
    assert xsum.presence(None).found is None
    assert xsum.presence(None).missing == expected
    with pytest.raises(ModelNotAvailable) as caught:
        xsum.build("instruction", material(), 1, None)
    assert str(caught.value) == expected
    assert f"put it into {tmp_path}" in xsum.presence(tmp_path).missing
    monkeypatch.setenv("SEMSHARE_DATA", str(tmp_path))
    write(tmp_path, "xsum", [record("xsum", number) for number in range(9)])
    assert xsum.presence(None).found == str(tmp_path / "xsum.jsonl")
    assert xsum.build("instruction", material(), 1, None)


def with_package(monkeypatch: pytest.MonkeyPatch, load_dataset: object) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(metadata, "version", lambda name: "5.2.0")
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))


def test_the_datasets_package_serves_what_it_has_cached(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load_dataset(path: str, config: str | None, *, split: str) -> list[dict[str, object]]:
        asked.append((path, config, split, os.environ["HF_DATASETS_OFFLINE"]))
        return [record("lcc", number) for number in range(9)]

    with_package(monkeypatch, load_dataset)
    lcc = dataset_named("lcc")
    found = 'datasets 5.2.0, if load_dataset("THUDM/LongBench", "lcc", split="test") is cached'
    assert lcc.presence(None).found == found
    assert asked == []  # to look is not to load
    assert len(lcc.build("instruction", material(), 2, None)) == 2
    assert asked == [("THUDM/LongBench", "lcc", "test", "1")]


def test_what_the_package_has_not_cached_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(path: str, config: str | None, *, split: str) -> None:
        raise ConnectionError("offline mode is enabled")

    with_package(monkeypatch, load_dataset)
    with pytest.raises(ModelNotAvailable, match=r"xsum\.jsonl.*offline mode is enabled"):
        dataset_named("xsum").build("instruction", material(), 1, None)


def test_parquet_needs_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "xsum.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ModelNotAvailable, match=r"xsum\.parquet needs the package pyarrow: pip"):
        dataset_named("xsum").build("instruction", material(), 1, tmp_path)


def test_parquet_is_read_as_jsonl_is(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    records = [record("qasper", number) for number in range(100)]
    file = tmp_path / "qasper.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(records), file)
    qasper = dataset_named("qasper")
    assert qasper.presence(tmp_path).found == str(file)
    from_parquet = qasper.build("entities", material(), 9, tmp_path)
    write(tmp_path, "qasper", records)  # comes first
    assert qasper.presence(tmp_path).found == str(tmp_path / "qasper.jsonl")
    assert qasper.build("entities", material(), 9, tmp_path) == from_parquet
    file.rename(tmp_path / "xsum.parquet")
    with pytest.raises(InvalidRequest, match=r"xsum\.parquet, row 1 has no field document"):
        dataset_named("xsum").build("entities", material(), 1, tmp_path)
    (tmp_path / "xsum.parquet").write_bytes(b"no table")
    with pytest.raises(InvalidRequest, match=r"can't read .*xsum\.parquet after row 0"):
        dataset_named("xsum").build("entities", material(), 1, tmp_path)
