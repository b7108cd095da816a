"""Controls that read another prompt than the target: the donor's document, and none at all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from semshare import InvalidRequest, ReusePolicy, SemShare
from semshare.evaluation.material import Example, Messages
from semshare.evaluation.methods.base import Outcome, Task, serve


@dataclass(frozen=True, slots=True)
class OtherPrompt:
    """A full prefill of another prompt of the example.

    Args:
        name, about: see `Method`.
        prompt_of: that prompt; None where the example has none.

    """

    name: str
    about: str
    prompt_of: Callable[[Example], Messages | None]

    def applies(self, example: Example) -> bool:
        """Whether the example has that prompt."""
        return self.prompt_of(example) is not None

    def run(self, engine: SemShare, example: Example, task: Task) -> Outcome:
        """Serve that prompt in full.

        Raises:
            InvalidRequest: the example has none.

        """
        prompt = self.prompt_of(example)
        if prompt is None:
            raise InvalidRequest(
                f"example {example.id!r} has no prompt for the method {self.name!r}: "
                "leave out examples that it does not apply to"
            )
        return serve(engine, prompt, ReusePolicy(mode="off"), task)


DONOR_TEXT = OtherPrompt(
    "donor_text",
    "control: the donors' document read in full in the place of the target's",
    lambda example: example.donor_text,
)
NO_CONTEXT = OtherPrompt(
    "no_context",
    "control: the question without its document",
    lambda example: example.no_context,
)
