"""Layers that keep different numbers of tokens, packed into cells."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from properties import examples

from semshare.kv.pool import KVPool
from semshare.kv.retained import move, pack, slots_wanted
from semshare_kernels import Rotation
from semshare_kernels.rotary import rotated

PAGE = 4


def filled_pool(pages: int, n_layers: int) -> KVPool:
    """Every cell's keys and values are numbers of their own."""
    pool = KVPool(
        n_layers=n_layers,
        n_kv_heads=2,
        head_dim=4,
        dtype=torch.float32,
        device=torch.device("cpu"),
        budget_bytes=pages * PAGE * 2 * n_layers * 2 * 4 * 4,
        page_size=PAGE,
    )
    numbers = torch.arange(pool.all_keys.numel(), dtype=torch.float32)
    pool.all_keys.copy_(numbers.view_as(pool.all_keys))
    pool.all_values.copy_(-numbers.view_as(pool.all_values))
    return pool


def test_cells_by_hand() -> None:
    # Pool layers of 100 slots; five tokens in two layers take the cells of three slots.
    assert slots_wanted([4, 1]) == 3
    first, second = pack([4, 1], np.array([8, 9, 10]), n_slots=100)
    assert first.tolist() == [8, 9, 10, 108]  # one more than there are slots
    assert second.tolist() == [109]


def test_a_layers_part_of_a_slot_is_its_cell() -> None:
    pool = filled_pool(pages=3, n_layers=2)
    cells = torch.from_numpy(pool.cells_of(1, np.array([3, 7])))
    assert torch.equal(pool.all_keys[cells], pool.keys[1][[3, 7]])
    assert torch.equal(pool.all_values[cells], pool.values[1][[3, 7]])
    pool.keys[1][7] = 5.0
    assert pool.all_keys[cells[1]].unique().tolist() == [5.0]


@given(
    n=st.integers(1, 30),
    keeps=st.lists(st.integers(0, 30), min_size=1, max_size=5).filter(any),
    seed=st.integers(0, 99),
)
@examples(100)
def test_what_is_read_through_cells_is_what_was_at_the_slots(
    n: int, keeps: list[int], seed: int
) -> None:
    counts = [min(keep, n) for keep in keeps]
    rng = np.random.default_rng(seed)
    pool = filled_pool(pages=2 * (n // PAGE + 2), n_layers=len(counts))
    taken = pool.allocate(pool.n_slots)
    pool.release(rng.permutation(taken)[: pool.pages_for(n)])  # scattered pages
    source = pool.slots_of(pool.allocate(n))[:n]
    pool.release(np.setdiff1d(taken, pool.pages_of(source)))
    kept = [np.sort(rng.permutation(n)[:count]) for count in counts]

    pages = pool.allocate(slots_wanted(counts))
    least_slots = -(-sum(counts) // len(counts))
    assert len(pages) == -(-least_slots // PAGE)
    cells = pack(counts, pool.slots_of(pages), n_slots=pool.n_slots)
    assert len(np.unique(np.concatenate(cells))) == sum(counts)
    assert np.isin(pool.pages_of(np.concatenate(cells) % pool.n_slots), pages).all()

    before = pool.all_keys.clone()
    move(pool, source, kept, cells, [None] * len(counts))
    for layer, (positions, target) in enumerate(zip(kept, cells, strict=True)):
        at, to = torch.from_numpy(source[positions]), torch.from_numpy(target)
        assert torch.equal(pool.all_keys[to], before[layer * pool.n_slots + at])
        assert torch.equal(pool.all_values[to], -before[layer * pool.n_slots + at])
    untouched = np.setdiff1d(np.arange(len(before)), np.concatenate(cells))
    assert torch.equal(pool.all_keys[untouched], before[untouched])


def test_keys_are_moved_to_where_they_stand_and_values_are_not() -> None:
    pool = filled_pool(pages=6, n_layers=2)
    source = pool.slots_of(pool.allocate(8))
    kept = [np.array([0, 2, 7]), np.array([5])]
    angles = torch.tensor([[0.3, 0.1], [0.0, 0.0], [-2.0, 1.5]])
    turn = Rotation(angles.cos(), angles.sin())
    counts = [len(positions) for positions in kept]
    cells = pack(counts, pool.slots_of(pool.allocate(slots_wanted(counts))), n_slots=pool.n_slots)
    move(pool, source, kept, cells, [turn, None])
    turned = rotated(pool.keys[0][source[kept[0]]], turn)
    torch.testing.assert_close(pool.all_keys[cells[0]], turned)
    assert torch.equal(pool.all_values[cells[0]], pool.values[0][source[kept[0]]])
    assert torch.equal(pool.all_keys[cells[1]], pool.keys[1][source[kept[1]]])
