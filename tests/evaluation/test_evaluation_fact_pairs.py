import re

import pytest

from semshare.evaluation.fact_papers import paper_pairs
from semshare.evaluation.fact_texts import FACT_KINDS, FactPair, template_pairs
from semshare.evaluation.facts import fact_pairs

TEMPLATES = template_pairs(variants=2)
PAPERS = paper_pairs(36)
BOTH = pytest.mark.parametrize("pair", [*TEMPLATES, *PAPERS], ids=lambda pair: pair.id)


def contains(text: str, words: str) -> bool:
    """Whole words only: 12 is not in 512."""
    return re.search(rf"(?<!\w){re.escape(words)}(?!\w)", text) is not None


@BOTH
def test_each_text_holds_its_own_fact_and_not_the_other(pair: FactPair) -> None:
    for question in pair.questions:
        if question.kind == "negations":
            # "not" alone is everywhere: the sentence up to it and beyond is what counts.
            target, donor = (
                f"{question.stem} {fact}" for fact in (question.target, question.donor)
            )
        else:
            target, donor = question.target, question.donor
        assert contains(pair.target, target)
        assert not contains(pair.target, donor)
        assert contains(pair.donor, donor)
        assert not contains(pair.donor, target)


@BOTH
def test_the_texts_differ_in_little_else(pair: FactPair) -> None:
    target, donor = pair.target.split(), pair.donor.split()
    assert abs(len(target) - len(donor)) <= 4
    assert len(set(target) & set(donor)) > 0.7 * len(set(target))


@pytest.mark.parametrize("pair", PAPERS, ids=lambda pair: pair.id)
def test_a_quoted_sentence_is_in_both_texts_up_to_its_fact(pair: FactPair) -> None:
    for question in pair.questions:
        opening = question.question.split('"', 1)[1].rsplit('"', 1)[0]
        assert question.stem.startswith(opening)
        assert pair.target.count(opening) >= 1
        assert pair.donor.count(question.stem) == pair.target.count(question.stem) == 1


def test_no_value_is_used_twice_in_a_template() -> None:
    for pair in TEMPLATES:
        values = [
            value
            for question in pair.questions
            if question.kind != "negations"
            for value in (question.target, question.donor)
        ]
        assert len(set(values)) == len(values)


def test_the_facts_are_the_seeds() -> None:
    assert template_pairs(variants=2) == TEMPLATES
    assert paper_pairs(36) == PAPERS
    assert template_pairs(variants=2, seed=1) != TEMPLATES


def test_there_are_questions_enough_of_every_kind() -> None:
    questions = [question for pair in fact_pairs() for question in pair.questions]
    assert len(questions) >= 200
    for kind in FACT_KINDS:
        assert sum(question.kind == kind for question in questions) >= 20


def test_a_limit_counts_questions_and_keeps_both_kinds_of_text() -> None:
    limited = fact_pairs(limit=20)
    assert sum(len(pair.questions) for pair in limited) == 20
    ids = {pair.id for pair in limited}
    assert ids & {pair.id for pair in PAPERS}
    assert ids & {pair.id for pair in TEMPLATES}
