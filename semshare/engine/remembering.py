"""Prompts computed in full so that they become donors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from semshare.config import ReusePolicy
from semshare.engine.generation import Request
from semshare.engine.stopwatch import Stopwatch
from semshare.types import DonorInfo, Ids

if TYPE_CHECKING:
    from semshare.session import Session


def remember(
    session: Session,
    ids: Ids,
    namespace: str,
    *,
    pinned: bool,
    ttl_s: float | None,
    given_up: Callable[[], bool] | None,
) -> DonorInfo:
    """See `SemShare.remember`."""
    with session.lock:
        session.keeper.check_room(namespace, ids)
    request = replace(_in_full(session, ids, namespace), given_up=given_up)
    with session.outside.served(request, Stopwatch(), between=request.between_chunks) as served:
        history = session.outside.first_history(served)
        with session.lock:
            return session.keeper.keep_donor(
                served, served.sequence, history, pinned=pinned, ttl_s=ttl_s
            )


def complete_pending(session: Session, *, limit: int | None) -> list[DonorInfo]:
    """See `SemShare.complete_pending`."""
    keeper = session.keeper
    finished: list[DonorInfo] = []
    while limit is None or len(finished) < limit:
        with session.lock:
            waiting = keeper.take_pending()
        if waiting is None:
            break
        namespace, ids = waiting
        request = _in_full(session, ids, namespace)
        try:
            with session.outside.served(request, Stopwatch()) as served:
                history = session.outside.first_history(served)
                with session.lock:
                    donor = keeper.keep_pending(served, history)
        except BaseException:
            with session.lock:
                keeper.return_pending(namespace, ids)
            raise
        if donor is not None:
            finished.append(donor)
    return finished


def _in_full(session: Session, ids: Ids, namespace: str) -> Request:
    """To compute a prompt with an answer for its history."""
    room = session.config.history_tokens
    return Request(ids, ReusePolicy(mode="prefix"), namespace, max_tokens=room)
