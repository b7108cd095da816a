"""Tokens stored in int8, in pages of the pool: same budget, same references, more tokens a page."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from semshare.errors import InvalidRequest
from semshare.kv.pool import KVPool
from semshare.types import Pages, Slots
from semshare_kernels import Rotation, write_slots
from semshare_kernels.rotary import rotated


class CompressedView:
    """A pool's pages as rows of bytes, `compressed_per_page` tokens each.

    A compressed token has a virtual slot (see `KVPool`) where others have a slot; what lies there
    can't be attended in place. Pages are shared and released through the pool, as all are.

    Args:
        pool: whose pages are read and written.

    Raises:
        InvalidRequest: a page would hold no more compressed tokens than plain ones.

    """

    def __init__(self, pool: KVPool) -> None:
        if pool.compressed_per_page <= pool.page_size:
            raise InvalidRequest(
                f"a page of {pool.page_size} slots would hold {pool.compressed_per_page} tokens in "
                "int8, so nothing would be saved: raise page_size, or keep donors in full"
            )
        self._pool = pool
        self._keys = [_as_bytes(layer, pool) for layer in pool.keys]
        self._values = [_as_bytes(layer, pool) for layer in pool.values]

    def allocate(self, n_tokens: int) -> Pages:
        """Take free pages for `n_tokens` compressed tokens, with one reference each.

        Raises:
            PoolExhausted: too few free pages; nothing was taken.

        """
        return self._pool.allocate(self.pages_for(n_tokens) * self._pool.page_size)

    def pages_for(self, n_tokens: int) -> int:
        """Pages that hold `n_tokens` compressed tokens."""
        return -(-n_tokens // self._pool.compressed_per_page)

    def store(self, source: Slots) -> Pages:
        """Compress tokens `[n]` into fresh pages, with one reference each.

        Raises:
            PoolExhausted: too few free pages.
            InvalidRequest: a number that int8 can't store. In any case nothing stays taken.

        """
        pages = self.allocate(len(source))
        try:
            device = self._pool.all_keys.device
            plain = torch.from_numpy(source).to(device)
            slots = torch.from_numpy(self.slots_of(pages)[: len(source)]).to(device)
            for layer, (keys, values) in enumerate(
                zip(self._pool.keys, self._pool.values, strict=True)
            ):
                self.write(layer, slots, keys[plain], values[plain])
        except BaseException:
            self._pool.release(pages)
            raise
        return pages

    def load(self, layer: int, slots: Tensor, target: Tensor, rotation: Rotation | None) -> None:
        """Decode one layer of tokens into plain slots.

        Args:
            layer: its index.
            slots: `[n]` int64, virtual.
            target: `[n]` int64, plain.
            rotation: `[n]`, moves the keys; None leaves them where they were.

        """
        keys, values = self.read(layer, slots)
        if rotation is not None:
            keys = rotated(keys, rotation)
        write_slots(self._pool.keys[layer], self._pool.values[layer], target, keys, values)

    def slots_of(self, pages: Pages) -> Slots:
        """All virtual slots of `pages`, in their order."""
        rows = np.arange(self._pool.compressed_per_page)
        first = self._pool.n_slots + pages * self._pool.compressed_per_page
        return (first[:, None] + rows).reshape(-1)

    def write(self, layer: int, slots: Tensor, keys: Tensor, values: Tensor) -> None:
        """Compress one layer of some tokens.

        Args:
            layer: its index.
            slots: `[n]` int64, virtual, each at most once.
            keys, values: `[n, kv_heads, d]`; keys as rotated for the donor's positions.

        Raises:
            InvalidRequest: a number that int8 can't store; nothing was written.

        """
        page, row = self._place(slots)
        coded_keys, coded_values = self._pool.codec.encode(keys), self._pool.codec.encode(values)
        self._keys[layer][page, row] = coded_keys
        self._values[layer][page, row] = coded_values

    def read(self, layer: int, slots: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values `[n, kv_heads, d]` of one layer, in the pool's dtype.

        Args:
            layer: its index.
            slots: `[n]` int64, virtual.

        """
        page, row = self._place(slots)
        codec, dtype = self._pool.codec, self._pool.all_keys.dtype
        return (
            codec.decode(self._keys[layer][page, row], dtype),
            codec.decode(self._values[layer][page, row], dtype),
        )

    def _place(self, slots: Tensor) -> tuple[Tensor, Tensor]:
        """Page and row in it, each `[n]`."""
        index = slots - self._pool.n_slots
        per_page = self._pool.compressed_per_page
        return index.div(per_page, rounding_mode="floor"), index.remainder(per_page)


def _as_bytes(layer: Tensor, pool: KVPool) -> Tensor:
    """`[n_pages, compressed_per_page, bytes_per_token]` uint8 of one layer, in place."""
    tokens, width = pool.compressed_per_page, pool.codec.bytes_per_token
    pages = layer.view(torch.uint8).view(pool.n_pages, -1)
    return pages[:, : tokens * width].view(pool.n_pages, tokens, width)
