"""What a dataset of the evaluation is."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from semshare.errors import InvalidRequest
from semshare.evaluation.material import Example, Material

TaskMetric = Literal["rouge_l", "token_f1", "accuracy", "edit_similarity", "fact"]


@dataclass(frozen=True, slots=True)
class Presence:
    """Whether a dataset can be used here.

    found:   where it comes from, such as a package and its version or a file; None: it is missing.
    missing: which package or file is missing, and how to get it; empty where it is there.
    """

    found: str | None
    missing: str = ""


@dataclass(frozen=True, slots=True)
class Dataset:
    """One set of texts, and the ways in which its prompts share something with earlier ones.

    name:       as in `semshare eval run --dataset`.
    about:      one line for `semshare eval datasets`.
    scenarios:  names, in the order of the tables; the first is the default where one is wanted.
    metric:     what its answers are scored by, beside the fidelity that all are.
    max_tokens: most tokens of an answer.
    lengths:    scenario → tokens of its targets where nobody asks for others; the evaluation's own
                default for scenarios that are not in it.
    presence:   looks without loading; the folder holds the user's files, None for the default one.
    build:      (scenario, material, limit, folder) → examples, always the same for a seed.
                Raises `ModelNotAvailable` with `Presence.missing`, `InvalidRequest` for an unknown
                scenario or where there are too few texts.
    """

    name: str
    about: str
    scenarios: tuple[str, ...]
    metric: TaskMetric
    max_tokens: int
    presence: Callable[[Path | None], Presence]
    build: Callable[[str, Material, int, Path | None], list[Example]]
    lengths: Mapping[str, int] = field(default_factory=dict)


def check_request(dataset: str, scenarios: Collection[str], scenario: str, limit: int) -> None:
    """Refuse what a dataset can't build.

    Raises:
        InvalidRequest: no such scenario, with the known ones named, or `limit` is less than 1.

    """
    if scenario not in scenarios:
        raise InvalidRequest(
            f"{dataset} has no scenario {scenario!r}: choose one of {', '.join(scenarios)}"
        )
    if limit < 1:
        raise InvalidRequest(f"limit is {limit}: it must be at least 1")
