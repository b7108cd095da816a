"""Random requests of every kind against one engine, with everything that may befall them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from invariants import LIMIT
from prompts import answerable, reworded, words
from running import transformers_logits
from stepping import Stepped, tokens_of

from semshare import DeadlineExceeded, PoolExhausted, ReusePolicy
from semshare.engine.generation import Generation
from semshare.engine.sampling import Sampler, SamplingParams
from semshare.errors import StepFailed
from semshare.types import Ids

NAMESPACES = ("a", "b")


class Injected(Exception):
    """A failure that a test planted."""


@dataclass
class Workload:
    """What happens is drawn from a generator, and so is what fails.

    stepped:      the engine.
    rng:          of all draws.
    pieces:       texts that prompts are put together from.
    policies:     that requests ask for.
    most_tokens:  of an answer.
    failing:      probability that a call of a stage fails; of an interrupt, a tenth of it.
    """

    stepped: Stepped
    rng: np.random.Generator
    pieces: Sequence[Ids]
    policies: Sequence[ReusePolicy]
    most_tokens: int = 6
    failing: float = 0.0
    started: list[Generation] = field(default_factory=list)
    steps: int = 0

    @contextmanager
    def failures(self) -> Iterator[None]:
        """Calls of the planner, the executor and the samplers fail now and then."""
        session = self.stepped.session
        with pytest.MonkeyPatch.context() as patch:
            clock = SimpleNamespace(monotonic=lambda: float(self.steps))
            patch.setattr("semshare.engine.scheduler.time", clock)
            for owner, name in (
                (session.planner, "find_donors"),
                (session.planner, "finish"),
                (session.executor, "load"),
                (session.executor, "run"),
                (Sampler, "pick"),
            ):
                patch.setattr(owner, name, self._failing(getattr(owner, name)))
            yield

    def _failing(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any, **fields: Any) -> Any:
            if self.rng.random() < self.failing:
                raise KeyboardInterrupt if self.rng.random() < 0.1 else Injected
            return call(*args, **fields)

        return wrapper

    def chance(self, probability: float) -> bool:
        return bool(self.rng.random() < probability)

    def any_of(self, several: Sequence[Any]) -> Any:
        return several[self.rng.integers(len(several))]

    def prompt(self) -> Ids:
        """Some pieces one after the other."""
        return np.concatenate([self.any_of(self.pieces) for _ in range(self.rng.integers(1, 4))])

    def submit(self) -> None:
        """One request, or the same a few times."""
        prompt, policy = self.prompt(), self.any_of(self.policies)
        fields = {
            "namespace": self.any_of(NAMESPACES),
            "max_tokens": int(self.rng.integers(1, self.most_tokens + 1)),
            "n": self.any_of([1, 1, 1, 2, 3]),
        }
        for _ in range(self.any_of([1, 1, 1, 2, 4])):
            sampling = SamplingParams()
            if self.chance(0.2):
                sampling = SamplingParams(temperature=1.0, seed=int(self.rng.integers(100)))
            deadline = None
            if self.chance(0.1):
                deadline = float(self.steps + self.rng.integers(10))
            self.started.append(
                self.stepped.submit(
                    prompt, policy=policy, sampling=sampling, deadline=deadline, **fields
                )
            )

    def step(self) -> None:
        self.steps += 1
        try:
            self.stepped.step()
        except KeyboardInterrupt:  # as `Session.stream` lets it pass
            self.stepped.check()

    def cancel(self) -> None:
        going_on = [one for one in self.started if not one.ended]
        if going_on:
            self.stepped.cancel(self.any_of(going_on))

    def call(self) -> None:
        """Something that is done between two steps, by another thread as it were."""
        engine, namespace = self.stepped.engine, self.any_of(NAMESPACES)
        what = self.any_of(
            ["remember", "remember", "score", "publish", "forget", "forget_all", "pending"]
        )
        try:
            if what == "remember":
                engine.remember(self.prompt(), namespace=namespace)
            elif what == "score":
                policy = self.any_of(self.policies)
                engine.score(self.prompt(), "again", namespace=namespace, policy=policy)
            elif what == "publish" and (donors := engine.donors(namespace=namespace)):
                engine.publish(self.any_of(donors).id, namespace=namespace)
            elif what == "forget" and (donors := engine.donors(namespace=namespace)):
                engine.forget(self.any_of(donors).id, namespace=namespace)
            elif what == "forget_all" and self.chance(0.3):
                engine.forget_all(self.any_of([None, namespace]))
            elif what == "pending":
                engine.complete_pending(limit=2)
        except (Injected, KeyboardInterrupt, PoolExhausted):
            pass
        self.stepped.check()

    def finish(self) -> None:
        """Nothing new comes and nothing fails any more: all requests end."""
        for _ in range(5_000):
            if all(one.ended for one in self.started):
                return
            self.step()
        raise AssertionError("some requests never end")


def assert_right(stepped: Stepped, generation: Generation) -> None:
    """An ended request has an error that it may have, or a right answer."""
    last = generation.outbox[-1] if generation.outbox else None
    if generation.error is not None:
        assert isinstance(
            generation.error, Injected | PoolExhausted | DeadlineExceeded | StepFailed
        )
        return
    if last is None or last.answer is None:
        return  # it was cancelled
    request, answer = generation.request, last.answer
    given: dict[int, list[int]] = {index: [] for index in range(request.n)}
    for piece in generation.outbox:
        given[piece.index] += piece.token_ids
    assert list(given.values()) == tokens_of(answer)
    if not answer.provenance.exact or not request.sampling.is_greedy:
        return
    for tokens in tokens_of(answer):
        if tokens:
            ids = np.concatenate((request.ids, np.array(tokens, np.int32)))
            logits = transformers_logits(stepped.engine.model.hf_model, ids[:-1])
            logits = logits[len(request.ids) - 1 :]
            picked = logits[np.arange(len(tokens)), tokens]
            assert float((logits.max(dim=-1).values - picked).max()) <= LIMIT


def shared_pieces(stepped: Stepped, length: int) -> list[Ids]:
    """Texts of about `length` tokens, some of them rewordings or beginnings of others."""
    texts = []
    for seed in range(3):
        base = words(length, seed)
        texts += [base, reworded(base, 50 + seed), answerable(base, seed)[-length:], base[:9]]
    return [stepped.engine.encode(text) for text in texts]
