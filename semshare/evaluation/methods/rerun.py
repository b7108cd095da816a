"""The noise floor: exact KV of the very same prompt, with the last rows computed apart."""

from __future__ import annotations

from dataclasses import dataclass, replace

from semshare import ReusePolicy, SemShare
from semshare.evaluation.material import Example
from semshare.evaluation.methods.base import ForEveryExample, Outcome, Task, serve

EXACT = ReusePolicy(mode="prefix")


@dataclass(frozen=True, slots=True)
class Rerun(ForEveryExample):
    """The prompt served twice, the second time from what the first has left.

    The first time is in a namespace of its own and not counted. Another batch shape alone changes
    logits by rounding, and in 16 bits some of the most likely tokens: no method can do better.
    """

    name: str = "rerun"
    about: str = "the noise floor: the same prompt from its own exact KV"

    def run(self, engine: SemShare, example: Example, task: Task) -> Outcome:
        """Serve the target from its own cached prefix."""
        private = f"{task.namespace}/rerun"
        try:
            engine.score(example.target, task.continuation[:1], policy=EXACT, namespace=private)
            return serve(engine, example.target, EXACT, replace(task, namespace=private))
        finally:
            engine.forget_all(private)


RERUN = Rerun()
