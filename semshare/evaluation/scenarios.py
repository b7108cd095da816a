"""The situations in which a prompt shares something with one seen before, and what to reach.

| scenario | donors | target | scored text |
| --- | --- | --- | --- |
| `prefix` | paper, question A | paper, question B | own full answer |
| `shifted` | instruction A, paper | opening, paper, question B | gold summary |
| `multi_donor` | five prompts, a paper each | the five papers in another order | gold summary |
| `paraphrase` | instruction A, passage | opening, its rewrite, question B | gold summary |
| `long` | a passage in one translation | the same verses in another | own full answer |
| `unrelated` | other papers | a paper, or a passage of another kind | own full answer |
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from semshare.config import ReuseMode
from semshare.errors import InvalidRequest
from semshare.evaluation import paper_scenarios, passage_scenarios
from semshare.evaluation.bounds import Bounds
from semshare.evaluation.material import Example, Material


@dataclass(frozen=True, slots=True)
class Scenario:
    """One situation; its length, mode and bounds unless the caller asks for others.

    `token_budget` sets how many examples make a default run of a few minutes on two cores.
    """

    name: str
    build: Callable[[Material, int], list[Example]]
    tokens: int
    mode: ReuseMode
    token_budget: int
    bounds: Bounds

    def default_limit(self, tokens: int) -> int:
        """Examples of a run with targets of `tokens` tokens: between 3 and 12."""
        return max(3, min(12, round(self.token_budget / tokens)))


_ALL = (
    Scenario(
        "prefix",
        paper_scenarios.prefix,
        tokens=4000,
        mode="prefix",
        token_budget=12_000,
        bounds=Bounds({4000: 25.0}, exact=True),
    ),
    Scenario(
        "shifted",
        paper_scenarios.shifted,
        tokens=1200,
        mode="semantic",
        token_budget=20_000,
        bounds=Bounds({1200: 6.0, 5000: 15.0}, kl=0.01, top1=0.95),
    ),
    Scenario(
        "multi_donor",
        paper_scenarios.multi_donor,
        tokens=5000,
        mode="semantic",
        token_budget=15_000,
        bounds=Bounds({5000: 6.0}, kl=0.02),
    ),
    Scenario(
        "paraphrase",
        paper_scenarios.paraphrase,
        tokens=1600,
        mode="semantic",
        token_budget=19_200,  # both questions about all six passages
        bounds=Bounds({1600: 4.0}, kl=0.30, pgr=0.97),
    ),
    Scenario(
        "long",
        passage_scenarios.long,
        tokens=5000,
        mode="semantic",
        token_budget=15_000,
        bounds=Bounds({5000: 8.0}, kl=0.06, top1=0.85),
    ),
    Scenario(
        "unrelated",
        passage_scenarios.unrelated,
        tokens=1200,
        mode="semantic",
        token_budget=7_200,
        bounds=Bounds({1200: 0.97}, exact=True),
    ),
)
SCENARIOS: dict[str, Scenario] = {scenario.name: scenario for scenario in _ALL}


def scenario_named(name: str) -> Scenario:
    """The scenario of that name; `InvalidRequest` names the known ones."""
    if name not in SCENARIOS:
        raise InvalidRequest(f"unknown scenario {name!r}: choose one of {', '.join(SCENARIOS)}")
    return SCENARIOS[name]
