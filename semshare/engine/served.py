"""One request between prefill and its end, and the clock of its stages."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from semshare.config import ReuseMode
from semshare.kv.pool import Pages
from semshare.kv.sequence import KVSequence
from semshare.types import Provenance, ReusePlan, Timings

# Stage → the field of `Timings` that it counts towards.
_FIELD = {
    "find_donors": "lookup_s",
    "align": "lookup_s",
    "guard": "plan_s",
    "plan": "plan_s",
    "load": "load_s",
    "prefill": "prefill_s",
}


class Stopwatch:
    """Seconds by stage, and which stage was last entered.

    Args:
        started: `time.perf_counter()` when the request came; now if None.
        tokenize_s: seconds already spent on tokenizing.

    """

    def __init__(self, started: float | None = None, *, tokenize_s: float = 0.0) -> None:
        self._started = time.perf_counter() if started is None else started
        self._seconds = dict.fromkeys(_FIELD.values(), 0.0)
        self._tokenize_s = tokenize_s
        self._first_token: float | None = None
        self.stage = "start"

    @contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        """Count the block's time towards `stage`."""
        self.stage = stage
        entered = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[_FIELD[stage]] += time.perf_counter() - entered

    def first_token(self) -> None:
        """The first token is there; later calls change nothing."""
        if self._first_token is None:
            self._first_token = time.perf_counter()

    def timings(self) -> Timings:
        """All of it; decoding is what came after the first token."""
        now = time.perf_counter()
        first = now if self._first_token is None else self._first_token
        return Timings(
            tokenize_s=self._tokenize_s,
            ttft_s=first - self._started,
            decode_s=now - first,
            **self._seconds,
        )


@dataclass(frozen=True, slots=True)
class PrefillRun:
    """A plan that was executed."""

    plan: ReusePlan
    sequence: KVSequence
    logits: Tensor  # [1, vocab] float32, of the prompt's last token
    rows_computed: int  # (row, layer) pairs


@dataclass(slots=True, eq=False)
class Served:
    """A prefilled prompt, ready to be answered."""

    plan: ReusePlan
    sequence: KVSequence
    logits: Tensor  # [1, vocab] float32, of the prompt's last token
    provenance: Provenance
    namespace: str
    forgotten: bool = False  # its namespace was cleared while it was answered: nothing may stay

    @property
    def exact_pages(self) -> Pages:
        """Pages of all tokens in order; only meaningful where everything is exact."""
        pool = self.sequence.pool
        prefix = self.plan.slots[self.plan.slots >= 0]
        return np.concatenate(
            (prefix[:: pool.page_size] // pool.page_size, self.sequence.own_pages)
        )


def provenance_of(
    run: PrefillRun, rows_computed: int, n_layers: int, mode: ReuseMode, fallback: str | None
) -> Provenance:
    """What the caller is told about a prefill."""
    plan = run.plan
    return Provenance(
        source=plan.source,
        donors=plan.donors,
        donor=plan.donor,
        donor_position=plan.position,
        compute_fraction=rows_computed / (len(plan.ids) * n_layers),
        exact=plan.is_exact,
        mode=mode,
        fallback=fallback,
    )
