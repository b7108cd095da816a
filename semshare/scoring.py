"""How likely a given continuation of a prompt is, through the same path as an answer."""

from __future__ import annotations

import numpy as np
import torch

from semshare.engine.generation import Request
from semshare.engine.stopwatch import Stopwatch
from semshare.errors import PromptTooLong
from semshare.session import Session
from semshare.types import Ids, Score


def score(session: Session, request: Request, target: Ids, watch: Stopwatch) -> Score:
    """Score a continuation, teacher-forced.

    Args:
        session: whose donors are used.
        request: the prompt.
        target: `[n_cont]` the continuation, at least one token.
        watch: counts the stages.

    Raises:
        PromptTooLong: prompt and continuation are longer than the context.
        PoolExhausted: no KV slots, and nothing left to evict.

    """
    ids, most = request.ids, session.model.max_context
    if len(ids) + len(target) > most:
        raise PromptTooLong(len(ids) + len(target), most)
    with session.outside.served(request, watch) as served:
        watch.first_token()
        with session.lock, torch.inference_mode():
            logits = session.outside.score(served.sequence, served.logits, target)
            computed = np.concatenate((ids, target[:-1]))
            session.keep(served, computed, served.sequence, request.policy)
    at = torch.from_numpy(target.astype(np.int64)).to(logits.device)
    logprobs = torch.log_softmax(logits, dim=-1).gather(1, at[:, None])[:, 0]
    return Score(target.tolist(), logprobs, logits, served.provenance, watch.timings())
