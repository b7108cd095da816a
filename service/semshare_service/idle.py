"""What the worker's threads do while no request is there, one item a turn."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Protocol

from semshare.engine.failures import log_failure
from semshare_service.engine import Engine

logger = logging.getLogger(__name__)


class IdleWork(Protocol):
    """What is done while no request is there, one item at a time, in a worker's thread."""

    def has_work(self) -> bool:
        """Whether an item waits."""

    def run_one(self, engine: Engine, busy: Callable[[], bool]) -> None:
        """Work on one item; end soon after `busy`, asked often, is true."""


class Idle:
    """The items: those of `first`, then the prompts that wait to become donors.

    In this order, because a prompt that has become a donor meanwhile would be found as its own
    prefix.

    Args:
        first: other work, if there is any.

    """

    def __init__(self, first: IdleWork | None) -> None:
        self._first = first
        self._may_have_pending = False

    def has_work(self) -> bool:
        """Whether there may be an item."""
        return self._may_have_pending or (self._first is not None and self._first.has_work())

    def request_ended(self) -> None:
        """A request may have left a prompt that is to become a donor, or room for one."""
        self._may_have_pending = True

    def run_one(self, engine: Engine, busy: Callable[[], bool]) -> None:
        """Work on one item. Nobody waits for it: what goes wrong is logged.

        Panics of extensions among it, so that the thread lives on.
        """
        try:
            if self._first is not None and self._first.has_work():
                self._first.run_one(engine, busy)
            else:
                self._complete_one(engine)
        except BaseException as error:
            log_failure("idle work failed", error, level=logging.ERROR)

    def _complete_one(self, engine: Engine) -> None:
        """Compute one prompt that waits to become a donor."""
        self._may_have_pending = False
        try:
            if engine.complete_pending(limit=1):
                self._may_have_pending = True
        except BaseException as error:
            # Answers don't depend on it. It would fail again until a request has changed something
            # (`PoolExhausted`), so the next one comes first.
            log_failure("a prompt that was to be remembered could not be computed", error)
