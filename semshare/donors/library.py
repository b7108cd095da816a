"""All donors, by namespace, with the indexes that find them and the pages they hold."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain, count

import numpy as np
from torch import Tensor

from semshare.donors.embedders import Embedder, Vector
from semshare.donors.prefix_tree import PrefixNode, PrefixTree
from semshare.donors.prompt_index import PromptIndex
from semshare.donors.span_index import SpanIndex
from semshare.errors import NotFound
from semshare.kv.compressed import CompressedView
from semshare.kv.pool import KVPool, Pages
from semshare.planning.guard import FactMarks
from semshare.types import DonorInfo, Ids, Scores, Slots


@dataclass(slots=True, eq=False)
class Donor:
    """A prompt whose exact KV is kept."""

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
    last_used: int
    bytes: int

    @property
    def info(self) -> DonorInfo:
        """What the caller sees."""
        return DonorInfo(self.id, self.namespace, len(self.ids), self.bytes, self.pinned)


@dataclass(slots=True, eq=False)
class Namespace:
    """Everything that may be found for one namespace's requests, and nothing else."""

    prefixes: PrefixTree
    prompts: PromptIndex
    spans: SpanIndex = field(default_factory=SpanIndex)
    donors: dict[str, Donor] = field(default_factory=dict)


def donor_id(namespace: str, ids: Ids) -> str:
    """The same prompt in the same namespace is the same donor, in every process."""
    digest = hashlib.blake2b(namespace.encode(), digest_size=12)
    digest.update(b"\0" + ids.tobytes())
    return f"donor-{digest.hexdigest()}"


class DonorLibrary:
    """Donors of all namespaces over one pool; evicts the least recently used under pressure.

    Args:
        pool: holds the KV. Its `reclaim` hook is set to this library's eviction.
        embedder: makes the prompt vectors.
        compressed: stores the KV of donors, if that is to be in int8. Prefixes are lossless, so a
            donor's own is then cached only as those of other prompts are.

    """

    def __init__(
        self, pool: KVPool, embedder: Embedder, compressed: CompressedView | None = None
    ) -> None:
        self._pool = pool
        self._compressed = compressed
        self._embedder = embedder
        self._clock: Iterator[int] = count(1)
        self._namespaces: dict[str, Namespace] = {}
        self.evicted_donors = 0
        pool.reclaim = self._evict_until

    def find(self, name: str) -> Namespace | None:
        """The namespace of that name, if it holds anything."""
        return self._namespaces.get(name)

    def namespace(self, name: str) -> Namespace:
        """The namespace of that name, made if it is new."""
        if name not in self._namespaces:
            self._namespaces[name] = Namespace(
                PrefixTree(self._pool, self._clock), PromptIndex(self._embedder.dim)
            )
        return self._namespaces[name]

    def add(
        self,
        namespace: str,
        ids: Ids,
        pages: Pages,
        *,
        codes: Tensor,
        history: Scores,
        marks: FactMarks,
        pinned: bool,
    ) -> Donor:
        """Keep a prompt that is no donor yet (`renew`).

        Args:
            namespace: whose requests may find it.
            ids: `[n]` of the prompt.
            pages: with its exact KV, in order.
            codes, history, marks, pinned: see `Donor`.

        Raises:
            PoolExhausted: no pages for a compressed copy, and nothing left to evict.
            InvalidRequest: a number that can't be compressed. In any case nothing is kept.

        """
        vector = self.vector(ids)  # an embedder that fails leaves nothing half kept
        name = donor_id(namespace, ids)
        slots = self._pool.slots_of(pages)[: len(ids)]
        node = None
        if self._compressed is not None:
            pages = self._compressed.store(slots)  # may evict all that is left of a namespace
            slots = self._compressed.slots_of(pages)[: len(ids)]
            space = self.namespace(namespace)
        else:
            space = self.namespace(namespace)
            pages = pages[: self._pool.pages_for(len(ids))].copy()
            self._pool.share(pages)
            node = space.prefixes.insert(ids, pages, owner=name)
            space.prefixes.lock(node)
        donor = Donor(
            id=name,
            namespace=namespace,
            ids=ids,
            pages=pages,
            slots=slots,
            codes=codes,
            history=history,
            marks=marks,
            node=node,
            pinned=pinned,
            last_used=next(self._clock),
            bytes=len(pages) * self._pool.page_size * self._pool.bytes_per_slot,
        )
        space.donors[name] = donor
        space.spans.add(name, ids)
        space.prompts.add(name, vector)
        return donor

    def renew(self, namespace: str, ids: Ids, *, history: Scores, pinned: bool) -> Donor | None:
        """The donor that a prompt is already, if it is one.

        It stays on its own pages, learns the new history, and is pinned if either asks for that.
        """
        space = self._namespaces.get(namespace)
        known = space.donors.get(donor_id(namespace, ids)) if space else None
        if known is None:
            return None
        if len(known.history) and len(history):
            history = known.history + history
        known.history = history if len(history) else known.history
        known.pinned |= pinned
        known.last_used = next(self._clock)
        return known

    def vector(self, ids: Ids) -> Vector:
        """A prompt's vector, as the prompt index compares it.

        Raises:
            ValueError: the embedder gave one of another shape than it says.

        """
        vector = self._embedder.embed(ids)
        if vector.shape != (self._embedder.dim,):
            raise ValueError(
                f"the embedder gave a vector of shape {vector.shape}: its dim is "
                f"{self._embedder.dim}"
            )
        return vector

    def get(self, namespace: str, name: str) -> Donor:
        """A donor.

        Raises:
            NotFound: not in this namespace.

        """
        space = self._namespaces.get(namespace)
        donor = space.donors.get(name) if space else None
        if donor is None:
            raise NotFound(f"no donor {name!r} in namespace {namespace!r}: list donors to see them")
        return donor

    def touch(self, namespace: str, names: Iterable[str]) -> None:
        """Mark donors as used just now; those that have gone are passed over."""
        space = self._namespaces.get(namespace)
        for name in names:
            if space and name in space.donors:
                space.donors[name].last_used = next(self._clock)

    def remove(self, namespace: str, name: str) -> None:
        """Forget a donor and its exact prefix; pages in use live on until their last reader ends.

        Raises:
            NotFound: not in this namespace.

        """
        donor = self.get(namespace, name)
        space = self.namespace(namespace)
        del space.donors[name]
        space.spans.remove(name)
        space.prompts.remove(name)
        if donor.node is not None:
            space.prefixes.unlock(donor.node)
            space.prefixes.forget(donor.node)
        else:
            cached = space.prefixes.match(donor.ids)
            if len(donor.ids) - cached.tokens < self._pool.page_size:  # and not just its beginning
                space.prefixes.forget(cached.node)
        self._pool.release(donor.pages)
        self._drop_if_empty(namespace)

    def clear(self, namespace: str) -> None:
        """Forget all donors and cached prefixes of a namespace."""
        space = self._namespaces.pop(namespace, None)
        if space is None:
            return
        for donor in space.donors.values():
            self._pool.release(donor.pages)
        space.prefixes.clear()

    def infos(self, namespace: str) -> list[DonorInfo]:
        """The donors of a namespace, oldest first."""
        space = self._namespaces.get(namespace)
        return [donor.info for donor in space.donors.values()] if space else []

    def cache_prefix(self, namespace: str, ids: Ids, pages: Pages) -> None:
        """Keep the whole pages of an exact sequence for prefix hits, without making it a donor."""
        if len(ids) < self._pool.page_size:
            return  # not one whole page, and no reason to make a namespace
        self.namespace(namespace).prefixes.insert(ids, pages, owner=None)

    @property
    def names(self) -> list[str]:
        """All namespaces that hold anything."""
        return list(self._namespaces)

    def _evict_until(self, wanted_pages: int) -> None:
        """Free pages: cached prefixes of no donor first, then unpinned donors, oldest first.

        Nobody goes if all that may go is not enough.
        """
        if self._pages_within_reach() < wanted_pages:
            return
        while self._pool.free_pages < wanted_pages:
            leaves = [
                (leaf, name)
                for name, space in self._namespaces.items()
                if (leaf := space.prefixes.oldest_leaf()) is not None
            ]
            if leaves:
                leaf, name = min(leaves, key=lambda pair: pair[0].last_used)
                self._namespaces[name].prefixes.evict(leaf)
                self._drop_if_empty(name)
                continue
            unpinned = [donor for donor in self._donors() if not donor.pinned]
            if not unpinned:
                return  # what is left hangs above a cached prefix that is read at present
            oldest = min(unpinned, key=lambda donor: donor.last_used)
            self.remove(oldest.namespace, oldest.id)
            self.evicted_donors += 1

    def _pages_within_reach(self) -> int:
        """Pages that are free or would be without cached prefixes and unpinned donors."""
        references = self._pool.references(np.arange(self._pool.n_pages))
        pinned = [donor for donor in self._donors() if donor.pinned]
        locked = [donor.node for donor in pinned if donor.node is not None]
        kept = {id(node) for end in locked for node in end.path()}
        for space in self._namespaces.values():
            for node in space.prefixes.nodes():
                if id(node) not in kept:
                    references[node.pages] -= 1
        for donor in self._donors():
            if not donor.pinned:
                references[donor.pages] -= 1
        return int(np.count_nonzero(references == 0))

    def _donors(self) -> Iterator[Donor]:
        return chain.from_iterable(space.donors.values() for space in self._namespaces.values())

    def _drop_if_empty(self, name: str) -> None:
        """A namespace that holds nothing is not kept: clients name them as they like."""
        space = self._namespaces[name]
        if not space.donors and not space.prefixes.nodes():
            del self._namespaces[name]
