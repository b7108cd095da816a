"""Prompts that wait to become donors."""

from __future__ import annotations

from unittest import mock

import numpy as np

from semshare.engine.keeper import MAX_PENDING, Keeper
from semshare.types import Ids


def prompt(number: int) -> Ids:
    return np.array([number], np.int32)


def test_a_prompt_that_could_not_be_computed_waits_on_behind_a_full_queue() -> None:
    keeper = Keeper(mock.Mock())
    for number in range(MAX_PENDING):
        assert keeper.add_pending("a", prompt(number))
    assert keeper.take_pending() == ("a", prompt(0))
    assert keeper.add_pending("a", prompt(MAX_PENDING))
    keeper.return_pending("a", prompt(0))
    assert not keeper.add_pending("a", prompt(MAX_PENDING + 1))
    taken = [keeper.take_pending() for _ in range(keeper.pending)]
    assert taken[-1] == ("a", prompt(0))
    assert len(taken) == MAX_PENDING + 1
