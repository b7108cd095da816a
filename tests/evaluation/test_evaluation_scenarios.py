import re
from functools import cache

import pytest
from tiny import tiny_tokenizer

from semshare.errors import InvalidRequest
from semshare.evaluation.bounds import Bounds
from semshare.evaluation.material import Example, Material, Messages
from semshare.evaluation.scenarios import SCENARIOS, scenario_named
from semshare.evaluation.texts import Split

TOKENS = 6000  # bytes: about 1,200 of a real model's tokens
EXAMPLES = 4
EVERY = pytest.mark.parametrize("name", SCENARIOS)


@cache
def byte_tokenizer():  # type: ignore[no-untyped-def]
    return tiny_tokenizer()


def count(messages: Messages) -> int:
    text = byte_tokenizer().apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True
    )
    return len(text.encode())


def build(
    name: str,
    limit: int = EXAMPLES,
    tokens: int = TOKENS,
    *,
    seed: int = 0,
    split: Split = "test",
) -> list[Example]:
    return scenario_named(name).build(Material(count, tokens, seed, split), limit)


def body(messages: Messages) -> str:
    return messages[0]["content"]


@EVERY
def test_targets_have_the_asked_length(name: str) -> None:
    examples = build(name)
    assert len(examples) == EXAMPLES
    for example in examples:
        low = 0.45 if name == "paraphrase" else 0.9
        high = 1.55 if name == "paraphrase" else 1.02
        assert low * TOKENS <= count(example.target) <= high * TOKENS
        assert len({example.id for example in examples}) == EXAMPLES


@EVERY
def test_examples_are_the_seeds(name: str) -> None:
    assert build(name) == build(name)
    # Rewritten passages come in the order of their lengths.
    assert (build(name) == build(name, seed=1)) == (name == "paraphrase")


@EVERY
def test_val_has_other_texts_than_test(name: str) -> None:
    ids = [
        {part for one in build(name, split=split) for part in one.id.split("/")[0].split("+")}
        for split in ("val", "test")
    ]
    assert ids[0]
    assert not ids[0] & ids[1]


@EVERY
def test_every_target_has_a_prompt_without_context(name: str) -> None:
    for example in build(name):
        assert (example.gold is not None) == (name in ("shifted", "multi_donor", "paraphrase"))
        assert example.no_context is not None
        question = body(example.no_context).splitlines()[-1]
        assert body(example.target).endswith(question)
        assert count(example.no_context) < 400


@EVERY
def test_the_control_reads_the_donors_text_under_the_targets_question(name: str) -> None:
    for example in build(name):
        if name in ("prefix", "shifted"):  # the donor's text is the target's
            assert example.donor_text is None
            continue
        assert example.donor_text is not None
        read = body(example.donor_text)
        assert read != body(example.target)
        assert read.splitlines()[-1] == body(example.target).splitlines()[-1]
        for donor in example.donors:
            assert body(donor).split("\n\n", 1)[1] in read


def test_prefix_differs_in_the_last_line_only() -> None:
    for example in build("prefix"):
        donor, target = body(example.donors[0]), body(example.target)
        assert donor.rsplit("\n", 1)[0] == target.rsplit("\n", 1)[0]
        assert donor != target


def test_shifted_holds_the_donors_paper_after_other_words() -> None:
    for example in build("shifted"):
        instruction, paper = body(example.donors[0]).split("\n\n", 1)
        assert paper in body(example.target)
        assert instruction not in body(example.target)
        assert not body(example.target).startswith(instruction[:20])


def test_multi_donor_reorders_papers_that_each_have_a_donor() -> None:
    reordered = 0
    for example in build("multi_donor"):
        papers = [body(donor).split("\n\n", 1)[1] for donor in example.donors]
        places = [body(example.target).index(paper) for paper in papers]
        assert len(papers) == len(set(places)) == 5
        reordered += places != sorted(places)
    assert reordered >= EXAMPLES - 1  # one order in 120 is the donors' own


def test_paraphrase_asks_one_question_of_each_pair_before_a_second() -> None:
    examples = build("paraphrase", limit=100)
    ids = [example.id.split("/")[0] for example in examples]
    assert len(ids) == 12  # every pair of the split, whatever its length
    assert len(set(ids[:6])) == len(set(ids[6:])) == 6
    with pytest.raises(InvalidRequest, match="ask for another length"):
        build("paraphrase", tokens=100_000)


def test_long_holds_the_same_verses_in_two_translations() -> None:
    for example in build("long"):
        donor, target = body(example.donors[0]), body(example.target)
        numbers = [re.findall(r"(?:^|\s)(\d+)\.", text) for text in (donor, target)]
        assert numbers[0] == numbers[1]
        assert donor not in target


def test_unrelated_targets_share_no_paper_with_their_donors() -> None:
    examples = build("unrelated")
    for example in examples:
        assert len(example.donors) == 2
        for donor in example.donors:
            title = body(donor).split("\n\n")[1]
            assert title not in body(example.target)
    assert len({body(donor) for one in examples for donor in one.donors}) == 2 * EXAMPLES
    assert "old book" in body(examples[1].target)


def test_too_many_examples_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="lower the limit"):
        build("shifted", limit=10_000)
    with pytest.raises(InvalidRequest, match="lower the limit"):
        build("long", limit=100_000)


def test_an_unknown_scenario_names_the_known_ones() -> None:
    with pytest.raises(InvalidRequest, match="prefix, shifted, multi_donor"):
        scenario_named("shuffled")


def test_default_limits_shrink_with_length() -> None:
    shifted = scenario_named("shifted")
    assert shifted.default_limit(1200) == 12
    assert 3 <= shifted.default_limit(5000) < 12


GOOD = {
    "kl": 0.005,
    "top1": 0.96,
    "pgr": 0.99,
    "exact": True,
    "max_logit_diff": 0.2,
    "max_logit_diff_floor": 0.15,
    "fallbacks": 0,
    "plans_stable": True,
}
STRICT = Bounds({1200: 6.0, 5000: 15.0}, kl=0.01, top1=0.95, pgr=0.97, exact=True)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"kl": 0.02}, "kl is 0.02, the most is 0.01"),
        ({"kl": float("nan")}, "kl is nan"),
        ({"top1": 0.9}, "top1 is 0.9, the least is 0.95"),
        ({"pgr": None}, "pgr is None"),
        ({"exact": False}, "approximate KV"),
        ({"max_logit_diff": 0.4}, "max_logit_diff is 0.4, the most is 0.3001"),
        ({"fallbacks": 2}, "2 requests fell back"),
        ({"plans_stable": False}, "did not reuse the same tokens"),
    ],
)
def test_each_missed_bound_is_named(change: dict[str, object], reason: str) -> None:
    assert STRICT.missed(GOOD) == []
    missed = STRICT.missed(GOOD | change)
    assert len(missed) == 1
    assert reason in missed[0]


def test_the_speedup_aimed_at_is_the_nearest_lengths() -> None:
    assert [STRICT.speedup_at(tokens) for tokens in (900, 3000, 3200, 8000)] == [6, 6, 15, 15]
