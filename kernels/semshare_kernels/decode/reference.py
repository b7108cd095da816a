"""`decode_attention` by its definition: each sequence by itself, over keys moved into place."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from semshare_kernels.decode.tree import KeyTree
from semshare_kernels.key_table import Index, KeyTable
from semshare_kernels.mixed.reference import attend, visible


def decode_attention(
    q_pos: Index,
    tree: KeyTree,
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    scale: float,
    window: int | None,
    moved: Callable[[Tensor, KeyTable], Tensor],
) -> tuple[Tensor, Tensor]:
    """Attention of one query of each sequence over all nodes of its path.

    Args:
        q_pos: `[n_sequences]` positions of the queries.
        tree: the nodes and who reads them.
        queries: `[n_sequences, heads, d]`, rotated for `q_pos`.
        keys, values: `[n_slots, kv_heads, d]` of the pool.
        scale: of the dot products.
        window: sliding window, tokens; None for full attention.
        moved: turns gathered keys `[n, kv_heads, d]` by the shifts of their table.

    Returns:
        out `[n_sequences, heads, d]` float32, lse `[n_sequences, heads]` float32, natural log.

    """
    results = []
    for index, (path, shifts) in enumerate(zip(tree.paths, tree.shifts, strict=True)):
        table = tree.keys_of(path, shifts)
        slots = torch.from_numpy(table.slots)
        seen = visible(
            torch.from_numpy(q_pos[index : index + 1]), torch.from_numpy(table.positions), window
        )
        key = moved(keys[slots], table)
        results.append(attend(queries[index : index + 1], key, values[slots], seen, scale))
    outs, lses = zip(*results, strict=True)
    return torch.cat(outs), torch.cat(lses)
