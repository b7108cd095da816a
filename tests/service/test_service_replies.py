"""Replies: per-token arrays as runs, without loss."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from semshare.types import FreshReason, ReusePlan, TokenSource
from semshare_service.replies import match_body, token_runs

tokens = st.tuples(
    st.sampled_from(list(TokenSource)), st.integers(-1, 1), st.integers(-1, 3), st.integers(0, 4)
)


def plan_of(fresh: int, total: int) -> ReusePlan:
    source = np.full(total, TokenSource.SPAN, np.uint8)
    source[:fresh] = TokenSource.FRESH
    reused = source != TokenSource.FRESH
    return ReusePlan(
        ids=np.zeros(total, np.int32),
        source=source,
        donor=np.where(reused, 0, -1).astype(np.int32),
        position=np.where(reused, np.arange(total), -1).astype(np.int32),
        slots=np.where(reused, np.arange(total), -1).astype(np.int64),
        donors=("d",),
        reasons=np.where(reused, 0, FreshReason.UNMATCHED).astype(np.uint8),
    )


@given(st.lists(tokens, max_size=40))
def test_runs_hold_every_token(rows: list[tuple[int, int, int, int]]) -> None:
    columns = np.array(rows, dtype=np.int32).reshape(-1, 4)
    source, donor, position, reasons = columns.T
    names = ("d0", "d1")
    runs = token_runs(source.astype(np.uint8), donor, position, names, reasons.astype(np.uint8))
    rebuilt = []
    for run in runs:
        for offset in range(run["end"] - run["start"]):
            start = run["donor_start"]
            rebuilt.append(
                (
                    TokenSource[run["source"].upper()],
                    -1 if run["donor"] is None else names.index(run["donor"]),
                    -1 if start is None else start + offset,
                    0 if run["reason"] is None else FreshReason[run["reason"].upper()],
                )
            )
    assert rebuilt == rows
    bounds = [(run["start"], run["end"]) for run in runs]
    assert [start for start, _ in bounds[1:]] == [end for _, end in bounds[:-1]]


def test_runs_are_as_long_as_they_can_be() -> None:
    runs = match_body(plan_of(3, 10))["spans"]
    assert [(run["start"], run["end"], run["source"]) for run in runs] == [
        (0, 3, "fresh"),
        (3, 10, "span"),
    ]
    assert runs[0]["reason"] == "unmatched"
    assert (runs[1]["donor"], runs[1]["donor_start"], runs[1]["reason"]) == ("d", 3, None)
