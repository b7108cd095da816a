"""Any method on any dataset, row by row.

    semshare eval run --dataset aclsum --methods full,semshare,cacheblend --limit 8 --out DIR

For each example the donors are remembered once and the target is served by every method, each of
which leaves the donors as they were. Full prefill is served first: its answer and its logits are
what the others are compared with.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from semshare import InvalidRequest, SemShare
from semshare.errors import PromptTooLong, UnsupportedModel
from semshare.evaluation.datasets import dataset_named
from semshare.evaluation.datasets.base import Dataset
from semshare.evaluation.datasets.documents import REWRITE
from semshare.evaluation.environment import machine, versions
from semshare.evaluation.material import Example, Material
from semshare.evaluation.methods.base import Method, Task
from semshare.evaluation.methods.reuse import FULL
from semshare.evaluation.progress import Step, load_engine, progress_bar, status_line
from semshare.evaluation.rows import Row, RowFile
from semshare.evaluation.scoring import Reference, row_of
from semshare.evaluation.texts import Split

TOKENS = 1200  # of a target, in scenarios that have no length of their own
OWN_ANSWER_TOKENS = 40  # scored where there is no gold text
ROWS, RUN, LOCK = "rows.jsonl", "run.json", ".lock"
# Of a setting, what all rows of a folder have in common.
_SAME = ("model", "dtype", "split", "seed", "answer_tokens", "machine", "versions")
_NAMESPACE = "eval"
_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RunSpec:
    """What is run. The same values give the same rows, but for times.

    datasets:  names; see `semshare eval datasets`.
    scenarios: names; empty for all that each dataset has but `rewrite`.
    lengths:   tokens of a target, each scenario at each of them; empty for the scenario's own.
    limit:     examples of each scenario and length.
    answer_tokens: most tokens of an answer, and of the scored text; None: the dataset's own.
    split:     of the texts. Tune on `val`, report `test`.
    seed:      orders the texts.
    data_dir:  folder of the user's own files; None: `SEMSHARE_DATA`.
    """

    datasets: tuple[str, ...]
    scenarios: tuple[str, ...] = ()
    lengths: tuple[int, ...] = ()
    limit: int = 4
    answer_tokens: int | None = None
    split: Split = "test"
    seed: int = 0
    data_dir: str | None = None

    def __post_init__(self) -> None:
        answer = () if self.answer_tokens is None else (self.answer_tokens,)
        for name, values in (
            ("limit", (self.limit,)),
            ("tokens", self.lengths),
            ("answer_tokens", answer),
        ):
            for value in values:
                if value < 1:
                    raise InvalidRequest(f"{name} is {value}: it must be at least 1")
        known = dict.fromkeys(
            scenario for name in self.datasets for scenario in dataset_named(name).scenarios
        )
        for scenario in self.scenarios:
            if scenario not in known:
                raise InvalidRequest(
                    f"{', '.join(self.datasets)} has no scenario {scenario}: choose from "
                    f"{', '.join(known)}"
                )


@dataclass(frozen=True, slots=True)
class Case:
    """One example to be served by every method."""

    dataset: Dataset
    scenario: str
    length: int  # tokens that were asked for
    example: Example
    answer_tokens: int


def run_evaluation(
    spec: RunSpec,
    methods: Sequence[Method],
    out: Path,
    *,
    model: str = "smollm2",
    dtype: str = "auto",
    engine: SemShare | None = None,
    progress: bool = True,
) -> tuple[list[Row], dict[str, Any]]:
    """Run what is missing in a folder, and return all of its rows.

    Rows are written as they come. Called again with the same arguments, it goes on where it was
    stopped; with more methods or a higher limit, it adds what is new.

    Args:
        spec: what is run.
        methods: all are compared with full prefill, which is always among them.
        out: the folder; made if need be.
        model, dtype: where `engine` is None.
        engine: a ready one.
        progress: a bar on standard error.

    Returns:
        The rows, and the setting that the report names: model, machine, versions, what was run.

    Raises:
        InvalidRequest: the folder holds another run's rows, or another run writes into it; or no
            data of that length.
        ModelNotAvailable: the model or a data package is missing.

    """
    methods = list({method.name: method for method in (FULL, *methods)}.values())
    engine = engine or load_engine(model, dtype=dtype, progress=progress)
    with _alone_in(out):
        setting = _claim(out, _setting(engine, spec, methods))
        file = RowFile(out / ROWS)
        with status_line("choosing the texts…", enabled=progress):
            cases = list(_cases(engine, spec))
        _measure(engine, spec, methods, cases, file, progress=progress)
        return file.rows, setting


@contextmanager
def _alone_in(out: Path) -> Iterator[None]:
    """Hold a folder: two runs that write into one would measure the same rows twice."""
    out.mkdir(parents=True, exist_ok=True)
    lock = FileLock(out / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise InvalidRequest(
            f"another run writes into {out}: wait for its end, or choose another --out"
        ) from None
    try:
        yield
    finally:
        lock.release()


def _measure(
    engine: SemShare,
    spec: RunSpec,
    methods: Sequence[Method],
    cases: Sequence[Case],
    file: RowFile,
    *,
    progress: bool,
) -> None:
    total = sum(len(_missing(case, methods, file, spec.seed)) for case in cases)
    with progress_bar("eval", total, enabled=progress) as (note, advance):
        warm = False
        for case in cases:
            missing = _missing(case, methods, file, spec.seed)
            if missing:
                for row in _rows(engine, case, missing, spec.seed, note, warm_up=not warm):
                    file.append(row)
                    advance(f"{row.scenario} {row.example} {row.method}")
                warm = True


def _cases(engine: SemShare, spec: RunSpec) -> Iterator[Case]:
    folder = None if spec.data_dir is None else Path(spec.data_dir)
    for dataset in map(dataset_named, spec.datasets):
        answer_tokens = spec.answer_tokens or dataset.max_tokens
        for scenario in _scenarios(dataset, spec):
            for tokens in spec.lengths or (own_length(dataset, scenario),):
                material = Material(
                    lambda messages: len(engine.encode(messages)), tokens, spec.seed, spec.split
                )
                for example in dataset.build(scenario, material, spec.limit, folder):
                    yield Case(dataset, scenario, tokens, example, answer_tokens)


def _scenarios(dataset: Dataset, spec: RunSpec) -> list[str]:
    """Those asked for; or all but `rewrite`, which wants an endpoint that few have."""
    if spec.scenarios:
        return [name for name in dataset.scenarios if name in spec.scenarios]
    return [name for name in dataset.scenarios if name != REWRITE]


def own_length(dataset: Dataset, scenario: str) -> int:
    """Tokens of a scenario's targets where nobody asks for others."""
    return dataset.lengths.get(scenario, TOKENS)


def _missing(case: Case, methods: Sequence[Method], file: RowFile, seed: int) -> list[Method]:
    """Methods that apply to a case and have no row of it yet."""
    name = case.dataset.name, case.scenario, case.length, case.example.id
    return [
        method
        for method in methods
        if method.applies(case.example) and (*name, method.name, seed) not in file.keys
    ]


def _rows(
    engine: SemShare, case: Case, missing: Sequence[Method], seed: int, note: Step, *, warm_up: bool
) -> Iterator[Row]:
    """The rows of one case, full prefill's first."""
    example = case.example
    note(f"{case.scenario} {example.id}: remembering donors")
    started = time.perf_counter()
    for donor in example.donors:
        engine.remember(donor, namespace=_NAMESPACE, pinned=True)  # the same ones for all methods
    build_s = time.perf_counter() - started
    try:
        task = Task(_NAMESPACE, _continuation(engine, case), case.answer_tokens)
        if warm_up:  # memory is mapped and code is loaded by one that is not timed
            for method in missing:
                note(f"warming up {method.name}")
                with suppress(UnsupportedModel, PromptTooLong):
                    method.run(engine, example, replace(task, max_tokens=2))
        reference: Reference | None = None
        for method in (FULL, *(one for one in missing if one.name != FULL.name)):
            note(f"{case.scenario} {example.id} {method.name}")
            try:
                outcome = method.run(engine, example, task)
            except (UnsupportedModel, PromptTooLong) as error:
                if method is FULL:
                    raise
                _logger.warning("%s was not run on %s: %s", method.name, example.id, error)
                continue
            if reference is None:
                reference = Reference(outcome, task.continuation, build_s)
            if method in missing:
                yield row_of(
                    engine,
                    case.dataset,
                    case.scenario,
                    case.length,
                    example,
                    method.name,
                    outcome,
                    reference,
                    answer_tokens=case.answer_tokens,
                    seed=seed,
                )
    finally:
        engine.forget_all(_NAMESPACE)


def _continuation(engine: SemShare, case: Case) -> list[int]:
    """Ids of the text to score: the gold one, or full prefill's own answer."""
    gold = case.example.gold
    if gold is not None:
        ids = engine.tokenizer(gold, add_special_tokens=False)["input_ids"]
        # A fact comes last in its answer, so that one is never cut.
        return list(ids if case.example.fact else ids[: case.answer_tokens])
    blank = Task(_NAMESPACE, [0], min(case.answer_tokens, OWN_ANSWER_TOKENS))
    answer = FULL.run(engine, case.example, blank)
    # An empty answer is scored as its end token.
    return answer.token_ids or [int(answer.logits[0].argmax())]


def _setting(engine: SemShare, spec: RunSpec, methods: Sequence[Method]) -> dict[str, Any]:
    return {
        "runs": [json.loads(json.dumps(asdict(spec)))],  # as it is read again
        "methods": {method.name: method.about for method in methods},
        "model": engine.model_name,
        "dtype": engine.dtype,
        "split": spec.split,
        "seed": spec.seed,
        "answer_tokens": spec.answer_tokens,
        "machine": machine(),
        "versions": versions(),
    }


def _claim(out: Path, setting: dict[str, Any]) -> dict[str, Any]:
    """Note in the folder what its rows are of, and return the setting of all that it holds.

    Raises:
        InvalidRequest: it holds rows that can't stand beside these.

    """
    path = out / RUN
    if path.exists():
        before = json.loads(path.read_text(encoding="utf-8"))
        for name in _SAME:
            there, here = before.get(name), setting[name]
            if there != here:
                raise InvalidRequest(
                    f"{out} holds rows of {name} {there!r}, not {here!r}: choose another --out"
                )
        new = [spec for spec in setting["runs"] if spec not in before["runs"]]
        methods = before["methods"] | setting["methods"]
        setting = setting | {"runs": [*before["runs"], *new], "methods": methods}
    path.write_text(json.dumps(setting, indent=1) + "\n", encoding="utf-8")
    return setting
