"""Compressed tokens in pages of the pool, next to plain ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from properties import examples
from small_pools import small_pool
from torch import Tensor

from semshare import InvalidRequest, PoolExhausted
from semshare.kv.compressed import CompressedView
from semshare.kv.pool import KVPool

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
LAYERS = 2


def pool_of(
    pages: int, page_size: int, heads: int, d: int, dtype: torch.dtype = torch.float32
) -> KVPool:
    pool = KVPool(
        n_layers=LAYERS,
        n_kv_heads=heads,
        head_dim=d,
        dtype=dtype,
        device=torch.device("cpu"),
        budget_bytes=pages * page_size * 2 * LAYERS * heads * d * dtype.itemsize,
        page_size=page_size,
    )
    for cells in (pool.all_keys, pool.all_values):
        cells.fill_(torch.nan)
    return pool


def random_rows(n: int, pool: KVPool, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    _, heads, d = pool.all_keys.shape
    keys, values = (torch.randn(n, heads, d, generator=generator) * 5 for _ in range(2))
    return keys.to(pool.all_keys.dtype), values.to(pool.all_keys.dtype)


@given(
    heads=st.integers(1, 3),
    d=st.sampled_from([5, 7, 16, 32, 33, 64]),
    dtype=st.sampled_from(DTYPES),
    n_tokens=st.integers(0, 40),
    seed=st.integers(0, 99),
)
@examples(60)
def test_what_is_written_is_read_and_nothing_else_changes(
    heads: int, d: int, dtype: torch.dtype, n_tokens: int, seed: int
) -> None:
    pool = pool_of(16, 8, heads, d, dtype)
    view = CompressedView(pool)
    rng = np.random.default_rng(seed)
    taken = pool.allocate(pool.n_slots)
    pool.release(rng.permutation(taken)[:8])  # scattered pages
    pages = view.allocate(n_tokens)
    assert len(pages) == -(-n_tokens // pool.compressed_per_page)
    slots = rng.permutation(view.slots_of(pages))[:n_tokens]
    assert np.isin(pool.pages_of(slots), pages).all()
    index = torch.from_numpy(slots)
    written = [random_rows(n_tokens, pool, seed + layer) for layer in range(LAYERS)]
    for layer, (keys, values) in enumerate(written):
        view.write(layer, index, keys, values)
    order = torch.randperm(n_tokens, generator=torch.Generator().manual_seed(seed))
    for layer, (keys, values) in enumerate(written):
        read_keys, read_values = view.read(layer, index[order])
        # As if there were no pool in between.
        for read, rows in ((read_keys, keys), (read_values, values)):
            assert read.dtype == dtype
            assert torch.equal(read, pool.codec.decode(pool.codec.encode(rows), dtype)[order])
        other = torch.from_numpy(pool.slots_of(np.setdiff1d(np.arange(pool.n_pages), pages)))
        assert pool.keys[layer][other].isnan().all()
        assert pool.values[layer][other].isnan().all()


def test_virtual_slots_follow_the_pools_own_page_by_page() -> None:
    pool = pool_of(4, 4, 1, 4)  # a page of a layer: 64 bytes; a token: 4 codes and a scale, 6
    view = CompressedView(pool)
    assert (pool.n_slots, pool.compressed_per_page) == (16, 10)
    np.testing.assert_array_equal(view.slots_of(np.array([2, 0])), [*range(36, 46), *range(16, 26)])
    # Page 3 by a plain slot, pages 2 and 0 by virtual ones.
    np.testing.assert_array_equal(pool.pages_of(np.array([45, 13, 16, 36])), [0, 2, 3])
    assert len(pool.pages_of(np.empty(0, np.int64))) == 0


def test_compressed_pages_count_against_the_same_budget() -> None:
    pool = pool_of(4, 4, 1, 4)
    view = CompressedView(pool)
    plain = pool.allocate(2 * 4)
    pages = view.allocate(11)  # ten a page
    assert pool.free_pages == 0
    with pytest.raises(PoolExhausted, match="0 of 16 free"):
        view.allocate(1)
    pool.release(plain)
    pool.share(pages)
    pool.release(pages)
    assert pool.free_pages == 2
    pool.release(pages)
    assert pool.used_bytes == 0


def test_a_refused_number_leaves_the_page_as_it_was() -> None:
    pool = pool_of(2, 8, 1, 8)
    view = CompressedView(pool)
    slots = torch.from_numpy(view.slots_of(view.allocate(3))[:3])
    keys, values = random_rows(3, pool, 0)
    view.write(1, slots, keys, values)
    before = [rows.clone() for rows in view.read(1, slots)]
    with pytest.raises(InvalidRequest, match="inf"):
        view.write(1, slots, values, keys.index_fill(0, torch.tensor([2]), torch.inf))
    assert all(map(torch.equal, before, view.read(1, slots)))


def test_where_int8_saves_nothing_it_is_refused() -> None:
    small = pool_of(2, 1, 1, 64, torch.bfloat16)  # 128 bytes a page and layer; a token takes 68
    with pytest.raises(InvalidRequest, match="a page of 1 slots would hold 1 tokens in int8"):
        CompressedView(small)
    assert small_pool(1).compressed_per_page > 4
