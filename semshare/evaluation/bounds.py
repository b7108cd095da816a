"""How good reuse has to be before its speed may be told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from semshare.errors import BenchmarkRefused

Record = dict[str, Any]

# Exact KV computed in other batches differs by rounding alone. The floor is one sample of that
# difference's maximum; another sample is within this factor of it.
ROUNDING_FACTOR = 2.0
ROUNDING_MINIMUM = 1e-4  # float32 logits, where the floor itself can be 0

# What is left of KL where the same exact KV was computed in other batches, nats a token.
ROUNDING_KL = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}


class FidelityMissed(BenchmarkRefused):
    """A benchmark whose fidelity missed its bound. `record` is what it found, without speeds."""

    def __init__(self, reasons: list[str], record: Record) -> None:
        name = record["scenario"]
        super().__init__(f"{name}: {'; '.join(reasons)}. No speed is reported.")
        self.reasons = reasons
        self.record = record


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a scenario has to reach; None: not bounded.

    speedup: prompt length in tokens → speedup aimed at; missing it refuses nothing.
    kl:      most nats a token.
    top1:    least share of tokens with the same most likely token.
    pgr:     least share of the gap between no context and full prefill.
    exact:   no approximate token, and logits as near to full prefill's as the floor's.
    """

    speedup: Mapping[int, float]
    kl: float | None = None
    top1: float | None = None
    pgr: float | None = None
    exact: bool = False

    def speedup_at(self, tokens: int) -> float:
        """The figure for this length; where there are several, the nearest length's."""
        return self.speedup[min(self.speedup, key=lambda length: abs(length - tokens))]

    def missed(self, record: Record) -> list[str]:
        """Every bound the record misses, as a sentence with both numbers; empty if none."""
        reasons = []
        for name, limit, sign in (
            ("kl", self.kl, 1),
            ("top1", self.top1, -1),
            ("pgr", self.pgr, -1),
        ):
            value = record[name]
            # `not <=` also catches NaN.
            if limit is not None and (value is None or not sign * value <= sign * limit):
                reasons.append(
                    f"{name} is {value}, the {'most' if sign > 0 else 'least'} is {limit}"
                )
        if self.exact:
            reasons += _missed_exactness(record)
        if record["fallbacks"]:
            reasons.append(f"{record['fallbacks']} requests fell back to full prefill")
        if not record["plans_stable"]:
            reasons.append("repeats of one request did not reuse the same tokens")
        return reasons


def _missed_exactness(record: Record) -> list[str]:
    reasons = []
    if not record["exact"]:
        reasons.append("approximate KV was used where only exact KV may be")
    limit = ROUNDING_FACTOR * record["max_logit_diff_floor"] + ROUNDING_MINIMUM
    if not record["max_logit_diff"] <= limit:
        reasons.append(
            f"max_logit_diff is {record['max_logit_diff']}, the most is {limit:.6g}, "
            f"{ROUNDING_FACTOR:g} × the floor"
        )
    return reasons
