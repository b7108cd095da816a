from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from properties import examples
from sizes import body

from semshare.errors import InvalidRequest
from semshare.evaluation.datasets import documents
from semshare.evaluation.datasets.documents import (
    DOCUMENT_SCENARIOS,
    Document,
    similar_prompts,
    without_middle,
)
from semshare.evaluation.prompts import user


def document(number: int) -> Document:
    return Document(
        f"{number}",
        f"Then Reed saw {10 + number} of many cars. Then Oslo saw part {20 + number}. A third one.",
        (f"gold {number}", f"as good {number}"),
        ask=lambda text: user("Question.", text, "Answer:"),
        ask_otherwise=lambda text: user("Other instruction.", text),
    )


TWO = [document(0), document(1)]


@pytest.fixture(autouse=True)
def _no_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "rewrite", lambda text: text.replace("saw", "beheld"))


@pytest.mark.parametrize("scenario", DOCUMENT_SCENARIOS)
def test_the_target_is_the_sets_own_text_with_its_gold(scenario: str) -> None:
    examples = similar_prompts(scenario, TWO, 2, seed=0)
    assert [example.id for example in examples] == ["0", "1"]
    for one, example in zip(TWO, examples, strict=True):
        assert body(example.target) == f"Question.\n\n{one.text}\n\nAnswer:"
        assert body(example.no_context) == "Question.\n\nAnswer:"
        assert (example.gold, *example.references) == one.references
        assert len(example.donors) == 1
        assert example.donors[0] != example.target


@pytest.mark.parametrize("scenario", DOCUMENT_SCENARIOS)
def test_one_thing_differs_and_the_control_reads_it(scenario: str) -> None:
    (example,) = similar_prompts(scenario, TWO, 1, seed=0)
    donor = body(example.donors[0])
    if scenario == "instruction":
        assert donor == f"Other instruction.\n\n{TWO[0].text}"
        assert example.donor_text is None
    else:
        assert donor.startswith("Question.\n\n")
        assert donor.endswith("\n\nAnswer:")
        assert body(example.donor_text) == donor


def test_overlap_takes_from_the_next_document_and_needs_one() -> None:
    last = similar_prompts("overlap-20", TWO, 2, seed=0)[1]
    assert "10" in body(last.donors[0]) or "20" in body(last.donors[0])
    with pytest.raises(InvalidRequest, match="overlap-20 needs a second text"):
        similar_prompts("overlap-20", TWO[:1], 1, seed=0)


def test_a_copy_is_the_seeds_and_not_the_limits() -> None:
    many = [document(number) for number in range(6)]
    first = similar_prompts("entities", many, 6, seed=1)
    assert similar_prompts("entities", many, 2, seed=1) == first[:2]
    assert similar_prompts("entities", many, 6, seed=2) != first
    twice = similar_prompts("entities", [TWO[0], replace(TWO[0], id="other")], 2, seed=1)
    assert twice[0].donors != twice[1].donors  # one text's copies are drawn by its id


def words(text: str) -> int:
    return len(text.split())


@pytest.mark.parametrize(
    ("tokens", "kept"),
    [(6, " a b\n\nc  d e f\n"), (5, " a b\n\nc e f\n"), (4, " a b e f\n"), (1, " a"), (0, "")],
)
def test_the_middle_goes_first(tokens: int, kept: str) -> None:
    assert without_middle(" a b\n\nc  d e f\n", words, tokens) == kept


@examples(60)
@given(st.text("ab \n", max_size=60), st.integers(0, 20))
def test_what_is_kept_stands_at_both_ends(text: str, tokens: int) -> None:
    kept = without_middle(text, words, tokens)
    if words(text) <= tokens:
        assert kept == text
    else:
        assert words(kept) == tokens
        head = kept.split()[: tokens - tokens // 2]
        assert text.split()[: len(head)] == head
        assert text.split()[len(text.split()) - tokens // 2 :] == kept.split()[len(head) :]
