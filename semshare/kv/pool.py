"""The KV pool: slots for one token's K and V of all layers, in reference-counted pages."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from semshare.errors import InvalidRequest, PoolExhausted
from semshare.kv.arrival import Arrival, Departure
from semshare.kv.codec import Int8Codec
from semshare.types import Pages, Slots

Cells = NDArray[np.int64]  # cell numbers, see `KVPool`


class KVPool:
    """Pages of slots under a byte budget.

    Page p holds the slots from p × page_size to (p + 1) × page_size − 1.

    A slot's K and V of layer l lie at `keys[l][slot]` and `values[l][slot]`, each
    `[kv_heads, head_dim]`; keys are rotated for the position they were computed at. A page is
    free when nobody holds a reference to it. The memory is reserved at once and touched as pages
    are written, so an empty pool costs address space only.

    A slot is one token in all layers, a *cell* one token in one layer: layer l's part of slot s is
    cell l × n_slots + s of `all_keys` and `all_values`, `[n_layers × n_slots, kv_heads, head_dim]`,
    of which `keys[l]` and `values[l]` are parts. So a prompt that keeps another number of tokens in
    each layer (`kv/retained.py`) may put any layer's tokens into any cells of its pages.

    A page that is in use may be on its way from a tier below (`arriving`).

    A page can hold compressed tokens in place of slots (`kv/compressed.py`). They are addressed by
    *virtual slots* from `n_slots` on: row r of page p is n_slots + p × compressed_per_page + r.

    Args:
        n_layers, n_kv_heads, head_dim, dtype, device: of the model.
        budget_bytes: most bytes that keys and values may take; at least one page must fit.
        page_size: slots a page.

    """

    def __init__(
        self,
        *,
        n_layers: int,
        n_kv_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
        budget_bytes: int,
        page_size: int,
    ) -> None:
        self.page_size = page_size
        self.codec = Int8Codec(n_kv_heads, head_dim)
        cell_bytes = n_kv_heads * head_dim * dtype.itemsize  # of keys, and as many of values
        self.bytes_per_slot = 2 * n_layers * cell_bytes
        self.compressed_per_page = page_size * cell_bytes // self.codec.bytes_per_token
        self.n_pages = budget_bytes // (self.bytes_per_slot * page_size)
        if self.n_pages == 0:
            raise InvalidRequest(
                f"kv_budget_bytes is {budget_bytes}: one page of {page_size} slots takes "
                f"{self.bytes_per_slot * page_size} bytes with this model"
            )
        shape = (n_layers * self.n_slots, n_kv_heads, head_dim)
        self.all_keys = torch.empty(shape, dtype=dtype, device=device)
        self.all_values = torch.empty_like(self.all_keys)
        by_layer = (n_layers, self.n_slots, n_kv_heads, head_dim)
        self.keys: list[Tensor] = list(self.all_keys.view(by_layer).unbind())
        self.values: list[Tensor] = list(self.all_values.view(by_layer).unbind())
        # Called with a number of pages when too few are free; may free some.
        self.reclaim: Callable[[int], None] | None = None
        # Each holds a reference on its pages.
        self.arrivals: list[Arrival] = []
        self.departures: list[Departure] = []
        self._references = np.zeros(self.n_pages, dtype=np.int32)

    @property
    def n_slots(self) -> int:
        """All slots, free or not."""
        return self.n_pages * self.page_size

    @property
    def free_pages(self) -> int:
        """Pages nobody refers to."""
        return int(np.count_nonzero(self._references == 0))

    @property
    def used_bytes(self) -> int:
        """Bytes of the pages in use; each counts once however many share it."""
        return (self.n_pages - self.free_pages) * self.page_size * self.bytes_per_slot

    def references(self, pages: Pages) -> NDArray[np.int32]:
        """How many references each of `pages` has."""
        return self._references[pages]

    def pages_for(self, n_slots: int) -> int:
        """Pages that hold `n_slots` slots."""
        return -(-n_slots // self.page_size)

    def slots_of(self, pages: Pages) -> Slots:
        """All slots of `pages`, in their order."""
        return (pages[:, None] * self.page_size + np.arange(self.page_size)).reshape(-1)

    def pages_of(self, slots: Slots) -> Pages:
        """The distinct pages that hold `slots`, virtual ones among them or not, ascending."""
        virtual = slots >= self.n_slots
        plain, compressed = slots[~virtual], slots[virtual] - self.n_slots
        return np.union1d(plain // self.page_size, compressed // self.compressed_per_page)

    def arriving(self, slots: Slots) -> list[Arrival]:
        """What is on its way into pages of these `slots`."""
        if not self.arrivals:
            return []
        pages = self.pages_of(slots)
        return [one for one in self.arrivals if one.fills(pages)]

    def cells_of(self, layer: int, slots: Slots) -> Cells:
        """Where `layer`'s part of `slots` lies in `all_keys` and `all_values`."""
        return layer * self.n_slots + slots

    def allocate(self, n_slots: int) -> Pages:
        """Take free pages for `n_slots` slots, with one reference each.

        `reclaim` is asked for more where too few are free. One contiguous run if there is any
        (the tightest that fits), so that the sequence can be attended in place; otherwise the
        largest runs first.

        Raises:
            PoolExhausted: too few free pages; nothing was taken.

        """
        wanted = self.pages_for(n_slots)
        if wanted == 0:
            return np.empty(0, dtype=np.int64)
        self._make_room(wanted)
        starts, lengths = self._free_runs()
        if lengths.sum() < wanted:
            raise PoolExhausted(n_slots, int(lengths.sum()) * self.page_size, self.n_slots)
        fitting = np.flatnonzero(lengths >= wanted)
        if len(fitting):
            best = fitting[np.argmin(lengths[fitting])]
            pages = np.arange(starts[best], starts[best] + wanted)
        else:
            order = np.argsort(-lengths, kind="stable")
            runs = [np.arange(starts[i], starts[i] + lengths[i]) for i in order]
            pages = np.concatenate(runs)[:wanted]
        self._references[pages] = 1
        return pages

    def _make_room(self, wanted: int) -> None:
        """Have `wanted` pages free, if that is possible."""
        while self.free_pages < wanted:
            self.settle()
            if self.reclaim is not None:
                self.reclaim(wanted)
            moving: list[Departure | Arrival] = [*self.departures, *self.arrivals]
            if self.free_pages >= wanted or not moving:
                return
            if not moving[0].wait_until_over():  # its pages may be had then
                return

    def settle(self) -> None:
        """Let go of what has come or gone, and let nobody begin with what failed to come.

        A plan that was made before holds on to what was on its way then: pages are read only as
        these arrivals allow it.
        """
        over = [one for one in self.arrivals if one.settle()]
        for arrival in over:
            self.arrivals.remove(arrival)
            self.release(arrival.pages)
        for departure in [one for one in self.departures if one.settle()]:
            self.departures.remove(departure)
            self.release(departure.pages)

    def lend(self, pages: Pages, slots: Slots) -> Departure:
        """Keep pages, all of which must be in use, for a thread that reads them without the lock.

        Nobody writes to them before that thread says that it is over.
        """
        self.share(pages)
        departure = Departure(pages, slots)
        self.departures.append(departure)
        return departure

    def share(self, pages: Pages) -> None:
        """Add a reference to each of `pages`, all of which must be in use."""
        if np.any(self._references[pages] == 0):
            raise AssertionError("a free page can't be shared")
        self._references[pages] += 1

    def release(self, pages: Pages) -> None:
        """Drop a reference to each of `pages`; a page without any is free."""
        if np.any(self._references[pages] == 0):
            raise AssertionError("a free page can't be released")
        self._references[pages] -= 1

    def _free_runs(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Starts and lengths of the maximal runs of free pages."""
        edges = np.diff((self._references == 0).astype(np.int8), prepend=0, append=0)
        starts = np.flatnonzero(edges == 1)
        return starts, np.flatnonzero(edges == -1) - starts
