"""Picks the next token from logits."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from semshare.errors import InvalidRequest

_GREEDY_BELOW = 1e-5  # logits divided by less may overflow


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How tokens are drawn. A temperature of 0, or below 1e-5, is greedy and ignores the rest.

    top_k of 0 and top_p of 1 leave all tokens in; `seed` of None draws a new one.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None

    def __post_init__(self) -> None:
        for name, low, high in (("temperature", 0.0, 100.0), ("top_p", 0.0, 1.0)):
            value = getattr(self, name)
            if not low <= value <= high:  # also refuses NaN
                raise InvalidRequest(f"{name} is {value!r}: it must lie between {low} and {high}")
        if self.top_p == 0.0:
            raise InvalidRequest("top_p is 0: no token would be left; use a temperature of 0")
        if self.top_k < 0:
            raise InvalidRequest(f"top_k is {self.top_k}: it must be 0 (all tokens) or more")


class Sampler:
    """Draws the tokens of one answer."""

    def __init__(self, params: SamplingParams) -> None:
        self._params = params
        self._generator = torch.Generator()
        if params.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(params.seed % 2**63)

    def pick(self, logits: Tensor) -> int:
        """A token id from `logits` `[vocab]` float32."""
        if self._params.temperature < _GREEDY_BELOW:
            return int(logits.argmax())
        scaled = logits.cpu() / self._params.temperature
        if 0 < self._params.top_k < len(scaled):
            scaled[scaled < scaled.topk(self._params.top_k).values[-1]] = -torch.inf
        probabilities = torch.softmax(scaled, dim=-1)
        if self._params.top_p < 1.0:
            ordered, order = probabilities.sort(descending=True)
            before = ordered.cumsum(dim=-1) - ordered  # the most likely token is always kept
            probabilities[order[before >= self._params.top_p]] = 0.0
        return int(torch.multinomial(probabilities, 1, generator=self._generator))
