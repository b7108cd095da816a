"""Methods that prefill in full and answer from a part of the KV: they save memory, not prefill."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch

from semshare import Provenance, SemShare
from semshare.engine.sampling import Sampler, SamplingParams
from semshare.engine.stopwatch import Stopwatch
from semshare.engine.text import TextAssembler
from semshare.errors import InvalidRequest, PromptTooLong
from semshare.evaluation.material import Example
from semshare.evaluation.methods.base import ForEveryExample, Outcome, Task
from semshare.evaluation.methods.head_cache import Choose, HeadCache, PromptLayer
from semshare.planning.plan import full_plan
from semshare.types import Ids

RATIO = 0.4  # of the prompt's KV that is kept

# The budgets of a prompt's layers in tokens, at least one: tokens, layers and ratio.
Budgets = Callable[[int, int, float], tuple[int, ...]]
# What a layer keeps under its budget: `[kv_heads, budget]`, see `Choose`.
ChooseWithin = Callable[[PromptLayer, int], torch.Tensor]


def alike(tokens: int, n_layers: int, ratio: float) -> tuple[int, ...]:
    """The same budget for every layer."""
    return (max(round(ratio * tokens), 1),) * n_layers


@dataclass(frozen=True, slots=True)
class Compressor(ForEveryExample):
    """A way to choose which KV of a prompt is kept.

    The time to the first token counts the choosing: its scores can't be had from fused attention.

    Args:
        name, about: see `Method`.
        choose: what a layer keeps under its budget.
        budgets: of the layers.
        ratio: of all (token, layer) pairs of the prompt that are kept; above 0, and 1 keeps all.

    Raises:
        InvalidRequest: `ratio` is out of its range.

    """

    name: str
    about: str
    choose: ChooseWithin
    budgets: Budgets = alike
    ratio: float = RATIO

    def __post_init__(self) -> None:
        if not 0.0 < self.ratio <= 1.0:
            raise InvalidRequest(
                f"ratio is {self.ratio!r}: it must be above 0, and 1 keeps everything"
            )

    def run(self, engine: SemShare, example: Example, task: Task) -> Outcome:
        """Serve the target in full, then score and answer from what is kept.

        Raises:
            PromptTooLong: the prompt leaves no room in the model's context.
            UnsupportedModel: see `HeadCache`.

        """
        session, watch = engine.session, Stopwatch()
        ids = session.encoder.prompt_ids(example.target)
        room = max(len(task.continuation), task.max_tokens)
        if len(ids) + room > engine.max_context:
            raise PromptTooLong(len(ids) + room, engine.max_context)
        with session.lock, torch.inference_mode():
            with watch.measure("prefill"):
                choose = self._choose_for(len(ids), engine.model.n_layers)
                cache = HeadCache(engine.model, ids, choose, room=room)
            watch.first_token()
            given = np.asarray(task.continuation, dtype=np.int32)
            logits = cache.prompt_logits
            if len(given) > 1:
                logits = torch.cat((logits, cache.extend(given[:-1])))
            cache.rewind()
            answering = Stopwatch()
            tokens = _greedy(cache, session.eos, task.max_tokens)
            decode_s = answering.elapsed_s
        text = TextAssembler(session.encoder.decode, ())
        for token in tokens:
            text.push(token)
        text.finish()
        return Outcome(
            logits=logits,
            token_ids=tokens,
            text=text.text,
            provenance=_in_full(ids, cache.kept_share),
            timings=replace(watch.timings(), decode_s=decode_s),
            kv_bytes=cache.bytes,
            own_kv_bytes=cache.bytes,
        )

    def _choose_for(self, tokens: int, n_layers: int) -> Choose:
        budgets = self.budgets(tokens, n_layers, self.ratio)
        return partial(_choose_by_layer, self.choose, budgets)


def _choose_by_layer(
    choose: ChooseWithin, budgets: tuple[int, ...], layer: PromptLayer
) -> torch.Tensor:
    return choose(layer, budgets[layer.index])


def _greedy(cache: HeadCache, eos: frozenset[int], max_tokens: int) -> list[int]:
    sampler, tokens = Sampler(SamplingParams()), list[int]()
    logits = cache.prompt_logits
    while True:
        token = sampler.pick(logits[-1]).token
        if token in eos:
            return tokens
        tokens.append(token)
        if len(tokens) == max_tokens:
            return tokens
        logits = cache.extend(np.array([token], dtype=np.int32))


def _in_full(ids: Ids, kept_share: float) -> Provenance:
    plan = full_plan(ids)
    return Provenance(
        source=plan.source,
        donors=(),
        donor=plan.donor,
        donor_position=plan.position,
        compute_fraction=1.0,
        exact=kept_share == 1.0,
        mode="off",
        retained=kept_share,
    )
