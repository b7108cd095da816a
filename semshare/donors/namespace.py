"""A donor, and what the requests of one namespace may find."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from semshare.donors.embedders import Vector
from semshare.donors.prefix_tree import PrefixNode, PrefixTree
from semshare.donors.prompt_index import PromptIndex
from semshare.donors.span_index import SpanIndex
from semshare.donors.stored_prefixes import StoredPrefixes
from semshare.donors.traits import TokenTraits
from semshare.kv.tiers.tier import StoredForm
from semshare.planning.guard import FactMarks
from semshare.types import STORED, DonorInfo, Ids, Pages, Scores, Slots


@dataclass(slots=True, eq=False)
class Donor:
    """A prompt whose exact KV is kept, in the pool or below it. Times are seconds since the epoch.

    In the pool as a whole it has a path in the prefix tree, unless it is compressed there. Below
    the pool it has none, and `STORED` in place of the slots of the tokens that are not loaded.
    """

    id: str
    namespace: str
    ids: Ids  # [n]
    pages: Pages  # of the pool, on each of which it holds a reference
    slots: Slots  # [n], virtual ones if it is compressed (`KVPool`)
    traits: TokenTraits
    history: Scores  # [n] attention of past answers; empty if none was recorded
    node: PrefixNode | None  # its path in the prefix tree, locked
    pinned: bool
    last_used: int  # a tick of the library, which orders donors as no clock does
    bytes: int
    created_at: float
    used_at: float
    expires_at: float  # no request finds it from then on; infinite if it stays
    stored: StoredForm | None = None  # how a tier below the pool has it; None: none does
    published: bool = False
    published_node: PrefixNode | None = None  # as `node`, in the tree of what is published

    @property
    def codes(self) -> Tensor:
        """See `TokenTraits`."""
        return self.traits.codes

    @property
    def marks(self) -> FactMarks:
        """See `TokenTraits`."""
        return self.traits.marks

    @property
    def is_whole(self) -> bool:
        """Whether all of its KV is in the pool."""
        return not bool(np.any(self.slots == STORED))

    @property
    def info(self) -> DonorInfo:
        """What the caller sees."""
        return DonorInfo(
            id=self.id,
            namespace=self.namespace,
            tokens=len(self.ids),
            bytes=self.bytes,
            pinned=self.pinned,
            created=self.created_at,
            last_used=self.used_at,
            expires=self.expires_at if math.isfinite(self.expires_at) else None,
            published=self.published,
        )


@dataclass(slots=True, eq=False)
class Namespace:
    """Everything that may be found for one namespace's requests; or for all, if it is published."""

    prefixes: PrefixTree
    prompts: PromptIndex
    stored_prefixes: StoredPrefixes  # of donors whose exact KV lies below the pool
    spans: SpanIndex = field(default_factory=SpanIndex)
    donors: dict[str, Donor] = field(default_factory=dict)

    def add(self, donor: Donor, vector: Vector) -> None:
        """Let a donor be found by its text and by `vector`, its prompt's. Takes a millisecond."""
        self.donors[donor.id] = donor
        self.spans.add(donor.id, donor.ids)
        self.prompts.add(donor.id, vector)

    def add_many(self, donors: Iterable[tuple[Donor, Vector]]) -> None:
        """As `add`; a start's thousands in a second, but nobody finds anything meanwhile."""
        several = list(donors)
        if len(several) == 1:
            self.add(*several[0])
            return
        self.donors |= {donor.id: donor for donor, _ in several}
        self.spans.add_many([(donor.id, donor.ids) for donor, _ in several])
        self.prompts.add_many([(donor.id, vector) for donor, vector in several])

    def remove(self, donor: Donor) -> None:
        """Undo `add`."""
        del self.donors[donor.id]
        self.spans.remove(donor.id)
        self.prompts.remove(donor.id)


def donor_id(namespace: str, ids: Ids) -> str:
    """The same prompt in the same namespace is the same donor, in every process."""
    digest = hashlib.blake2b(namespace.encode(), digest_size=12)
    digest.update(b"\0" + ids.tobytes())
    return f"donor-{digest.hexdigest()}"
