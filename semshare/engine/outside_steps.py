"""Prompts computed outside of the steps that requests share: donors, scores, verification.

They take turns with the steps, chunk by chunk, where others are being answered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import torch

from semshare.engine.continuation import Continuation
from semshare.engine.generation import Request
from semshare.engine.rows import AttentionRecord
from semshare.engine.sampling import Sampler, SamplingParams
from semshare.engine.served import Served
from semshare.engine.stopwatch import Stopwatch
from semshare.engine.text import TextAssembler
from semshare.errors import PoolExhausted
from semshare.kv.sequence import KVSequence
from semshare.types import Ids, Scores

if TYPE_CHECKING:
    from semshare.session import Planning, Session


class OutsideSteps:
    """What a session computes for one caller alone.

    Args:
        session: whose model, pool and donors are used.

    """

    def __init__(self, session: Session) -> None:
        self._session = session

    @contextmanager
    def served(
        self,
        request: Request,
        watch: Stopwatch,
        *,
        planning: Planning | None = None,
        leaves_nothing: bool = False,
        between: Callable[[], None] | None = None,
    ) -> Iterator[Served]:
        """A prompt prefilled outside of the steps, in chunks where others are being answered.

        Its KV is held until the block ends.

        Args:
            request: the prompt, and whose donors may be used how.
            watch: counts the stages.
            planning: makes the plan in place of `plan`.
            leaves_nothing: no later prompt begins with its KV, even where it is exact.
            between: called without the lock after each chunk, which then has no more than
                `prefill_rows` rows whether others are being answered or not. What it raises ends
                the prefill.

        """
        session = self._session
        if planning is None and not leaves_nothing:
            session.load_stored([(request, watch)])
        with session.lock, torch.inference_mode():
            session.counters["requests"] += 1
            served = session.begin(request, watch, planning=planning)
            served.forgotten = leaves_nothing
        try:
            while not served.prefilled:
                with session.lock, torch.inference_mode(), watch.measure("prefill"):
                    chunk = session.config.prefill_rows
                    most = chunk if between else session.scheduler.rows_outside()
                    rows = served.next_rows(most)
                    try:
                        (result,) = session.executor.run([rows])
                        served.took(rows, result)
                    except Exception as error:
                        served.failed(error)
                if between is not None:
                    between()
            with session.lock:
                session.prefilled(served)
            yield served
        finally:
            with session.lock:
                served.release()
                session.no_longer_served(served)

    def first_history(self, served: Served) -> Scores:
        """Attention `[n]` that a greedy answer pays to each token of a prefilled prompt."""
        session = self._session
        record = AttentionRecord()
        room = session.model.max_context - served.sequence.length
        if session.config.history_tokens:
            with suppress(PoolExhausted):  # some history is better than none
                # The last token is not computed.
                self.greedy(served, min(session.config.history_tokens, room) + 1, record)
        return record.upto(len(served.ids))

    def greedy(
        self, served: Served, max_tokens: int, record: AttentionRecord | None = None
    ) -> Continuation:
        """A greedy answer to a prefilled prompt, decoded outside of the steps.

        It is appended to the prompt's sequence.

        Args:
            served: the prompt.
            max_tokens: most tokens of the answer.
            record: adds the attention that the answer's tokens pay.

        Raises:
            PoolExhausted: no slots, and nothing left to evict.

        """
        session = self._session
        answer = Continuation(
            served.sequence,
            Sampler(SamplingParams()),
            TextAssembler(session.encoder.decode, ()),
            session.eos,
            max_tokens,
            emit=lambda _: None,
            record=record,
        )
        answer.take(served.logits[-1])
        while not answer.ended:
            with session.lock, torch.inference_mode():
                rows = answer.next_rows(1)
                (result,) = session.executor.run([rows])
                answer.took(rows, result.logits)
        return answer

    def score(self, sequence: KVSequence, first: torch.Tensor, tokens: Ids) -> torch.Tensor:
        """Logits `[n, vocab]` float32 that each of `tokens` `[n]` could be picked from.

        All tokens but the last are appended to the sequence. The caller holds `lock`.

        Args:
            sequence: a prefilled prompt.
            first: `[1, vocab]` float32, of its last token.
            tokens: what is given after it, at least one.

        Raises:
            PoolExhausted: no slots, and nothing left to evict.

        """
        if len(tokens) == 1:
            return first
        positions = sequence.append(len(tokens) - 1)
        rest = self._session.executor.forward(sequence, tokens[:-1], positions, all_logits=True)
        return torch.cat((first, rest.logits))
