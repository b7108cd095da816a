"""Who holds the pages of the KV pool: donors, cached prefixes, requests that run."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from semshare.donors.library import DonorLibrary
from semshare.kv.pool import KVPool
from semshare.types import NamespaceUse, Pages, PoolUse, StorageUse


def pool_use(library: DonorLibrary, pool: KVPool, storage: StorageUse | None = None) -> PoolUse:
    """The pool's pages by holder. A page counts once: for donors first, then for prefixes."""
    page_bytes = pool.page_size * pool.bytes_per_slot
    kept = np.zeros(pool.n_pages, dtype=np.bool_)
    namespaces = {}
    for name in library.names:
        space = library.namespace(name)
        of_donors = _distinct(donor.pages for donor in space.donors.values())
        of_prefixes = _distinct(node.pages for node in space.prefixes.nodes())
        only_prefixes = np.setdiff1d(of_prefixes, of_donors, assume_unique=True)
        kept[of_donors] = kept[only_prefixes] = True
        namespaces[name] = NamespaceUse(
            donors=len(space.donors),
            donor_bytes=len(of_donors) * page_bytes,
            prefix_bytes=len(only_prefixes) * page_bytes,
        )
    # Of a published donor that was forgotten, others' may have kept the beginning.
    kept[_distinct(node.pages for node in library.published.prefixes.nodes())] = True
    free = pool.free_pages
    return PoolUse(
        namespaces=namespaces,
        running_bytes=(pool.n_pages - free - int(np.count_nonzero(kept))) * page_bytes,
        used_bytes=(pool.n_pages - free) * page_bytes,
        free_bytes=free * page_bytes,
        donors_evicted=library.evicted_donors,
        storage=storage,
    )


def _distinct(runs: Iterable[Pages]) -> Pages:
    return np.unique(np.concatenate([np.empty(0, dtype=np.int64), *runs]))
