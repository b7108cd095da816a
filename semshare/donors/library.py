"""All donors, by namespace, with the indexes that find them and the pages they hold."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, count
from types import EllipsisType

from semshare.donors.embedders import Embedder, Vector
from semshare.donors.eviction import oldest_leaf, pages_only_cached, pages_within_reach
from semshare.donors.namespace import Donor, Namespace, donor_id
from semshare.donors.prefix_tree import PrefixTree
from semshare.donors.prompt_index import PromptIndex
from semshare.donors.prompt_vectors import PromptVectors
from semshare.donors.records import stored_donor
from semshare.donors.residency import Residency
from semshare.donors.stored_prefixes import StoredPrefixes
from semshare.donors.traits import TraitsOf
from semshare.donors.watcher import DonorWatcher, Gone, Nobody
from semshare.errors import NotFound
from semshare.kv.compressed import CompressedView
from semshare.kv.pool import KVPool
from semshare.kv.tiers.tier import DonorRecord
from semshare.types import DonorInfo, Ids, Pages, Scores


class DonorLibrary:
    """Donors of all namespaces over one pool; evicts the least recently used under pressure.

    One space more holds what is published: the donors of some namespaces once again, on the same
    pages, to be found by all. Nothing else enters it. A donor that has expired is removed before
    anybody looks. One that is also in a tier below the pool is not lost when its pages go: it is
    found as before, and `Residency` tells which of its tokens are in the pool.

    Args:
        pool: holds the KV. Its `reclaim` hook is set to this library's eviction.
        embedder: makes the prompt vectors.
        traits_of: what is computed of a donor's tokens.
        compressed: stores the KV of donors, if that is to be in int8. Prefixes are lossless, so a
            donor's own is then cached only as those of other prompts are.
        now: the time in seconds since the epoch, by which donors expire.

    """

    def __init__(
        self,
        pool: KVPool,
        embedder: Embedder,
        traits_of: TraitsOf,
        compressed: CompressedView | None = None,
        *,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._pool = pool
        self._compressed = compressed
        self.vectors = PromptVectors(embedder)
        self._traits_of = traits_of
        self._now = now
        self._next_expiry = math.inf  # no donor expires before
        self._clock: Iterator[int] = count(1)
        self._namespaces: dict[str, Namespace] = {}
        self._published = self._empty_space()
        self.residency = Residency(pool, self._published)
        self.evicted_donors = 0
        self.demoted_donors = 0
        self.expired_donors = 0
        self.watcher: DonorWatcher = Nobody()
        pool.reclaim = self._evict_until

    def find(self, name: str) -> Namespace | None:
        """The namespace of that name, if it holds anything."""
        self._drop_expired()
        return self._namespaces.get(name)

    def readable(self, name: str) -> list[Namespace]:
        """Where requests of a namespace may look: its own space, then what is published.

        Those that hold nothing are left out.
        """
        self._drop_expired()
        own = self._namespaces.get(name)
        spaces = [] if own is None else [own]
        return [*spaces, self._published] if self._published.donors else spaces

    @property
    def published(self) -> Namespace:
        """The donors that all may read."""
        return self._published

    def namespace(self, name: str) -> Namespace:
        """The namespace of that name, made if it is new."""
        if name not in self._namespaces:
            self._namespaces[name] = self._empty_space()
        return self._namespaces[name]

    def _empty_space(self) -> Namespace:
        return Namespace(
            PrefixTree(self._pool, self._clock),
            PromptIndex(self.vectors.dim),
            StoredPrefixes(self._pool.page_size),
        )

    def add(
        self,
        namespace: str,
        ids: Ids,
        pages: Pages,
        *,
        history: Scores,
        pinned: bool,
        ttl_s: float | None = None,
    ) -> Donor:
        """Keep a prompt that is no donor yet (`renew`).

        Args:
            namespace: whose requests may find it.
            ids: `[n]` of the prompt.
            pages: with its exact KV, in order.
            history, pinned: see `Donor`.
            ttl_s: seconds until it expires; None: it stays.

        Raises:
            PoolExhausted: no pages for a compressed copy, and nothing left to evict.
            InvalidRequest: a number that can't be compressed. In any case nothing is kept.

        """
        vector = self.vectors.of(ids)  # an embedder that fails leaves nothing half kept
        traits = self._traits_of(ids)
        traits.compute()
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
        now = self._now()
        donor = Donor(
            id=name,
            namespace=namespace,
            ids=ids,
            pages=pages,
            slots=slots,
            traits=traits,
            history=history,
            node=node,
            pinned=pinned,
            last_used=next(self._clock),
            bytes=self.bytes_of(len(ids)),
            created_at=now,
            used_at=now,
            expires_at=self._expiry(now, ttl_s),
        )
        space.add(donor, vector)
        self.residency.entered(donor)
        self.watcher.kept(donor, vector)
        return donor

    def add_stored(self, records: Iterable[DonorRecord]) -> list[Donor]:
        """Let donors be found whose KV lies below the pool; returns those that are new.

        A record that names another donor than its content, or that has expired, is passed over. One
        of a donor that is known says that a tier has it, and when it expires.
        """
        now, added = self._now(), list[tuple[Donor, Vector]]()
        for record in records:
            if record.expires_at <= now:
                self.watcher.gone(record.id, "expired")
                continue
            if donor_id(record.namespace, record.ids) != record.id:
                continue
            space = self._namespaces.get(record.namespace)
            known = space.donors.get(record.id) if space is not None else None
            if known is not None:
                known.stored = record.form
                self._told(known, record)
            else:
                self._next_expiry = min(self._next_expiry, record.expires_at)
                donor = stored_donor(
                    record,
                    self._traits_of(record.ids),
                    tick=next(self._clock),
                    n_bytes=self.bytes_of(len(record.ids)),
                )
                added.append((donor, self.vectors.of_record(record)))
        added.sort(key=lambda pair: pair[0].created_at)  # donors are listed oldest first
        by_space: dict[str, list[tuple[Donor, Vector]]] = {}
        for donor, vector in added:
            by_space.setdefault(donor.namespace, []).append((donor, vector))
        for name, several in by_space.items():
            space = self.namespace(name)
            space.add_many(several)
            self.residency.below(space, [donor for donor, _ in several])
        published = [pair for pair in added if pair[0].published]
        self._published.add_many(published)
        self.residency.below(self._published, [donor for donor, _ in published])
        return [donor for donor, _ in added]

    def _told(self, donor: Donor, record: DonorRecord) -> None:
        """What another process says of a donor that is known here."""
        donor.pinned, donor.expires_at = record.pinned, record.expires_at
        self._next_expiry = min(self._next_expiry, record.expires_at)
        if record.published and not donor.published:
            self.publish(donor.namespace, donor.id)
        elif donor.published and not record.published:
            self._unpublish(donor)

    def find_by_id(self, name: str) -> Donor | None:
        """A donor of any namespace, for what goes on behind requests."""
        spaces = self._namespaces.values()
        return next((space.donors[name] for space in spaces if name in space.donors), None)

    def forgotten_elsewhere(self, name: str) -> None:
        """Another process with the same donors has forgotten one."""
        donor = self.find_by_id(name)
        if donor is not None:
            self._remove(donor, "forgotten")

    def not_loaded(self, donor: Donor, pages: Pages) -> None:
        """A donor's KV has not come into `pages`: they go back; so does it if no tier has it."""
        self.residency.give_up(donor, pages)
        if self.find_by_id(donor.id) is donor and donor.stored is None and not donor.is_whole:
            self._remove(donor, "lost")

    def no_longer_stored(self, name: str) -> None:
        """No tier below the pool has a donor any more; it stays if all of it is in the pool."""
        donor = self.find_by_id(name)
        if donor is None or donor.stored is None:
            return
        donor.stored = None
        if not donor.is_whole:
            self._remove(donor, "lost")

    def bytes_of(self, n_tokens: int) -> int:
        """KV bytes that a donor of `n_tokens` tokens holds."""
        pages = (
            self._pool.pages_for(n_tokens)
            if self._compressed is None
            else self._compressed.pages_for(n_tokens)
        )
        return pages * self._pool.page_size * self._pool.bytes_per_slot

    def holds(self, namespace: str, ids: Ids) -> bool:
        """Whether a prompt is a donor of this namespace."""
        space = self.find(namespace)
        return space is not None and donor_id(namespace, ids) in space.donors

    def renew(
        self,
        namespace: str,
        ids: Ids,
        *,
        history: Scores,
        pinned: bool,
        ttl_s: float | EllipsisType | None = ...,
    ) -> Donor | None:
        """The donor that a prompt is already, if it is one.

        It stays on its own pages, learns the new history, is pinned if either asks for that, and
        expires when the later of both does; `...` says nothing of that.
        """
        space = self.find(namespace)
        known = space.donors.get(donor_id(namespace, ids)) if space else None
        if known is None:
            return None
        now = self._now()
        if not isinstance(ttl_s, EllipsisType):
            known.expires_at = max(known.expires_at, self._expiry(now, ttl_s))
        if len(known.history) and len(history):
            history = known.history + history
        known.history = history if len(history) else known.history
        known.pinned |= pinned
        known.last_used, known.used_at = next(self._clock), now
        self.watcher.changed(known)
        return known

    def update(
        self,
        namespace: str,
        name: str,
        *,
        pinned: bool | None = None,
        ttl_s: float | EllipsisType | None = ...,
    ) -> Donor:
        """Change what is said of a donor; None and `...` leave it as it is.

        Args:
            namespace, name: of the donor.
            pinned: whether it is never evicted.
            ttl_s: seconds from now until it expires; None: it stays.

        Raises:
            NotFound: not in this namespace.

        """
        donor = self.get(namespace, name)
        if pinned is not None:
            donor.pinned = pinned
        if not isinstance(ttl_s, EllipsisType):
            donor.expires_at = self._expiry(self._now(), ttl_s)
        self.watcher.changed(donor)
        return donor

    def publish(self, namespace: str, name: str) -> Donor:
        """Let the requests of all namespaces find a donor, until it is removed.

        Its pages are shared, nothing is copied. Of a compressed donor no exact prefix is published,
        for it has none of its own.

        Raises:
            NotFound: not in this namespace.

        """
        donor = self.get(namespace, name)
        if donor.published:
            return donor
        vector = self.vectors.of(donor.ids)
        self._published.add(donor, vector)
        donor.published = True
        self.residency.published(donor)
        self.watcher.changed(donor)
        return donor

    def get(self, namespace: str, name: str) -> Donor:
        """A donor.

        Raises:
            NotFound: not in this namespace.

        """
        space = self.find(namespace)
        donor = space.donors.get(name) if space else None
        if donor is None:
            raise _no_donor(name)
        return donor

    def get_readable(self, namespace: str, name: str) -> Donor:
        """A donor that requests of a namespace find, of its own or published.

        Raises:
            NotFound: they find none of that name.

        """
        donor = self._readable(namespace, name)
        if donor is None:
            raise _no_donor(name)
        return donor

    def touch(self, namespace: str, names: Iterable[str]) -> None:
        """Mark donors as used just now by a namespace; those that have gone are passed over."""
        for name in names:
            donor = self._readable(namespace, name)
            if donor is not None:
                donor.last_used, donor.used_at = next(self._clock), self._now()
                self.watcher.used(donor)

    def _readable(self, namespace: str, name: str) -> Donor | None:
        spaces = self.readable(namespace)
        return next((space.donors[name] for space in spaces if name in space.donors), None)

    def remove(self, namespace: str, name: str) -> None:
        """Forget a donor and its exact prefix; pages in use live on until their last reader ends.

        Raises:
            NotFound: not in this namespace.

        """
        self._remove(self.get(namespace, name), "forgotten")

    def _remove(self, donor: Donor, why: Gone) -> None:
        space = self._namespaces[donor.namespace]
        self._unpublish(donor)
        space.remove(donor)
        self.residency.left(space, donor)
        self._drop_if_empty(donor.namespace)
        self.watcher.gone(donor.id, why)

    def _unpublish(self, donor: Donor) -> None:
        if not donor.published:
            return
        self._published.remove(donor)
        self.residency.unpublished(donor)
        donor.published = False

    def clear(self, namespace: str) -> None:
        """Forget all donors and cached prefixes of a namespace."""
        space = self._namespaces.pop(namespace, None)
        if space is None:
            return
        for donor in space.donors.values():
            self._unpublish(donor)
            self.residency.cleared(donor)
        space.prefixes.clear()
        for donor in space.donors.values():
            self.watcher.gone(donor.id, "forgotten")

    def infos(self, namespace: str) -> list[DonorInfo]:
        """The donors of a namespace, oldest first."""
        space = self.find(namespace)
        return [donor.info for donor in space.donors.values()] if space else []

    def usage(self, prefix: str) -> tuple[int, int]:
        """Donors, and bytes of their KV, of all namespaces whose names begin with `prefix`."""
        self._drop_expired()
        sizes = [donor.bytes for donor in self._donors() if donor.namespace.startswith(prefix)]
        return len(sizes), sum(sizes)

    def cache_prefix(self, namespace: str, ids: Ids, pages: Pages) -> None:
        """Keep the whole pages of an exact sequence for prefix hits, without making it a donor."""
        if len(ids) < self._pool.page_size:
            return  # not one whole page, and no reason to make a namespace
        if len(ids) - self._published.prefixes.match(ids).tokens < self._pool.page_size:
            return  # all of it is published: no namespace needs a path to it of its own
        self.namespace(namespace).prefixes.insert(ids, pages, owner=None)

    @property
    def names(self) -> list[str]:
        """All namespaces that hold anything."""
        self._drop_expired()
        return list(self._namespaces)

    @property
    def spare_pages(self) -> int:
        """Pages that are free, or would be without the cached prefixes of no donor."""
        only_cached = pages_only_cached(self._pool, self._namespaces.values())
        return self._pool.free_pages + int(only_cached.sum())

    def _evict_until(self, wanted_pages: int) -> None:
        """Free pages: cached prefixes of no donor first, then donors, but for pinned ones that have
        never left; oldest first.

        Nobody goes if all that may go is not enough.
        """
        self._drop_expired()
        spaces = (*self._namespaces.values(), self._published)
        holders, may_leave = self.residency.holders, self.residency.may_leave
        if pages_within_reach(self._pool, spaces, holders, may_leave) < wanted_pages:
            return
        while self._pool.free_pages < wanted_pages:
            found = oldest_leaf(self._pool, self._namespaces)
            if found is not None:
                name, leaf = found
                self._namespaces[name].prefixes.evict(leaf)
                self._drop_if_empty(name)
                continue
            leaving = [donor for donor in holders if may_leave(donor)]
            if not leaving:
                return  # what is left hangs above a cached prefix that is read at present
            self._let_go(min(leaving, key=lambda donor: donor.last_used))

    def _let_go(self, donor: Donor) -> None:
        """Free a donor's pages; it is found no longer, unless a tier below has it."""
        if donor.stored is not None:
            self.residency.demote(self._namespaces[donor.namespace], donor)
            self.demoted_donors += 1
        else:
            self._remove(donor, "evicted")
            self.evicted_donors += 1

    def _drop_expired(self) -> None:
        now = self._now()
        if now < self._next_expiry:
            return
        for donor in [donor for donor in self._donors() if donor.expires_at <= now]:
            self._remove(donor, "expired")
            self.expired_donors += 1
        self._next_expiry = min((donor.expires_at for donor in self._donors()), default=math.inf)

    def _expiry(self, now: float, ttl_s: float | None) -> float:
        """When something of that time to live expires, which is looked for from now on."""
        expires_at = math.inf if ttl_s is None else now + ttl_s
        self._next_expiry = min(self._next_expiry, expires_at)
        return expires_at

    def _donors(self) -> Iterator[Donor]:
        return chain.from_iterable(space.donors.values() for space in self._namespaces.values())

    def _drop_if_empty(self, name: str) -> None:
        """A namespace that holds nothing is not kept: clients name them as they like."""
        space = self._namespaces[name]
        if not space.donors and not space.prefixes.nodes():
            del self._namespaces[name]


def _no_donor(name: str) -> NotFound:
    return NotFound(f"no donor {name!r} in this namespace: list donors to see them")
