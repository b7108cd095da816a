"""What matching and the guard want to know of a donor's tokens, besides their ids."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Protocol

import numpy as np
from torch import Tensor

from semshare.donors.token_lsh import TokenLSH
from semshare.planning.guard import FactMarks, mark_facts
from semshare.types import Ids


class TokenTraits(Protocol):
    """Of one donor's tokens `[n]`."""

    @property
    def codes(self) -> Tensor:
        """`[n, words]` int64 of `TokenLSH`, at the donor's own positions."""

    @property
    def marks(self) -> FactMarks:
        """Which of them carry facts."""

    def compute(self) -> None:
        """Know them from now on, so that no request has to wait for that."""


TraitsOf = Callable[[Ids], TokenTraits]


class LazyTraits:
    """Traits that are computed when they are first asked for.

    Codes take 32 bytes a token, so a donor that only lies on a disk has none until it is compared.

    Args:
        ids: `[n]` of the donor.
        lsh: codes them.
        texts: gives the text of each.

    """

    def __init__(self, ids: Ids, lsh: TokenLSH, texts: Callable[[Ids], Sequence[str]]) -> None:
        self._ids = ids
        self._lsh = lsh
        self._texts = texts

    @cached_property
    def codes(self) -> Tensor:
        """See `TokenTraits`."""
        return self._lsh.encode(self._ids, np.arange(len(self._ids)))

    @cached_property
    def marks(self) -> FactMarks:
        """See `TokenTraits`."""
        return mark_facts(self._ids, self._texts)

    def compute(self) -> None:
        """See `TokenTraits`."""
        _ = self.codes, self.marks
