"""Picks the next token from logits.

bias → temperature → top-k → top-p → min-p → draw, in the order of transformers' logits processors.
vLLM applies min-p before top-k and top-p, so that its top-p counts less mass; with only one of the
two given there is no difference.

A draw is an exponential race: token i finishes at time E_i / p_i, with E_i standard exponential,
and the first one wins, which happens with probability p_i. The E_i come from the request's seed
alone, one for each token of the vocabulary. Logits that differ by rounding, because a request ran
in another batch, say, change a draw only where the first two finish within that rounding of each
other: with probability at most twice the total variation distance (Daliri, Musco and Suresh,
"Coupling without Communication and Drafter-Invariant Speculative Decoding", arXiv 2408.07978).
Walking the cumulative distribution has no such bound: rounding moves all boundaries after it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from semshare.errors import InvalidRequest
from semshare.types import TokenLogprob

Logits: TypeAlias = NDArray[np.float64]  # [vocab]

MAX_LOGPROBS = 20  # alternatives told with a token; OpenAI's limit
_MAX_BIAS = 100.0  # OpenAI's limit
_GREEDY_BELOW = 1e-5  # a smaller temperature is greedy; vLLM draws the same line
_SEEDS = 2**64  # NumPy takes seeds that are not negative
_TINY = np.finfo(np.float64).tiny  # for a time of zero, once in 2⁵³, which has no logarithm


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How tokens are drawn. A temperature of 0, or below 1e-5, is greedy: of the rest it heeds
    `logit_bias` and `logprobs`.

    temperature: divides the logits, 0 to 100.
    top_p:       the fewest most likely tokens stay whose probabilities add up to it, and those tied
                 with the last; above 0, and 1 leaves all in (nucleus sampling, arXiv 1904.09751).
    top_k:       so many most likely tokens stay, and those tied with the last; 0 leaves all in.
    seed:        of the draws; any whole number counts modulo 2⁶⁴, None draws a new one.
    min_p:       tokens stay that are at least so many times as likely as the most likely one, 0 to
                 1; 0 leaves all in (arXiv 2407.01082).
    logit_bias:  token id → number added to its logit, −100 to 100.
    logprobs:    None, or how many most likely tokens, at most 20, are told with each token, beside
                 its own log-probability. Natural logarithms, of the model's own distribution:
                 before bias, temperature and truncation, as vLLM tells them.

    Raises:
        InvalidRequest: a value out of its range.

    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    min_p: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict, hash=False)
    logprobs: int | None = None

    def __post_init__(self) -> None:
        for name, low, high in (
            ("temperature", 0.0, 100.0),
            ("top_p", 0.0, 1.0),
            ("min_p", 0.0, 1.0),
        ):
            value = getattr(self, name)
            if not low <= value <= high:  # also refuses NaN
                raise InvalidRequest(f"{name} is {value!r}: it must lie between {low} and {high}")
        if self.top_p == 0.0:
            raise InvalidRequest("top_p is 0: no token would be left; use a temperature of 0")
        if self.top_k < 0:
            raise InvalidRequest(f"top_k is {self.top_k}: it must be 0 (all tokens) or more")
        if self.logprobs is not None and not 0 <= self.logprobs <= MAX_LOGPROBS:
            raise InvalidRequest(
                f"logprobs is {self.logprobs}: it must be None (none) or from 0 to {MAX_LOGPROBS}"
            )
        for token, bias in self.logit_bias.items():
            if not isinstance(token, (int, np.integer)):
                raise InvalidRequest(
                    f"logit_bias has the key {token!r}: its keys are token ids, whole numbers"
                )
            if not -_MAX_BIAS <= bias <= _MAX_BIAS:
                raise InvalidRequest(
                    f"logit_bias of token {token} is {bias!r}: it must lie between {-_MAX_BIAS} "
                    f"and {_MAX_BIAS}"
                )
        # A copy, so that nobody's later change to the caller's map reaches a running request.
        object.__setattr__(self, "logit_bias", MappingProxyType(dict(self.logit_bias)))

    @property
    def is_greedy(self) -> bool:
        """Whether the most likely token is taken, without a draw."""
        return self.temperature < _GREEDY_BELOW

    def check_vocabulary(self, vocab_size: int) -> None:
        """Raise `InvalidRequest` for a bias on an id that is not among a model's `vocab_size`."""
        for token in self.logit_bias:
            if not 0 <= token < vocab_size:
                raise InvalidRequest(
                    f"logit_bias names token {token}; this model's are 0 to {vocab_size - 1}"
                )

    def for_continuation(self, index: int) -> SamplingParams:
        """For the continuation `index` of n of the same prompt.

        The first one's seed is the request's, so that it says what a request for one answer says.
        The others' follow from it and `index`; without a seed each draws its own.
        """
        if index == 0 or self.seed is None:
            return self
        derived = np.random.SeedSequence(self.seed % _SEEDS, spawn_key=(index,))
        return replace(self, seed=int(derived.generate_state(1, np.uint64)[0]))


@dataclass(frozen=True, slots=True)
class Picked:
    """A token, and how likely the model found it where the request asks."""

    token: int
    logprob: TokenLogprob | None


class Sampler:
    """Draws the tokens of one answer. What it draws depends on its seed and its logits alone."""

    def __init__(self, params: SamplingParams) -> None:
        self._params = params
        self._bias_ids = np.fromiter(params.logit_bias.keys(), np.int64)
        self._bias = np.fromiter(params.logit_bias.values(), np.float64)
        seed = None if params.seed is None else params.seed % _SEEDS
        # PCG64 by name: NumPy promises its numbers, and may change what its default generator is.
        self._generator = np.random.Generator(np.random.PCG64(seed))

    def pick(self, logits: Tensor) -> Picked:
        """The next token from `logits` `[vocab]` float32, which stay as they are."""
        asked = self._params.logprobs
        if not self._params.is_greedy:
            token = self._draw(self._biased(logits) / self._params.temperature)
        elif self._params.logit_bias:
            token = int(self._biased(logits).argmax())
        else:
            token = int(logits.argmax())  # where they lie: no copy from a GPU
        return Picked(token, None if asked is None else token_logprob(logits, token, asked))

    def _biased(self, logits: Tensor) -> Logits:
        biased = _in_float64(logits)
        biased[self._bias_ids] += self._bias
        return biased

    def _draw(self, scores: Logits) -> int:
        """The winner of an exponential race with probabilities softmax(`scores`), truncated."""
        scores = _keep_top_k(scores, self._params.top_k)
        scores = _keep_top_p(scores, self._params.top_p)
        scores = _keep_min_p(scores, self._params.min_p)
        # All tokens run, also those that were left out, so that who is left out at the edge, where
        # rounding may decide it, does not change the other tokens' times. In place, because fresh
        # pages for every array would cost more than the arithmetic.
        log_times = self._generator.standard_exponential(len(scores))
        np.maximum(log_times, _TINY, out=log_times)
        np.log(log_times, out=log_times)
        log_times -= scores
        return int(log_times.argmin())


def _in_float64(logits: Tensor) -> Logits:
    """A copy that may be written to."""
    return logits.cpu().numpy().astype(np.float64)


def token_logprob(logits: Tensor, token: int, top: int) -> TokenLogprob:
    """Natural log-probabilities of `token` and of the `top` most likely ones.

    From raw `logits` `[vocab]`, computed in float64. The likelier come first; of equally likely
    ones, the smaller id.
    """
    scores = _in_float64(logits)
    highest = scores.max()
    total = highest + np.log(np.exp(scores - highest).sum())
    best: list[int] = []
    if top:
        top = min(top, len(scores))
        candidates = np.flatnonzero(scores >= np.partition(scores, -top)[-top])
        best = candidates[np.argsort(-scores[candidates], kind="stable")][:top].tolist()
    return TokenLogprob(
        token_id=token,
        logprob=float(scores[token] - total),
        top=tuple((other, float(scores[other] - total)) for other in best),
    )


def _keep_top_k(scores: Logits, top_k: int) -> Logits:
    """−inf for all but the `top_k` highest and those tied with the last of them."""
    if not 0 < top_k < len(scores):
        return scores
    return np.where(scores >= np.partition(scores, -top_k)[-top_k], scores, -np.inf)


def _keep_top_p(scores: Logits, top_p: float) -> Logits:
    """−inf for all but the fewest highest that hold `top_p`, and those tied with the last of them.

    Logits from bfloat16 are full of ties: together, they stay or go in no particular order.
    """
    if top_p >= 1.0:
        return scores
    probabilities = np.exp(scores - scores.max())
    probabilities /= probabilities.sum()
    # Tokens under (1 − top_p) / vocab hold less than 1 − top_p together, so none of them is needed:
    # what is left to sort is a fraction of the vocabulary.
    ordered = np.sort(probabilities[probabilities >= (1.0 - top_p) / len(scores)])[::-1]
    kept = ordered[ordered.cumsum() - ordered < top_p]  # nothing comes before the first: it stays
    return np.where(probabilities >= kept[-1], scores, -np.inf)


def _keep_min_p(scores: Logits, min_p: float) -> Logits:
    """−inf for tokens less likely than `min_p` times the most likely one."""
    if min_p <= 0.0:
        return scores
    return np.where(scores >= scores.max() + np.log(min_p), scores, -np.inf)
