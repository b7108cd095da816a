"""Ours with repair: reused tokens are computed exactly while the answer is decoded."""

from __future__ import annotations

from dataclasses import dataclass

from semshare import ReusePolicy, SemShare
from semshare.evaluation.forced import answer_alone, decode_forced
from semshare.evaluation.material import Example
from semshare.evaluation.methods.base import ForEveryExample, Outcome, Task


@dataclass(frozen=True, slots=True)
class Repaired(ForEveryExample):
    """The prompt served twice by the scheduler's steps: once to score, once to answer.

    Args:
        name, about: see `Method`.
        policy: asks for repair.

    """

    name: str
    about: str
    policy: ReusePolicy

    def run(self, engine: SemShare, example: Example, task: Task) -> Outcome:
        """Serve the target. Provenance and times are those of its own answer.

        `own_kv_bytes` counts the prompt once it is repaired; until then the mixture is there too.
        """
        scored = decode_forced(
            engine,
            example.target,
            tokens=task.continuation,
            n=len(task.continuation),
            policy=self.policy,
            namespace=task.namespace,
            leaves_nothing=True,
        )
        answer = answer_alone(
            engine,
            example.target,
            max_tokens=task.max_tokens,
            policy=self.policy,
            namespace=task.namespace,
        )
        shared = answer.provenance.counts["prefix"]
        return Outcome(
            logits=scored.logits,
            token_ids=answer.token_ids,
            text=answer.text,
            provenance=answer.provenance,
            timings=answer.timings,
            kv_bytes=answer.prompt_tokens * engine.pool.bytes_per_slot,
            own_kv_bytes=(answer.prompt_tokens - shared) * engine.pool.bytes_per_slot,
        )


SEMSHARE_REPAIR = Repaired(
    "semshare_repair",
    "this library's defaults, reused tokens computed exactly beside the answer",
    ReusePolicy(repair="eager"),
)
