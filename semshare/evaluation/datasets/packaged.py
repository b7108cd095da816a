"""Sets from packages: papers, translations, rewritten passages, texts with swapped facts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from importlib import metadata
from pathlib import Path

from semshare.evaluation import facts, paper_scenarios, passage_scenarios
from semshare.evaluation.datasets.base import Dataset, Presence, TaskMetric, check_request
from semshare.evaluation.datasets.documents import COPIES, Document, similar_prompts
from semshare.evaluation.material import Example, Material
from semshare.evaluation.paper_scenarios import DONOR_ASPECT, TARGET_ASPECTS
from semshare.evaluation.scenarios import SCENARIOS
from semshare.evaluation.texts import TRANSLATIONS, missing_package

Builder = Callable[[Material, int], list[Example]]

_LIKE = {"modern": "long"}  # as long as
ANSWER_TOKENS = 64  # a sentence or two: gold summaries here have one
FACT_TOKENS = 16  # a name, a number or a date


def similar_papers(material: Material, limit: int, *, scenario: str) -> list[Example]:
    """A paper whose changed copy was asked about before, in the same words."""
    room = material.room_in(paper_scenarios.question_last("", "challenge"))
    documents = [
        Document(
            f"{paper.id}/{aspect}",
            text,
            (paper.gold[aspect],),
            ask=partial(paper_scenarios.question_last, aspect=aspect),
            ask_otherwise=partial(paper_scenarios.instruction_first, aspect=DONOR_ASPECT),
        )
        for index, (paper, text) in enumerate(material.papers(room, limit + 1))
        for aspect in (TARGET_ASPECTS[index % 2],)
    ]
    return similar_prompts(scenario, documents, limit, material.seed)


def swapped_facts(material: Material, limit: int) -> list[Example]:
    """One example a question about a text whose donor has other facts.

    The texts are as long as they are, and the same ones for every split: each pair was made to be
    reported, and nothing is cut or tuned on it.
    """
    examples = []
    for pair in facts.fact_pairs(limit=limit, seed=material.seed):
        other_way = replace(pair, target=pair.donor)
        without_text = replace(pair, target="")
        examples += [
            Example(
                f"{pair.id}/{number}",
                (facts.donor_prompt(pair),),
                facts.target_prompt(pair, question),
                gold=f"{question.stem} {question.target}",
                no_context=facts.target_prompt(without_text, question),
                donor_text=facts.target_prompt(other_way, question),
                fact=question,
            )
            for number, question in enumerate(pair.questions)
        ]
    return examples


def _installed(packages: tuple[str, ...], folder: Path | None) -> Presence:  # noqa: ARG001 - a Dataset's
    """Whether all the data packages are there, asked of their metadata without importing them.

    What needs none of them is in this package.
    """
    found, missing = [], []
    for package in packages:
        try:
            found.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            missing.append(missing_package(package))
    return (
        Presence(None, "; ".join(missing)) if missing else Presence(", ".join(found) or "semshare")
    )


def _build(
    name: str,
    builders: Mapping[str, Builder],
    scenario: str,
    material: Material,
    limit: int,
    folder: Path | None,  # noqa: ARG001 - packages need none
) -> list[Example]:
    check_request(name, builders, scenario, limit)
    return builders[scenario](material, limit)


def _dataset(
    name: str,
    about: str,
    builders: Mapping[str, Builder],
    packages: tuple[str, ...],
    *,
    metric: TaskMetric = "rouge_l",
    max_tokens: int = ANSWER_TOKENS,
) -> Dataset:
    return Dataset(
        name,
        about,
        tuple(builders),
        metric,
        max_tokens,
        presence=partial(_installed, packages),
        build=partial(_build, name, builders),
        lengths={
            scenario: SCENARIOS[_LIKE.get(scenario, scenario)].tokens
            for scenario in builders
            if _LIKE.get(scenario, scenario) in SCENARIOS
        },
    )


PACKAGED = (
    _dataset(
        "aclsum",
        "250 NLP papers with gold summaries of one sentence (Takeshita et al., NAACL 2024)",
        {
            "shifted": paper_scenarios.shifted,
            "multi_donor": paper_scenarios.multi_donor,
            "prefix": paper_scenarios.prefix,
            "unrelated": passage_scenarios.unrelated,
            # Another instruction is `shifted`.
            **{name: partial(similar_papers, scenario=name) for name in COPIES},
        },
        ("aclsum", *(f"pythonbible-{translation}" for translation in TRANSLATIONS)),
    ),
    _dataset(
        "translations",
        "one old book in two English translations, verse by verse, at any length",
        {"long": passage_scenarios.long, "modern": passage_scenarios.modern},
        tuple(f"pythonbible-{translation}" for translation in TRANSLATIONS),
    ),
    _dataset(
        "pairs",
        "paper passages that a language model rewrote in full, facts and order kept",
        {"paraphrase": paper_scenarios.paraphrase},
        (),
    ),
    _dataset(
        "facts",
        "texts whose names, numbers, places, dates and negations are swapped, 215 questions",
        {"swapped": swapped_facts},
        ("aclsum",),
        metric="fact",
        max_tokens=FACT_TOKENS,
    ),
)
