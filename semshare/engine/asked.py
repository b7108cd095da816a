"""What callers ask for, checked before anything is done about it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from semshare.config import DEFAULT_NAMESPACE, ReusePolicy
from semshare.engine.generation import Request
from semshare.engine.sampling import SamplingParams
from semshare.engine.stopwatch import Stopwatch
from semshare.errors import InvalidRequest
from semshare.types import Prompt

if TYPE_CHECKING:
    from semshare.session import Session


def request_of(
    session: Session,
    prompt: Prompt,
    *,
    max_tokens: int = 64,
    policy: ReusePolicy | None = None,
    namespace: str = DEFAULT_NAMESPACE,
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = 0,
    seed: int | None = None,
    stop: str | Sequence[str] | None = None,
    min_p: float = 0.0,
    logit_bias: Mapping[int, float] | None = None,
    logprobs: int | None = None,
    n: int = 1,
    deadline_s: float | None = None,
    given_up: Callable[[], bool] | None = None,
) -> tuple[Request, Stopwatch]:
    """A prompt with `GenerateOptions`, which tells of each, and the clock that runs since now.

    Raises:
        InvalidRequest: an option that can't work.
        PromptTooLong, PromptOverLimit: see `Session.prompt_ids`.

    """
    started = time.perf_counter()
    most = session.config.max_answers
    for name, value, high in (("max_tokens", max_tokens, math.inf), ("n", n, most)):
        if type(value) is not int or not 1 <= value <= high:
            raise InvalidRequest(
                f"{name} is {value!r}: it must be a whole number, at least 1"
                + (f" and at most {high} (max_answers)" if high < math.inf else "")
            )
    if deadline_s is not None and not 0 < deadline_s < math.inf:
        raise InvalidRequest(f"deadline_s is {deadline_s!r}: it must be above 0, in seconds")
    sampling = SamplingParams(temperature, top_p, top_k, seed, min_p, logit_bias or {}, logprobs)
    sampling.check_vocabulary(session.model.vocab_size)
    ids = session.prompt_ids(prompt, namespace)
    request = Request(
        ids,
        checked_policy(policy),
        namespace,
        max_tokens=min(max_tokens, session.model.max_context - len(ids)),
        sampling=sampling,
        stop=(stop,) if isinstance(stop, str) else tuple(stop or ()),
        n=n,
        deadline=None if deadline_s is None else time.monotonic() + deadline_s,
        given_up=given_up,
    )
    return request, Stopwatch(started, tokenize_s=time.perf_counter() - started)


def checked_policy(policy: ReusePolicy | None) -> ReusePolicy:
    """The policy of a request, the defaults if it names none."""
    if policy is not None and not isinstance(policy, ReusePolicy):
        raise InvalidRequest(
            f"policy is a {type(policy).__name__}: make a ReusePolicy of it, "
            "or use ReusePolicy.from_mapping"
        )
    return policy or ReusePolicy()


def check_ttl(ttl_s: float | None) -> None:
    """Raise `InvalidRequest` for seconds that nothing can live."""
    if ttl_s is not None and not 0 < ttl_s < math.inf:
        raise InvalidRequest(f"ttl_s is {ttl_s!r}: it must be above 0, in seconds, or None")
