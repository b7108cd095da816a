"""One example for tiny engines: a text known after another beginning, and one that is reworded."""

from __future__ import annotations

from typing import Any

import torch
from prompts import reworded, words
from tiny import tiny_engine

from semshare import SemShare
from semshare.evaluation.material import Example, Messages
from semshare.evaluation.methods.base import Outcome, Task
from semshare.evaluation.methods.registry import METHODS

LIMIT = 1e-4  # max abs difference of float32 logits
NAMESPACE = "case"
TASK = Task(NAMESPACE, [7, 200, 31, 100, 99], max_tokens=6)

PAPER_A, PAPER_B = words(200, 1), words(180, 2)
QUESTION = words(30, 3)


def chat(*parts: str) -> Messages:
    return [{"role": "user", "content": "".join(parts)}]


EXAMPLE = Example(
    "one",
    donors=(chat(words(15, 4), PAPER_A), chat(words(61, 5), PAPER_B, words(9, 6))),
    target=chat(words(45, 7), PAPER_A, reworded(PAPER_B, 8, share=0.2), QUESTION),
    no_context=chat(QUESTION),
    donor_text=chat(words(45, 7), PAPER_A, PAPER_B, QUESTION),
)


def engine_for(example: Example = EXAMPLE, family: str = "llama", **config: Any) -> SemShare:
    """A tiny engine that remembers the example's donors."""
    engine = tiny_engine(family, **config)
    for donor in example.donors:
        engine.remember(donor, namespace=NAMESPACE)
    return engine


def run(engine: SemShare, name: str, example: Example = EXAMPLE, task: Task = TASK) -> Outcome:
    return METHODS[name].run(engine, example, task)


def difference(one: Outcome, other: Outcome) -> float:
    """Largest of any two logits."""
    return float((one.logits - other.logits).abs().max())


def kept_by(engine: SemShare) -> tuple[Any, ...]:
    """All that later requests could find: donors, cached prefixes, the bytes in use."""
    spaces = {
        name: [(tuple(node.pages.tolist()), node.owner) for node in space.prefixes.nodes()]
        for name in engine.library.names
        if (space := engine.library.find(name)) is not None
    }
    donors = [donor.id for donor in engine.donors(namespace=NAMESPACE)]
    return spaces, donors, engine.stats()["pool_bytes"]


def donor_keys(engine: SemShare) -> torch.Tensor:
    """The keys of all donors, every layer."""
    space = engine.library.find(NAMESPACE)
    assert space is not None
    slots = torch.cat([torch.from_numpy(donor.slots) for donor in space.donors.values()])
    return torch.stack([keys[slots] for keys in engine.pool.keys])
