import importlib
from importlib import metadata

import pytest
from sizes import body, material

from semshare.errors import InvalidRequest
from semshare.evaluation.datasets import DATASETS, dataset_named, documents
from semshare.evaluation.datasets.packaged import PACKAGED
from semshare.evaluation.facts import fact_pairs

PACKAGED_SCENARIOS = [
    (dataset.name, scenario) for dataset in PACKAGED for scenario in dataset.scenarios
]


@pytest.fixture(autouse=True)
def _no_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "rewrite", lambda text: text.replace(" the ", " that "))


def test_the_registry_finds_by_name_and_names_what_it_knows() -> None:
    assert all(dataset_named(name).name == name for name in DATASETS)
    with pytest.raises(InvalidRequest, match="unknown dataset 'acl': choose one of aclsum, trans"):
        dataset_named("acl")


@pytest.mark.parametrize(("name", "scenario"), PACKAGED_SCENARIOS)
def test_every_scenario_is_the_seeds_and_has_its_controls(name: str, scenario: str) -> None:
    dataset = dataset_named(name)
    examples = dataset.build(scenario, material(), 3, None)
    assert len({example.id for example in examples}) == 3
    assert examples == dataset.build(scenario, material(), 3, None)
    for example in examples:
        assert example.no_context is not None
        assert len(body(example.no_context)) < len(body(example.target)) / 2
        same_document = scenario in ("prefix", "shifted")
        assert (example.donor_text is None) == same_document


def test_an_unknown_scenario_and_an_empty_run_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="pairs has no scenario 'long': choose one of par"):
        dataset_named("pairs").build("long", material(), 1, None)
    with pytest.raises(InvalidRequest, match="limit is 0: it must be at least 1"):
        dataset_named("pairs").build("paraphrase", material(), 0, None)


def test_one_paper_overlaps_with_another_that_is_not_asked_about() -> None:
    (example,) = dataset_named("aclsum").build("overlap-40", material(), 1, None)
    words = [set(body(messages).split()) for messages in (example.donors[0], example.target)]
    assert len(words[0] - words[1]) > 50


def test_translations_go_both_ways() -> None:
    there = dataset_named("translations").build("long", material(), 2, None)
    back = dataset_named("translations").build("modern", material(), 2, None)
    for old, modern in zip(there, back, strict=True):
        assert (old.target, old.donor_text) == (modern.donor_text, modern.target)


def test_facts_ask_each_question_with_the_fact_it_is_about() -> None:
    examples = dataset_named("facts").build("swapped", material(), 12, None)
    asked = [(pair, question) for pair in fact_pairs(limit=12) for question in pair.questions]
    assert len(examples) == len(asked) == 12
    for example, (pair, question) in zip(examples, asked, strict=True):
        assert example.fact == question
        assert example.gold == f"{question.stem} {question.target}"
        assert pair.donor in body(example.donors[0])
        assert pair.donor in body(example.donor_text)
        assert body(example.target) == body(example.donor_text).replace(pair.donor, pair.target)
        assert body(example.target) == body(example.no_context).replace(
            "\n\n", f"\n\n{pair.target}\n\n", 1
        )


def test_presence_names_the_version_or_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    present = dataset_named("facts").presence(None)
    assert present.found == f"aclsum {metadata.version('aclsum')}"
    assert present.missing == ""

    def refuse(name: str) -> None:
        raise AssertionError(f"looking imported {name}")

    monkeypatch.setattr(importlib, "import_module", refuse)
    for dataset in DATASETS.values():
        assert (dataset.presence(None).found is None) == bool(dataset.presence(None).missing)

    def absent(package: str) -> str:
        raise metadata.PackageNotFoundError(package)

    monkeypatch.setattr(metadata, "version", absent)
    assert dataset_named("pairs").presence(None).found == "semshare"
    missing = dataset_named("translations").presence(None)
    assert missing.found is None
    for translation in ("kjv", "web", "asv"):
        assert f"pip install pythonbible-{translation}" in missing.missing
