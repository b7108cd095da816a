"""A prompt whose KV is held, for another engine to read."""

from __future__ import annotations

from contextlib import ExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Self

import torch

from semshare.engine.generation import Request
from semshare.engine.rows import rotations
from semshare.engine.stopwatch import Stopwatch
from semshare.errors import InvalidPolicy, InvalidRequest
from semshare.kv.exchange import LayerKV
from semshare.types import Ids, Provenance, Timings
from semshare_kernels.rotary import rotated

if TYPE_CHECKING:
    from semshare.session import Session


class PrefilledPrompt:
    """A prompt that has been prefilled as any request, with reused KV where its policy allows it.

    Its KV stays until `release`, or until the end of a `with` block. The engine's lock is held only
    while a layer is copied, so that a slow reader delays nobody. Thread-safe.

    Args:
        session: of the engine.
        request: the prompt, whose donors may be used how, and whether it is still wanted.
        watch: counts the stages.

    Attributes:
        ids: `[n]` int32 of the prompt.
        provenance: where each token's KV comes from.
        timings: of the prefill.

    Raises:
        GivenUp: the request was given up.
        InvalidPolicy: the policy drops a part of the KV, so that there is no whole to read.
        PoolExhausted: no KV slots, and nothing left to evict.

    """

    def __init__(self, session: Session, request: Request, watch: Stopwatch) -> None:
        policy = request.policy
        if policy.retention != 1.0:
            raise InvalidPolicy(
                f"policy.retention is {policy.retention}: KV that is read from elsewhere is read "
                "whole, so it must be 1.0"
            )
        self._session = session
        self._released = False
        self._held = ExitStack()
        prefilling = session.outside.served(request, watch, between=request.between_chunks)
        served = self._held.enter_context(prefilling)
        watch.first_token()
        try:
            with session.lock, torch.inference_mode():
                session.keep(served, served.ids, served.sequence, policy)
                table = served.sequence.key_table()
                self._slots = torch.from_numpy(table.slots.copy()).to(session.model.device)
                # What is read in place of a donor was rotated for the donor's positions.
                self._turns = rotations(session.model, table.shifts)
        except BaseException:
            self._held.close()
            raise
        self.ids: Ids = served.ids
        self.provenance: Provenance = served.provenance
        self.timings: Timings = watch.timings()

    def layer(self, index: int) -> LayerKV:
        """A copy of one layer's KV as the prompt's answer would read it.

        Returns:
            `[n, kv_heads, d]` keys and values in the model's dtype, on its device.

        Raises:
            InvalidRequest: the prompt was released.

        """
        session = self._session
        with session.lock, torch.inference_mode():
            if self._released:
                raise InvalidRequest("the prefilled prompt was released: prefill it again")
            key = session.pool.keys[index][self._slots]
            value = session.pool.values[index][self._slots]
            turn = self._turns.get(session.model.rope_kinds[index])
            return LayerKV(key if turn is None else rotated(key, turn), value)

    def release(self) -> None:
        """Give its slots back; safe to call twice."""
        with self._session.lock:
            self._released = True
            self._held.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()
