"""A radix tree of token ids over whole pages: the exact, lossless part of reuse.

Each edge holds a run of ids, a multiple of the page size, and the pages with their KV. A hit is
found by comparing ids, never by a hash. The tree holds one reference to each of its pages.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from semshare.kv.pool import KVPool
from semshare.types import Ids, Mask, Pages


@dataclass(slots=True, eq=False)
class PrefixNode:
    """A run of ids below its parent, and the pages of their KV."""

    ids: Ids  # [k × page_size]
    pages: Pages  # [k]
    parent: PrefixNode | None
    children: dict[bytes, PrefixNode] = field(default_factory=dict)  # by the first page of ids
    locks: int = 0  # users of this node or of one below it
    last_used: int = 0
    owner: str | None = None  # the donor whose ids these are, if one is known

    def path(self) -> Iterator[PrefixNode]:
        """This node and those above it, without the root, which stands for no ids."""
        step = self
        while step.parent is not None:
            yield step
            step = step.parent


@dataclass(frozen=True, slots=True)
class PrefixMatch:
    """The longest cached prefix of some ids."""

    pages: Pages  # [tokens / page_size]
    tokens: int
    node: PrefixNode  # the deepest node reached; lock it to keep the pages cached


class PrefixTree:
    """Exact prefixes of one namespace.

    Args:
        pool: whose pages the tree refers to.
        clock: ticks of use, shared by the trees that are evicted together.

    """

    def __init__(self, pool: KVPool, clock: Iterator[int]) -> None:
        self._pool = pool
        self._clock = clock
        self._root = PrefixNode(np.empty(0, np.int32), np.empty(0, np.int64), None)

    def match(self, ids: Ids, *, limit: int | None = None) -> PrefixMatch:
        """The longest cached prefix of `ids`, in whole pages and of at most `limit` tokens.

        Splits an edge where the match ends inside it; changes nothing else but recency.
        """
        size = self._pool.page_size
        end = len(ids) if limit is None else min(limit, len(ids))
        end -= end % size
        node, start, pages = self._root, 0, [self._root.pages]
        while start < end:
            child = node.children.get(ids[start : start + size].tobytes())
            if child is None:
                break
            common = _common_pages(child.ids, ids[start:end], size)
            if common < len(child.pages):
                child = self._split(child, common)
            child.last_used = next(self._clock)
            pages.append(child.pages)
            node, start = child, start + common * size
        return PrefixMatch(np.concatenate(pages), start, node)

    def insert(self, ids: Ids, pages: Pages, *, owner: str | None) -> PrefixNode:
        """Cache the whole pages of a sequence whose KV is exact.

        Pages already cached under the same ids stay; only the rest gets a reference.

        Args:
            ids: tokens of the sequence; a part of a page at the end is left out.
            pages: of those tokens, from position 0 on.
            owner: the donor these tokens belong to, if any; the first one named stays.

        Returns:
            The node that ends the inserted run.

        """
        size = self._pool.page_size
        whole = min(len(ids) // size, len(pages))
        found = self.match(ids, limit=whole * size)
        if owner is not None:
            for step in found.node.path():
                step.owner = step.owner or owner
        if found.tokens == whole * size:
            return found.node
        new_pages = pages[found.tokens // size : whole].copy()
        self._pool.share(new_pages)
        node = PrefixNode(
            ids[found.tokens : whole * size].copy(),
            new_pages,
            found.node,
            last_used=next(self._clock),
            owner=owner,
        )
        found.node.children[node.ids[:size].tobytes()] = node
        return node

    def lock(self, node: PrefixNode) -> None:
        """Keep the path to `node` from being evicted, until as many calls of `unlock`."""
        for step in node.path():
            step.locks += 1

    def unlock(self, node: PrefixNode) -> None:
        """Undo one `lock`."""
        for step in node.path():
            if step.locks == 0:
                raise AssertionError("the path to this node is not locked")
            step.locks -= 1

    def oldest_leaf(self, idle: Mask) -> PrefixNode | None:
        """The least recently used leaf that is not locked and has a page that is `idle`.

        In itself or above it: a leaf without one hides those that its path would give back.

        Args:
            idle: `[n_pages]` pages that would be free without leaves such as this.

        """
        leaves = (
            node
            for node in self.nodes()
            if not node.children
            and not node.locks
            and any(idle[step.pages].any() for step in node.path() if not step.locks)
        )
        return min(leaves, key=lambda n: n.last_used, default=None)

    def evict(self, leaf: PrefixNode) -> None:
        """Drop an unlocked leaf and its references."""
        if leaf.children or leaf.locks or leaf.parent is None:
            raise AssertionError("only an unlocked leaf can be evicted")
        del leaf.parent.children[leaf.ids[: self._pool.page_size].tobytes()]
        self._pool.release(leaf.pages)

    def forget(self, node: PrefixNode) -> None:
        """Drop `node`, all that continues it, and the ancestors nothing else needs.

        What is locked stays, with its path: another donor holds the same ids. The root stands for
        no ids at all, so forgetting it drops nothing.
        """
        if node.parent is None:
            return
        below, stack = [], [node]
        while stack:
            step = stack.pop()
            below.append(step)
            stack += step.children.values()
        above = node.parent
        for step in reversed(below):  # children before their parents
            if not step.children and not step.locks:
                self.evict(step)
        while above.parent is not None and not above.children and not above.locks:
            parent = above.parent
            self.evict(above)
            above = parent

    def clear(self) -> None:
        """Drop everything. Who reads the pages holds references of their own."""
        for node in self.nodes():
            self._pool.release(node.pages)
        self._root.children.clear()

    def nodes(self) -> list[PrefixNode]:
        """All nodes but the root."""
        found, stack = [], list(self._root.children.values())
        while stack:
            node = stack.pop()
            found.append(node)
            stack += node.children.values()
        return found

    def _split(self, node: PrefixNode, pages: int) -> PrefixNode:
        """Cut an edge after `pages` pages; returns the new upper node, with the same locks."""
        size = self._pool.page_size
        cut = pages * size
        upper = PrefixNode(
            node.ids[:cut],
            node.pages[:pages],
            node.parent,
            locks=node.locks,
            last_used=node.last_used,
            owner=node.owner,
        )
        if node.parent is None:
            raise AssertionError("the root has no ids to split")
        node.parent.children[upper.ids[:size].tobytes()] = upper
        node.ids, node.pages, node.parent = node.ids[cut:], node.pages[pages:], upper
        upper.children[node.ids[:size].tobytes()] = node
        return upper


def _common_pages(left: Ids, right: Ids, size: int) -> int:
    n = min(len(left), len(right))
    differing = np.flatnonzero(left[:n] != right[:n])
    return int(differing[0] if len(differing) else n) // size
