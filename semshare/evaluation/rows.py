"""What one method made of one example: a line of `rows.jsonl`, all that reports are made from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeAlias

from semshare.errors import InvalidRequest

# dataset, scenario, length, example, method, seed
RowKey: TypeAlias = tuple[str, str, int, str, str, int]


@dataclass(frozen=True, slots=True)
class Row:
    """One method, one example. None: the metric does not apply here.

    Lower is better for `kl` and `leak`; for the other qualities higher is.

    dataset, scenario, length, example, method, seed: which it is; `length` is the tokens that were
                      asked for.
    tokens:           of the prompt that was served.
    compute_fraction: (token, layer) pairs computed / all of them.
    hit_rate:         share of the prompt's tokens that were not computed.
    fallback:         why everything was computed after all, if it was.
    ttft_s:           text to first token: lookup, plan, load and prefill counted.
    lookup_s, plan_s, load_s, prefill_s: parts of it.
    decode_s:         per answer token after the first; None for answers of one token.
    build_s:          to compute and index the example's donors, once for all methods.
    kv_bytes:         KV of the prompt that a decode step reads.
    own_kv_bytes:     KV that the request holds by itself, not shared with a donor.
    kl:               mean KL(full ‖ method) over the scored text, nats a token.
    top1:             share of those tokens with the same most likely token as full prefill.
    kl_by_position:   KL of each of those tokens.
    log_likelihood:   of the gold text, mean nats a token.
    rouge1, rouge2, rouge_l: F1 of the answer against the gold text, 0 to 1.
    token_f1, edit_similarity: of the answer against the best reference, where the set is scored so.
    rouge_l_own:      F1 of the answer against full prefill's own answer.
    numbers, entities: share of the answer's numbers, of its names, that are in the prompt.
    right:            whether the prompt's fact is preferred to the donor's (`facts`), or whether
                      the answer chooses the right letter.
    leak:             whether the donor's fact is the likeliest answer (`facts`); elsewhere whether
                      the answer has a name or number that only the donors have.
    answer:           its greedy answer.
    sources:          of the prompt's tokens in order, [name of the source, how many] for each run.
    """

    dataset: str
    scenario: str
    length: int
    example: str
    method: str
    seed: int
    tokens: int
    compute_fraction: float
    hit_rate: float
    fallback: str | None
    ttft_s: float
    lookup_s: float
    plan_s: float
    load_s: float
    prefill_s: float
    decode_s: float | None
    build_s: float
    kv_bytes: int
    own_kv_bytes: int
    kl: float
    top1: float
    kl_by_position: list[float]
    log_likelihood: float | None = None
    rouge1: float | None = None
    rouge2: float | None = None
    rouge_l: float | None = None
    token_f1: float | None = None
    edit_similarity: float | None = None
    rouge_l_own: float | None = None
    numbers: float | None = None
    entities: float | None = None
    right: bool | None = None
    leak: bool | None = None
    answer: str = ""
    sources: list[tuple[str, int]] | None = None

    @property
    def key(self) -> RowKey:
        """What it is a measurement of; there is one row a key."""
        return (
            self.dataset,
            self.scenario,
            self.length,
            self.example,
            self.method,
            self.seed,
        )

    def to_json(self) -> dict[str, Any]:
        """JSON-ready, every field present."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Row:
        """From a decoded line.

        Raises:
            InvalidRequest: a field is missing or unknown: the line is of another version.

        """
        names = {field.name for field in fields(cls)}
        if set(values) != names:
            wrong = ", ".join(sorted(set(values) ^ names))
            raise InvalidRequest(
                f"a row with other fields than this version's ({wrong}): choose another --out"
            )
        sources = values["sources"]
        runs = None if sources is None else [(name, count) for name, count in sources]
        return cls(**{**values, "sources": runs})


class RowFile:
    """The rows of a run, written as they come, so that a run that was stopped can go on.

    A line that was cut off by a crash is dropped with what follows it.

    Args:
        path: of `rows.jsonl`; made on the first row.

    Raises:
        InvalidRequest: a whole line is not a row of this version.

    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._cut_off: int | None = None  # where a line begins that was never finished
        self.rows: list[Row] = []
        if path.exists():
            self._read()

    def _read(self) -> None:
        whole = 0  # bytes
        for line in self._path.read_bytes().splitlines(keepends=True):
            if not line.endswith(b"\n"):
                self._cut_off = whole
                break
            try:
                values = json.loads(line)
            except ValueError:
                raise InvalidRequest(
                    f"line {len(self.rows) + 1} of {self._path} is not JSON: remove the file, or "
                    "choose another --out"
                ) from None
            self.rows.append(Row.from_json(values))
            whole += len(line)

    @property
    def keys(self) -> set[RowKey]:
        """What has been measured."""
        return {row.key for row in self.rows}

    def append(self, row: Row) -> None:
        """Keep a row, on disk before this returns."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        line = json.dumps(row.to_json()).encode() + b"\n"
        with self._path.open("ab") as file:
            if self._cut_off is not None:
                file.truncate(self._cut_off)
            file.write(line)
        self._cut_off = None
        self.rows.append(row)
