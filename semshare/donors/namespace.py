"""A donor, and what the requests of one namespace may find."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field

from torch import Tensor

from semshare.donors.embedders import Vector
from semshare.donors.prefix_tree import PrefixNode, PrefixTree
from semshare.donors.prompt_index import PromptIndex
from semshare.donors.span_index import SpanIndex
from semshare.kv.pool import Pages
from semshare.planning.guard import FactMarks
from semshare.types import DonorInfo, Ids, Scores, Slots


@dataclass(slots=True, eq=False)
class Donor:
    """A prompt whose exact KV is kept. Times are seconds since the epoch."""

    id: str
    namespace: str
    ids: Ids  # [n]
    pages: Pages
    slots: Slots  # [n], virtual ones if it is compressed (`KVPool`)
    codes: Tensor  # [n, words] int64 of `TokenLSH`, at the donor's own positions
    history: Scores  # [n] attention of past answers; empty if none was recorded
    marks: FactMarks
    node: PrefixNode | None  # its path in the prefix tree, locked; None if it is compressed
    pinned: bool
    last_used: int  # a tick of the library, which orders donors as no clock does
    bytes: int
    created_at: float
    used_at: float
    expires_at: float  # no request finds it from then on; infinite if it stays
    published: bool = False
    published_node: PrefixNode | None = None  # as `node`, in the tree of what is published

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
    spans: SpanIndex = field(default_factory=SpanIndex)
    donors: dict[str, Donor] = field(default_factory=dict)

    def add(self, donor: Donor, vector: Vector) -> None:
        """Let a donor be found by its text and by `vector`, its prompt's."""
        self.donors[donor.id] = donor
        self.spans.add(donor.id, donor.ids)
        self.prompts.add(donor.id, vector)

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
