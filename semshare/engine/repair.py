"""Repair while decoding: reused tokens are computed exactly, left to right, beside the answer.

The first token does not wait for exactness, but the rest of the answer can have it. A second
sequence of the same prompt is prefilled in chunks with nothing approximate in it; what is there of
it is read in place of the mixture at once, and when all of it is, the answer's own tokens are
computed again on top. From then on the KV is that of a full prefill.
"""

from __future__ import annotations

from collections.abc import Sequence

from semshare.engine.executor import Executor, ForwardResult
from semshare.engine.prefill import Prefill
from semshare.engine.rows import PromptRows
from semshare.engine.stopwatch import Stopwatch
from semshare.kv.sequence import KVSequence
from semshare.types import ReusePlan


class Repair:
    """The exact twin of a mixed prompt, in the making.

    Args:
        executor: the model and its pool.
        plan: of the same prompt; exact.

    Raises:
        PoolExhausted: no slots, and nothing left to evict.

    """

    def __init__(self, executor: Executor, plan: ReusePlan) -> None:
        if not plan.is_exact:
            raise AssertionError("a repair computes everything that is not an exact prefix")
        self._prefill = Prefill(executor, plan, Stopwatch(), room=0)
        self._adopted = 0  # tokens that the answers read here

    @property
    def sequence(self) -> KVSequence:
        """The exact KV."""
        return self._prefill.sequence

    @property
    def prompt_done(self) -> bool:
        """Whether all of the prompt's KV is exact."""
        return not self._prefill.rows_left

    @property
    def rows_left(self) -> int:
        """Tokens of the prompt to compute yet."""
        return self._prefill.rows_left

    def next_rows(self, most: int) -> PromptRows:
        """The next tokens of the prompt, at most `most`."""
        return self._prefill.next_rows(most)

    def took(self, rows: PromptRows, result: ForwardResult, readers: Sequence[KVSequence]) -> None:
        """`rows` have been computed; `readers` of the mixture read them from now on."""
        self._prefill.took(rows, result)
        upto = self._prefill.computed_upto
        for reader in readers:
            reader.adopt(self.sequence, self._adopted, upto)
        self._adopted = upto

    def release(self) -> None:
        """Give its slots back; what the answers read of it stays theirs."""
        self.sequence.release()
