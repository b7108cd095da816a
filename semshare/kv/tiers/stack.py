"""Several tiers as one: what is written goes to all of them, what is read comes from the fastest.

Whatever a tier does wrong stays here: a read goes on to the next one, a write is tried again later
by whoever asked for it, and counters tell.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor

from semshare.errors import (
    BlobCorrupt,
    NotStored,
    StorageError,
    TierFull,
    TierUnavailable,
)
from semshare.kv.tiers.blob import read_head
from semshare.kv.tiers.blob_format import BlobFormat
from semshare.kv.tiers.blob_head import BlobLayout
from semshare.kv.tiers.counting import Counts
from semshare.kv.tiers.tier import Buffer, ByteRange, DonorRecord, StoredForm, Tier
from semshare.types import Ids


class TierStack:
    """Tiers in which donors are kept side by side.

    Thread-safe as far as its tiers are.

    Args:
        tiers: the fastest first.
        blob_format: of all that is kept in them.

    """

    def __init__(self, tiers: Sequence[Tier], blob_format: BlobFormat) -> None:
        self.tiers = tuple(tiers)
        self.format = blob_format
        self.counts = Counts()  # by event, or by event and tier

    def each(self, do: Callable[[Tier], None], among: Sequence[Tier] | None = None) -> list[Tier]:
        """Do something in some tiers, all by default; returns those to try again later.

        A tier without room is none of these: it has taken what its policy prefers.
        """
        missed: list[Tier] = []
        for tier in self.tiers if among is None else among:
            try:
                do(tier)
            except TierFull:
                self.counts.add(f"full:{tier.name}")
            except TierUnavailable:
                self.counts.add(f"unavailable:{tier.name}")
                missed.append(tier)
        return missed

    def read(self, donor: str, ids: Ids, group: int, chunks: Sequence[int]) -> Tensor:
        """Some chunks of a donor's layer group, from the first tier that has them whole.

        Args:
            donor: its id.
            ids: `[n]` of its prompt, which the blob must be of.
            group: of layers.
            chunks: ascending, each once.

        Returns:
            `[tokens, layers, 2, kv_heads, d]` in the model's dtype: keys, then values.

        Raises:
            NotStored: no tier has it, or none has it whole. What is broken was quarantined.
            TierUnavailable: no tier has it, but not all could be asked.

        """
        unanswered: TierUnavailable | None = None
        for tier in self.tiers:
            try:
                found = self._read_from(tier, donor, ids, group, chunks)
            except NotStored:
                continue
            except TierUnavailable as error:
                self.counts.add(f"unavailable:{tier.name}")
                unanswered = error
            except StorageError as error:  # corrupt, or foreign in a place of ours
                self.counts.add(f"quarantined:{tier.name}")
                with self._bearing_with(tier):
                    tier.quarantine(donor, str(error))
            else:
                self.counts.add(f"chunks_read:{tier.name}", len(chunks))
                return found
        if unanswered is not None:
            raise unanswered
        raise NotStored(f"no tier has layer group {group} of {donor}: it is computed anew")

    def _read_from(
        self, tier: Tier, donor: str, ids: Ids, group: int, chunks: Sequence[int]
    ) -> Tensor:
        head_range = ByteRange(0, BlobLayout(self.format, group, len(ids)).head_bytes)
        (head_part,) = tier.read(donor, group, [head_range])
        head = read_head(self.format, group, ids, head_part)
        ranges = head.ranges(chunks)
        parts = tier.read(donor, group, ranges)
        if len(parts) != len(ranges):
            raise BlobCorrupt(f"{tier.name} gave {len(parts)} parts of {len(ranges)} of {donor}")
        return head.decode(chunks, parts)

    def copy(self, donor: str, ids: Ids, form: StoredForm, source: Tier) -> list[Buffer]:
        """A donor's whole blobs as a tier has them, checked, to be put into another one.

        Raises:
            StorageError: it has them no longer, or not now.

        """
        blobs = []
        for group, n_bytes in enumerate(form.group_bytes):
            (blob,) = source.read(donor, group, [ByteRange(0, n_bytes)])
            head = read_head(self.format, group, ids, blob[: form.head_bytes])
            chunks = range(head.layout.n_chunks)
            head.decode(chunks, [blob[part.start : part.stop] for part in head.ranges(chunks)])
            blobs.append(blob)
        return blobs

    def holders(self, donor: str) -> list[Tier]:
        """The tiers that have a donor, as far as this process knows."""
        return [tier for tier in self.tiers if tier.holds(donor)]

    def records(self) -> dict[str, DonorRecord]:
        """All donors of tiers that answer, by id; where several have one, as the last says."""
        found: dict[str, DonorRecord] = {}
        for tier in self.tiers:
            with self._bearing_with(tier):
                found |= {record.id: record for record in tier.records()}
        return found

    def close(self) -> None:
        """Close all tiers. Safe to call twice."""
        for tier in self.tiers:
            tier.close()

    @contextmanager
    def _bearing_with(self, tier: Tier) -> Iterator[None]:
        try:
            yield
        except StorageError:
            self.counts.add(f"unavailable:{tier.name}")
