"""Which pages could be had back, counted over what all namespaces hold. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import numpy as np

from semshare.donors.namespace import Donor, Namespace
from semshare.donors.prefix_tree import PrefixNode
from semshare.kv.pool import KVPool
from semshare.types import Mask


def pages_within_reach(
    pool: KVPool,
    spaces: Iterable[Namespace],
    donors: Iterable[Donor],
    may_leave: Callable[[Donor], bool],
) -> int:
    """Pages that are free or would be without cached prefixes and the donors that may leave.

    Args:
        pool: with all pages.
        spaces: whose prefix trees refer to them, what is published among them.
        donors: that hold pages, each once.
        may_leave: says of each whether its pages may be had.

    """
    references = pool.references(np.arange(pool.n_pages))
    kept: set[int] = set()
    for donor in donors:
        if may_leave(donor):
            references[donor.pages] -= 1
            continue
        for end in (donor.node, donor.published_node):
            kept |= {id(node) for node in end.path()} if end is not None else set()
    for space in spaces:
        for node in space.prefixes.nodes():
            if id(node) not in kept:
                references[node.pages] -= 1
    return int(np.count_nonzero(references == 0))


def pages_only_cached(pool: KVPool, spaces: Iterable[Namespace]) -> Mask:
    """`[n_pages]` pages that are held by cached prefixes of no donor, and by nobody else.

    Several namespaces may cache the same page: that of a donor that was published once.
    """
    references = pool.references(np.arange(pool.n_pages))
    cached = np.zeros_like(references)
    for space in spaces:
        for node in space.prefixes.nodes():
            if not node.locks:
                cached[node.pages] += 1
    only_cached: Mask = (references > 0) & (references == cached)
    return only_cached


def oldest_leaf(pool: KVPool, spaces: Mapping[str, Namespace]) -> tuple[str, PrefixNode] | None:
    """The cached prefix that goes first, and its namespace, if one would free a page."""
    idle = pages_only_cached(pool, spaces.values())
    leaves = [
        (name, leaf)
        for name, space in spaces.items()
        if (leaf := space.prefixes.oldest_leaf(idle)) is not None
    ]
    return min(leaves, key=lambda pair: pair[1].last_used, default=None)
